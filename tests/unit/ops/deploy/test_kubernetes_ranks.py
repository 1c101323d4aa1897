"""The Job of two nodes: valid by the API's schema, its torchrun's options known, and it fits what it stands beside."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from trainer.cli.runs import TrainArguments
from trainer.config import MetricsConfig
from trainer.records import CheckpointConfig

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[4]
FOLDER = ROOT / "ops/deploy/kubernetes"
OBJECTS = list(yaml.safe_load_all((FOLDER / "ranks.yaml").read_text(encoding="utf-8")))
SERVICE, JOB = OBJECTS[0], OBJECTS[1]["spec"]
POD = JOB["template"]["spec"]
[TRAINER] = POD["containers"]
TORCHRUN = TRAINER["args"][: TRAINER["args"].index("-m")]


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: item["kind"])
def test_objects_follow_the_schema(item: dict[str, Any]) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra dev)")
    checker.validate(item, checker.latest_version(), strict=True)


def test_torchrun_knows_its_options_and_the_trainer_its_own() -> None:
    known = get_args_parser().parse_args(TRAINER["args"])
    assert (known.training_script, known.nnodes, known.module) == ("trainer.cli", str(JOB["parallelism"]), True)
    assert known.nproc_per_node == str(TRAINER["resources"]["limits"]["nvidia.com/gpu"])
    assert JOB["completions"] == JOB["parallelism"]
    assert JOB["completionMode"] == "Indexed"
    assert known.training_script_args[0] == "train"
    assert "run" in TrainArguments.__dataclass_fields__


def test_pods_find_the_first_by_the_service() -> None:
    [endpoint] = [option.partition("=")[2] for option in TORCHRUN if option.startswith("--rdzv-endpoint=")]
    service, labels = SERVICE["metadata"]["name"], JOB["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in TRAINER["ports"]}
    assert endpoint == f"{OBJECTS[1]['metadata']['name']}-0.{service}:{ports['rendezvous']}"
    assert POD["subdomain"] == service
    assert SERVICE["spec"]["selector"] == labels
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert ports["metrics"] == MetricsConfig().port


def test_ranks_have_the_time_to_save() -> None:
    [timeout] = [int(each["value"]) for each in TRAINER["env"] if each["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert CheckpointConfig().final_retry_seconds < timeout < POD["terminationGracePeriodSeconds"]


def test_the_pod_fits_the_image_and_its_volumes() -> None:
    image = (ROOT / "ops/deploy/container/Dockerfile").read_text(encoding="utf-8")
    mounts = {mount["mountPath"]: mount["name"] for mount in TRAINER["volumeMounts"]}
    [volumes] = re.findall(r"^VOLUME (.*)$", image, re.MULTILINE)
    assert {*ast.literal_eval(volumes), "/etc/alphastream"} <= mounts.keys()
    assert set(mounts.values()) == {volume["name"] for volume in POD["volumes"]}
    [first] = re.findall(r'^ENTRYPOINT \["(\w+)"', image, re.MULTILINE)
    assert TRAINER["command"][0] == first
    assert f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}" in image
