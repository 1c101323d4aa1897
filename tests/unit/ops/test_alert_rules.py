"""The alerting rules are valid, fire when they should, and read only series that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ops.bound import DATA_BOUND_SHARE
from ops.metrics import Metrics

RULES = Path(__file__).parents[3] / "ops" / "rules" / "alphastream.yml"
CASES = Path(__file__).with_name("rules_test.yml")


def test_rules_pass_their_unit_tests(promtool: str) -> None:
    result = subprocess.run([promtool, "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_shown_to_fire() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
    assert len(alerts) >= 10
    cases = CASES.read_text(encoding="utf-8")
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts:", cases), f"{alert} never fires"


def test_every_alert_names_the_job_and_says_what_to_do() -> None:
    blocks = RULES.read_text(encoding="utf-8").split("- alert: ")[1:]
    for block in blocks:
        assert "severity:" in block
        assert "{{ $labels.instance }}" in block
        assert re.search(r"description: \S", block)


def test_rules_read_only_series_that_exist() -> None:
    text = re.sub(r"#.*", "", RULES.read_text(encoding="utf-8"))
    metrics = Metrics()
    metrics.stages({"decode": (1.0, 10.0)})
    exported = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    recorded = set(re.findall(r"record: (\S+)", text))
    expressions = re.findall(r"expr: (?:\|\n((?:          .*\n)+)|(.*))", text)
    for several, one in expressions:
        names = set(re.findall(r"[a-z_]*:?\balphastream_\w+(?::\w+)?", several or one))
        assert names <= exported | recorded
    assert len(expressions) == text.count("expr:")


def test_the_alert_calls_data_bound_what_the_run_itself_does() -> None:
    found = re.findall(r"instance:alphastream_data_wait:ratio_rate5m > ([\d.]+)", RULES.read_text(encoding="utf-8"))
    assert [float(share) for share in found] == [DATA_BOUND_SHARE]
