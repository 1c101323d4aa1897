"""What several ranks cannot have is refused by name, in one line, before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.config import Config, ConfigError, config_from
from trainer.job.ranks import refuse_on_ranks, timeout_warning


def config(**sections: dict[str, Any]) -> Config:
    return config_from({"data": {"path": "data"}, **sections}, where="the test")


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optimizer": {"name": "prodigy"}}, "optimizer.name = 'prodigy'"),
        ({"optimizer": {"name": "muon"}}, "optimizer.name = 'muon'"),
        ({"optimizer": {"name": "adafactor"}}, "optimizer.name = 'adafactor'"),
        ({"optimizer": {"factory": "mine:make"}}, "optimizer.factory = 'mine:make'"),
        ({"model": {"factory": "mine:make"}}, "model.factory = 'mine:make'"),
        ({"data": {"path": "data", "follow": True}}, "data.follow"),
        ({"eval": {"progressive": True}}, "eval.progressive"),
        ({"stepsize": {"measuring": {"diagnostics": "full"}}}, "stepsize.measuring.diagnostics = 'full'"),
        ({"stepsize": {"measuring": {"curvature": "hessian"}}}, "stepsize.measuring.curvature = 'hessian'"),
    ],
)
def test_what_needs_the_whole_is_refused(sections: dict[str, Any], named: str) -> None:
    given = config(**sections)
    with pytest.raises(ConfigError) as refused:
        refuse_on_ranks(given, 2)
    assert named in str(refused.value)
    assert "on 2 ranks" in str(refused.value)
    assert "\n" not in str(refused.value)
    refuse_on_ranks(given, 1)


@pytest.mark.parametrize("name", ["nadamw", "sgd", "adamw", "schedulefree_adamw", "Adam"])
def test_optimizers_that_move_each_number_by_itself_are_taken(name: str) -> None:
    refuse_on_ranks(config(optimizer={"name": name}), 64)


@pytest.mark.parametrize(
    ("retry", "timeout", "warned"), [(120.0, 300.0, False), (120.0, 60.0, True), (60.0, 60.0, True)]
)
def test_reads_that_are_retried_for_longer_than_others_wait_are_warned_of(
    retry: float, timeout: float, warned: bool
) -> None:
    given = config(data={"path": "data", "retry_seconds": retry}, ranks={"timeout_seconds": timeout})
    said = timeout_warning(given, 2)
    assert (said is not None) is warned
    assert said is None or (f"({retry:g})" in said and f"({timeout:g})" in said)
    assert timeout_warning(given, 1) is None
