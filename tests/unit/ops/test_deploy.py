"""The example files of ops/deploy are valid for the programs that read them, and agree with the product."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ops.receivers.service_manager import START_SECONDS, STOP_SECONDS
from trainer.process import WatchdogConfig
from trainer.records import CheckpointConfig

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "ops" / "deploy"


def test_prometheus_accepts_its_configuration_and_finds_the_rules(promtool: str) -> None:
    command = [promtool, "check", "config", DEPLOY / "prometheus.yml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 rule files found" in result.stdout


def test_systemd_accepts_the_unit(systemd_analyze: str) -> None:
    command = [systemd_analyze, "verify", "--man=no", DEPLOY / "alphastream@.service"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # Nothing is installed in /opt here; any other complaint is about the unit.
    complaints = [line for line in result.stderr.splitlines() if "is not executable" not in line]
    assert complaints == []


def test_the_unit_knows_the_exit_codes() -> None:
    unit = (DEPLOY / "alphastream@.service").read_text(encoding="utf-8")
    assert "SuccessExitStatus=143\n" in unit
    assert "RestartPreventExitStatus=2 3\n" in unit
    assert re.search(r"ExecStart=\S+/alphastream train \S+ --run \S+\n", unit)


def seconds(unit: str, key: str) -> float:
    """A time span of the unit."""
    [(number, scale)] = re.findall(rf"^{key}=(\d+)(h|min|s?)$", unit, re.MULTILINE)
    return int(number) * {"h": 3600, "min": 60, "s": 1, "": 1}[scale]


def test_restarts_outlast_a_disk_that_is_full_for_an_hour_and_end_some_day() -> None:
    unit = (DEPLOY / "alphastream@.service").read_text(encoding="utf-8")
    [burst] = re.findall(r"^StartLimitBurst=(\d+)$", unit, re.MULTILINE)
    least_seconds = int(burst) * seconds(unit, "RestartSec")
    assert least_seconds >= 2 * 3600
    assert seconds(unit, "StartLimitIntervalSec") >= 1.5 * least_seconds, "starts so slow never reach the limit"


def test_the_managers_watchdog_is_the_last_resort() -> None:
    """A run says itself where it hangs, and leaves by itself if told so, before systemd's patience ends."""
    unit = (DEPLOY / "alphastream@.service").read_text(encoding="utf-8")
    watchdog = WatchdogConfig()
    assert seconds(unit, "WatchdogSec") > max(watchdog.limits()) + watchdog.grace_seconds
    assert watchdog.first_step_seconds <= START_SECONDS
    assert "WatchdogSignal=SIGQUIT\n" in unit
    assert min(STOP_SECONDS, seconds(unit, "TimeoutStopSec")) > CheckpointConfig().final_retry_seconds


def test_grafana_is_pointed_at_the_dashboards() -> None:
    provider = (DEPLOY / "grafana/provisioning/dashboards/alphastream.yml").read_text(encoding="utf-8")
    folder = re.search(r"path: /opt/alphastream/(\S+)", provider)
    assert folder is not None
    boards = {path.name for path in (ROOT / folder[1]).glob("*.json")}
    assert boards == {"alphastream.json", "alphastream-bottleneck.json", "alphastream-step-size.json"}


def test_every_file_the_guides_name_exists() -> None:
    for guide in (ROOT / "ops" / "README.md", DEPLOY / "README.md"):
        text = guide.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (guide.parent / link).exists(), f"{guide}: {link}"
        for path in re.findall(r"\b(?:ops|tests)/[\w./@-]+\.\w+", text):
            assert (ROOT / path).exists(), f"{guide}: {path}"
