"""One rank's failure is every rank's, of one kind; and the ranks may be processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, StorageError
from tests.rank_threads import ThreadGroup, on_ranks
from trainer.records import RankFailedError, load_latest
from trainer.records.sharded import together

ROOT = Path(__file__).parents[5]


def raised_by(failures: dict[int, Exception], ranks: int = 3) -> list[Any]:
    """The outcomes where some ranks fail."""

    def act(group: ThreadGroup) -> list[Any]:
        def part() -> int:
            if group.rank in failures:
                raise failures[group.rank]
            return group.rank

        return together(group, part)

    return on_ranks(ranks, act)


def test_without_an_error_all_have_what_each_gave() -> None:
    assert raised_by({}) == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ({1: StorageError("no number")}, StorageError, "rank 1 of 3: no number"),
        ({0: InputError("unusable"), 1: OSError(5, "I/O")}, InputError, "rank 0 of 3: unusable"),
        (
            {0: OSError(28, "full", "a"), 2: OSError(28, "full", "c")},
            StorageError,
            "[Errno 28] ranks 0, 2 of 3: full: 'a'",
        ),
        ({0: OSError(28, "full"), 2: OSError(5, "I/O")}, StorageError, "[Errno 28] rank 0 of 3: full"),
    ],
)
def test_all_raise_one_kind_that_names_the_ranks(
    failures: dict[int, Exception], kind: type[Exception], message: str
) -> None:
    for error in raised_by(failures):
        assert type(error) is kind
        assert str(error) == message


def test_an_error_of_the_program_ends_all_whatever_else_failed() -> None:
    broken = KeyError("x")
    first, second, third = raised_by({0: OSError(28, "full"), 1: broken})
    assert second is broken
    for error in (first, third):
        assert isinstance(error, RankFailedError)
        assert str(error) == "rank 1 of 3: KeyError: 'x'"


def test_where_the_ranks_cannot_meet_that_is_raised_with_what_failed_before() -> None:
    class Broken:
        rank, ranks = 0, 2

        def gather(self, value: Any) -> list[Any]:
            raise TimeoutError("rank 1 did not come")

    with pytest.raises(TimeoutError, match="did not come") as raised:
        together(Broken(), lambda: 1 / 0)
    assert raised.value.__notes__ == ["this rank itself failed before: ZeroDivisionError: division by zero"]


GLOO = """
import sys, torch, torch.distributed as dist
from datetime import timedelta
from trainer.records import RowRange, Shares, checkpoint_files, load_latest_on_ranks, write_checkpoint

run, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group(
    "gloo", init_method=f"file://{run}.meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)

class Gloo:
    rank, ranks = rank, 2
    def gather(self, value):
        values = [None] * 2
        dist.all_gather_object(values, value)
        return values

mine = (RowRange(0, 3, 5), RowRange(3, 5, 5))[rank]
table = torch.arange(5.0)[mine.start : mine.stop]
for step in (1, 2):
    files = checkpoint_files({"model": {"table": table + step, "top": torch.ones(3)}}, {"step": step})
    write_checkpoint(run, step, files, keep=1, shares=Shares(group=Gloo(), rows={("model", "table"): mine}))
found = load_latest_on_ranks(run, group=Gloo(), take=lambda file, name, shape: mine if name == "table" else None)
assert found.state == {"step": 2} and torch.equal(found.tensors["model"]["table"], table + 2)
dist.barrier()
dist.destroy_process_group()
"""


def test_processes_that_gather_by_gloo_save_and_load(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = [
        subprocess.Popen([sys.executable, "-c", GLOO, str(run), str(rank)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    found = load_latest(run)
    assert found is not None
    assert found.tensors["model"]["table"].tolist() == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
