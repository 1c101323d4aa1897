"""Check 4.1.1: α* lands where it must, and a step that does not is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.cli import main
from trainer.study import landings, sanity


def test_every_sample_rate_and_method_lands(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(landings())
    assert len(found) == 2 * 4 * 3
    assert all(each.lands for each in found)
    assert {each.method for each in found} == {"jvp", "secant"}
    one = next(each for each in found if (each.method, each.x, each.rate) == ("jvp", 2.0, 0.1))
    assert one.relative == pytest.approx(1 / (2 * 0.1 * 2.0**2))  # the loss (z − y)² has curvature 2x² in w
    assert one.weight == pytest.approx(-0.5)
    assert main(["study", "sanity"]) == 0
    assert "all 24 land within 1e-6" in capsys.readouterr().out


def test_what_misses_is_an_exit_code_of_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(landings())
    for miss in (2e-6, float("nan")):
        wrong = replace(found[0], weight=found[0].optimum + miss)
        assert not wrong.lands
    monkeypatch.setattr(sanity, "landings", lambda: [*found[1:], wrong])
    assert main(["study", "sanity"]) == 1
    assert "1 of 24 miss" in capsys.readouterr().out
