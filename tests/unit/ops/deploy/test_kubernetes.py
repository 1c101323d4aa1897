"""The Job and what stands around it: valid by the API's schema, and in agreement with exit codes, paths and image."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.server import Server
from ops.step_clock import StepClock
from trainer.cli.entry import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_STORAGE
from trainer.config import MetricsConfig
from trainer.loop import Stop

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[4]
FOLDER = ROOT / "ops/deploy/kubernetes"
OBJECTS = [
    item
    for name in ("volumes", "job", "service", "servicemonitor")
    for item in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
]


def the(kind: str) -> dict[str, Any]:
    [found] = [item for item in OBJECTS if item["kind"] == kind]
    return found


JOB = the("Job")["spec"]
POD = JOB["template"]["spec"]
[TRAINER] = POD["containers"]


@pytest.mark.parametrize(
    "item", [item for item in OBJECTS if item["kind"] != "ServiceMonitor"], ids=lambda i: i["kind"]
)
def test_objects_follow_the_schema(item: dict[str, Any]) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra dev)")
    checker.validate(item, checker.latest_version(), strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra dev)")
    job = the("Job")
    misspelt = {**job, "spec": {**job["spec"], "podFailurePolicies": {}}}
    with pytest.raises(checker.ValidationError):
        checker.validate(misspelt, checker.latest_version(), strict=True)


def test_exit_codes_are_the_trainers() -> None:
    rules = [rule for rule in JOB["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {rule["onExitCodes"]["containerName"] for rule in rules} == {TRAINER["name"]}
    assert {rule["onExitCodes"]["operator"] for rule in rules} == {"In"}
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules}
    assert codes == {
        "FailJob": [EXIT_INPUT, Stop.DIVERGED.exit_code],
        "Ignore": [EXIT_INTERRUPTED],
        "Count": [EXIT_STORAGE],
    }
    disruption = [rule for rule in JOB["podFailurePolicy"]["rules"] if "onPodConditions" in rule]
    assert [rule["action"] for rule in disruption] == ["Ignore"]
    assert POD["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    assert JOB["podReplacementPolicy"] == "Failed", "a run has one writer"


def test_retries_outlast_a_disk_that_is_full_for_an_hour() -> None:
    """Pods are replaced after 10 s, twice as long each time, and six minutes at most."""
    assert sum(min(10 * 2**attempt, 360) for attempt in range(JOB["backoffLimit"])) >= 2 * 3600


@pytest.mark.parametrize(
    ("probe", "ready_only"), [("startupProbe", True), ("livenessProbe", False), ("readinessProbe", True)]
)
def test_probes_ask_what_the_run_answers(probe: str, ready_only: bool) -> None:
    request = TRAINER[probe]["httpGet"]
    live = LiveStatus(StepClock(), run="run")
    with Server(Metrics(), "127.0.0.1", 0, live.snapshot) as server:
        address = f"{server.url.rstrip('/')}{request['path']}"
        if ready_only:
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(address)
            server.mark_ready()
        assert urllib.request.urlopen(address).status == 200
    [port] = TRAINER["ports"]
    assert request["port"] == port["name"]
    assert port["containerPort"] == MetricsConfig().port


def test_parts_refer_to_one_another() -> None:
    labels = JOB["template"]["metadata"]["labels"]
    service, monitor = the("Service"), the("ServiceMonitor")
    assert service["spec"]["selector"] == labels
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [port] = service["spec"]["ports"]
    assert port["targetPort"] == TRAINER["ports"][0]["name"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [port["name"]]
    assert service["metadata"]["annotations"]["prometheus.io/port"] == str(MetricsConfig().port)
    claims = {item["metadata"]["name"] for item in OBJECTS if item["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if "persistentVolumeClaim" in volume
    }
    assert used == claims
    assert {mount["name"] for mount in TRAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}


def test_the_pod_fits_the_image() -> None:
    image = (ROOT / "ops/deploy/container/Dockerfile").read_text(encoding="utf-8")
    mounts = {mount["mountPath"] for mount in TRAINER["volumeMounts"]}
    [volumes] = re.findall(r"^VOLUME (.*)$", image, re.MULTILINE)
    assert {*ast.literal_eval(volumes), "/etc/alphastream"} <= mounts
    [user] = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)
    assert user == (str(POD["securityContext"]["runAsUser"]), str(POD["securityContext"]["runAsGroup"]))
    assert "command" not in TRAINER, "the image's own is meant"


def test_everything_named_is_applied() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    for name in kustomization["resources"]:
        assert (FOLDER / name).exists(), name
    [generated] = kustomization["configMapGenerator"]
    assert [(FOLDER / name).exists() for name in generated["files"]] == [True]
    [config] = [volume["configMap"]["name"] for volume in POD["volumes"] if "configMap" in volume]
    assert config == generated["name"]
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        built = subprocess.run([kubectl, "kustomize", FOLDER], capture_output=True, text=True, check=True)
        kinds = [item["kind"] for item in yaml.safe_load_all(built.stdout)]
        assert sorted(kinds) == ["ConfigMap", "Job", "PersistentVolumeClaim", "PersistentVolumeClaim", "Service"]
        assert "image: alphastream:cpu" in built.stdout
