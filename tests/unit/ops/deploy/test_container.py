"""The image and its services: schemas, pinned versions, paths that exist, ports that agree, commands that run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.live import LiveStatus
from ops.metrics import Metrics
from ops.server import Server
from ops.step_clock import StepClock
from tests.tiny_data import write_tiny
from trainer.cli import main
from trainer.config import MetricsConfig, load_config

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[4]
CONTAINER = ROOT / "ops/deploy/container"
DOCKERFILE = re.sub(r"\\\n", " ", (CONTAINER / "Dockerfile").read_text(encoding="utf-8"))
PORT = MetricsConfig().port


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of that name, in order."""
    return re.findall(rf"^{name}\s+(.*)$", DOCKERFILE, re.MULTILINE)


def compose(name: str = "compose.yml") -> dict[str, Any]:
    return yaml.safe_load((CONTAINER / name).read_text(encoding="utf-8"))


def program(name: str) -> str:
    """A checker that comes with the extra `dev`."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed (extra dev)")
    return str(path)


def test_the_image_passes_its_linter() -> None:
    checked = subprocess.run(
        [program("hadolint"), CONTAINER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_compose_files_follow_their_schema() -> None:
    files = [CONTAINER / "compose.yml", CONTAINER / "compose.cuda.yml"]
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_the_image_copies_is_there_and_let_through() -> None:
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert {"pyproject.toml", "pipeline", "stepsize", "trainer", "ops"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_versions_are_pinned() -> None:
    default = dict(argument.split("=") for argument in instructions("ARG") if "=" in argument)
    images = [line.split()[0].replace("${PYTHON}", default["PYTHON"]) for line in instructions("FROM")]
    images += [service["image"] for service in compose()["services"].values() if "build" not in service]
    assert len(images) == 4
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+(-[\w-]+)?$", image), image
    assert all(
        "-c constraints.txt" in line for line in re.findall(r"/pip install.*?(?:;;|$)", DOCKERFILE, re.MULTILINE)
    )


def test_what_the_services_mount_is_there() -> None:
    services = compose()["services"]
    mounts = [mount.split(":") for service in services.values() for mount in service["volumes"]]
    for source, *_ in mounts:
        assert source in compose()["volumes"] or (CONTAINER / source).exists(), source
    targets = {mount[1]: mount[0] for mount in mounts}
    assert set(ast.literal_eval(instructions("VOLUME")[0])) <= targets.keys()
    provider = yaml.safe_load((ROOT / "ops/deploy/grafana/provisioning/dashboards/alphastream.yml").read_text())
    boards = CONTAINER / targets[provider["providers"][0]["options"]["path"]]
    assert list(boards.glob("*.json"))
    build = services["trainer"]["build"]
    assert (CONTAINER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]) == CONTAINER / "Dockerfile"


def test_ports_are_the_trainers(promtool: str) -> None:
    services = compose()["services"]
    assert instructions("EXPOSE") == [str(PORT)]
    assert services["trainer"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    prometheus = yaml.safe_load((CONTAINER / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": [f"trainer:{PORT}"]}]
    [rules] = [mount for mount in services["prometheus"]["volumes"] if "rules" in mount]
    assert Path(prometheus["rule_files"][0]).parent == Path(rules.split(":")[1])
    checked = subprocess.run(
        [promtool, "check", "config", CONTAINER / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    source = yaml.safe_load((CONTAINER / "grafana-datasource.yml").read_text())["datasources"][0]["url"]
    assert source == "http://prometheus:9090"


def test_the_image_stops_as_a_run_does() -> None:
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("USER") == ["10001:10001"]
    assert ast.literal_eval(instructions("ENTRYPOINT")[0]) == ["tini", "--", "alphastream"]


def test_the_images_command_trains(tmp_path: Path) -> None:
    """As written, but for the places, which are in a folder here, and the port, which may be taken."""
    places = {"/etc/alphastream": CONTAINER, "/runs": tmp_path / "runs", "/data": tmp_path / "data"}
    write_tiny(tmp_path / "data", {"train": [[600]], "validation": [[8]], "test": [[8]]})
    command = ast.literal_eval(instructions("CMD")[-1])
    for place, here in places.items():
        command = [re.sub(rf"^{place}(?=/|$)", str(here), word) for word in command]
    here_only = ["--metrics.port", "0", "--data.batch-rows", "64", "--budget.epochs", "None", "--budget.steps", "2"]
    assert main([*command, *here_only, "--metrics.tensorboard-every-steps", "0"]) == 0
    assert (tmp_path / "runs" / "run" / "steps.jsonl").exists()


@pytest.mark.parametrize("ready", [True, False])
def test_the_images_health_is_whether_it_trains(ready: bool) -> None:
    [check] = re.findall(r"HEALTHCHECK .*?CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    python, flag, code = ast.literal_eval(check)
    assert (python, flag) == ("python", "-c")
    assert str(PORT) in code
    live = LiveStatus(StepClock(), run="run")
    with Server(Metrics(), "127.0.0.1", 0, live.snapshot) as server:
        server.mark_ready(ready)
        asked = code.replace(str(PORT), str(server.port))
        assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == (0 if ready else 1)


@pytest.mark.parametrize("file", ["container/run.toml", "kubernetes/run.toml"])
def test_configurations_can_be_used(file: str) -> None:
    config = load_config(ROOT / "ops/deploy" / file)
    assert config.checkpoint.every_seconds
    assert config.stepsize.policy == "auto"
    assert config.watchdog.action == "exit", "whoever starts it again can do so only once it has ended"
