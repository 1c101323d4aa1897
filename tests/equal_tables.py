"""The same runs with tables moved whole and kept by rows: every weight, moment, average, rate and estimate compared.

    python -m tests.equal_tables ../shared/data/criteo_kaggle_137139.tsv.gz --preset dlrm-small

trains 500 steps with `optimizer.table = "dense"`, again with "lazy", and once more "lazy" from either's checkpoint of
step 250, for every average and with α* steering and not, through the commands a user types. It ends with 1 if a bit
differs. With `--mutant` rows stop computing too early, and it ends with 1 if no bit differs.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

from tests.resume import lasting, same_bits
from trainer.cli import main as alphastream
from trainer.learner.tables import weight
from trainer.learner.tables.table import LazyTable

TOO_EARLY = 2.0**-16
"""What a mutant takes for HALF_ULP: it drops updates of up to 512 half units in the last place."""

SETTINGS = """
[data]
path = "{data}"
batch_rows = {rows}
[model]
preset = "{preset}"
table_rows = 262_144
[optimizer]
average = "{average}"
[stepsize]
policy = "{policy}"
[budget]
steps = {steps}
[eval]
every_steps = {half}
rows = 2048
[checkpoint]
every_steps = {half}
[metrics]
port = 0
"""


def preprocessed(log: Path, folder: Path) -> Path:
    """A data folder made of `log`, a Criteo log."""
    data = folder / "data"
    kind = "criteo-kaggle" if "kaggle" in log.name else "criteo"
    assert alphastream(["preprocess", str(log), "--format", kind, "--out", str(data)]) == 0
    return data


def differences(folder: Path, data: Path, *, mutant: bool = False, **settings: str | int) -> Iterator[str]:
    """One line for every kind of thing that differs between a dense run and each of those by rows, made in `folder`."""
    steps = int(settings["steps"])
    config = folder / "config.toml"
    config.write_text(SETTINGS.format(data=data, half=steps // 2, **settings), encoding="utf-8")

    def trained(name: str, table: str, begun: Path | None = None) -> Path:
        run = folder / name
        if begun is not None:
            shutil.copytree(begun, run)
            shutil.rmtree(run / "checkpoints" / f"step-{steps:08}")
        with patch.object(weight, "LazyTable", partial(LazyTable, negligible=TOO_EARLY) if mutant else LazyTable):
            assert alphastream(["train", str(config), "--run", str(run), "--optimizer.table", table]) == 0
        return run

    dense, lazy = trained("dense", "dense"), trained("lazy", "lazy")
    expected, recorded, estimated = lasting(dense)
    assert len(recorded) == steps
    assert bool(estimated) == (settings["policy"] != "none")
    for run in (lazy, trained("lazy continued", "lazy", lazy), trained("dense continued", "lazy", dense)):
        tensors, records, estimates = lasting(run)
        if records != recorded:
            yield f"{run.name}: losses or rates"
        if estimates != estimated:
            yield f"{run.name}: estimates"
        assert tensors.keys() == expected.keys()
        for name, value in tensors.items():
            if not same_bits({name: value}, {name: expected[name]}):
                yield f"{run.name}: {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="a Criteo log; its name says whose format it has")
    parser.add_argument("--preset", default="dlrm-tiny", choices=["dlrm-tiny", "dlrm-small"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", type=int, default=256, help="rows of a step")
    parser.add_argument("--averages", nargs="*", default=["none", "ema", "polyak"], choices=["none", "ema", "polyak"])
    parser.add_argument("--policies", nargs="*", default=["none", "auto"], choices=["none", "auto"])
    parser.add_argument("--mutant", action="store_true")
    arguments = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as scratch:
        data = preprocessed(arguments.log, Path(scratch))
        for average, policy in itertools.product(arguments.averages, arguments.policies):
            start = time.monotonic()
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                settings = {"preset": arguments.preset, "steps": arguments.steps, "rows": arguments.rows}
                settings |= {"average": average, "policy": policy}
                found = list(differences(Path(folder), data, mutant=arguments.mutant, **settings))
            verdict = ", ".join(found) or "equal in every bit"
            minutes = (time.monotonic() - start) / 60
            print(f"{arguments.preset}, {average} averaged, policy {policy}: {verdict} ({minutes:.1f} min)", flush=True)
            wrong = wrong or bool(found) != arguments.mutant
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
