"""Which steps the rows of one embedding table are behind, and how they catch up.

Letters: R rows, E embedding width, N look-ups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.learner.nadamw import thread_pool, withheld
from trainer.learner.tables import replay
from trainer.learner.tables.replay import BLOCK, HALF_ULP, ROUNDED_DOWN

TASK_ROWS = 512
"""Rows looked up that a thread brings up to date or moves at a time."""
RANGE_ROWS = 4096
"""Rows that a thread takes at a time where all are brought up to date."""
LEAST_COLUMNS = 16
"""Columns of a gradient that a thread adds up: a cache line."""
LONGEST = 8192
"""So many steps after the last read of the whole table, all rows make theirs. So what is kept of the steps, and at
every step looked through (on CUDA copied to the device, up to 150 kB), stays small; it costs about as much as two steps
of a table that is moved whole."""


class History:
    """What every step since the last whole replay did to a row without gradient; about 20 bytes a step."""

    def __init__(self) -> None:
        self.steps = 0
        self._numbers = np.empty((4, 1024), dtype=np.float32)
        self._blocks = np.empty((3, 1024 // BLOCK))

    def append(self, decay: np.float32, factor: np.float32, addend: np.float32) -> None:
        """One more step, with no average taken after it so far."""
        if self.steps == self._numbers.shape[1]:
            self._numbers = np.concatenate([self._numbers, np.empty_like(self._numbers)], axis=1)
            self._blocks = np.concatenate([self._blocks, np.empty_like(self._blocks)], axis=1)
        self._numbers[:, self.steps] = decay, factor, addend, np.nan
        block = self.steps // BLOCK
        if self.steps % BLOCK == 0:
            self._blocks[:, block] = 0.0, np.inf, 1.0
        largest, least, kept = self._blocks[:, block].tolist()
        # comparisons are False for NaN: a step that is not as steps should be makes its block one that is never skipped
        usual = 0.0 < decay <= 1.0 and 0.0 <= factor < np.inf and 0.0 <= addend < np.inf
        largest = max(largest, float(factor)) if usual else np.inf
        self._blocks[:, block] = largest, min(least, float(addend)), kept * float(decay) * ROUNDED_DOWN
        self.steps += 1

    def averaged(self, weight: np.float32) -> None:
        """The average was taken after the latest step, at this weight."""
        self._numbers[3, self.steps - 1] = weight

    def clear(self) -> None:
        """Forget all steps: every row has made them."""
        self.steps = 0

    @property
    def numbers(self) -> NDArray[np.float32]:
        """(4, `steps` and more): decay, factor, addend, and the average's weight, NaN where none was taken."""
        return self._numbers

    def bounds(self, beta2: float) -> NDArray[np.float64]:
        """(2, blocks, 4): of each block of steps, and of all steps from it on, what `settled` needs.

        The largest factor (infinite where a step is not as steps should be), the least addend, and what θ and v keep
        of their size at least.
        """
        largest, least, kept = self._blocks[:, : -(-self.steps // BLOCK)][:, ::-1]
        blocks = np.arange(1, len(kept) + 1)
        keep_v = np.power(beta2 * ROUNDED_DOWN, np.stack([np.full(len(kept), BLOCK), blocks * BLOCK]))
        alone = np.stack([largest, least, kept, keep_v[0]])
        onward = np.stack(
            [np.maximum.accumulate(largest), np.minimum.accumulate(least), np.multiply.accumulate(kept), keep_v[1]]
        )
        return np.ascontiguousarray(np.stack([alone, onward])[:, :, ::-1].transpose(0, 2, 1))


class TableByRows(ABC):
    """What tables kept by rows have in common, wherever they lie: a weight (R, E), what moves with it, and how far.

    `negligible` is for tests alone.
    """

    def __init__(self, weight: Tensor, *, negligible: float = HALF_ULP) -> None:
        self.negligible = negligible
        self._weight = weight
        self._moments: tuple[Tensor, Tensor] | None = None
        self._average: Tensor | None = None
        self._fused = True
        self._betas = np.float32(0.0), np.float32(0.0)
        self._history = History()
        self._base = self._now = 0
        """The step that the whole table is current at, and the latest."""

    def follow(self, first: Tensor, second: Tensor) -> None:
        """Take these, of the weight's shape and current, for the moments."""
        assert self._now == self._base, "the table is behind"
        self._moments = plain(first), plain(second)

    def follow_average(self, average: Tensor) -> None:
        """Take this, of the weight's shape and current, for the average that `take_average` moves."""
        assert self._now == self._base, "the table is behind"
        assert self._average is None, "the table has an average"
        rounding = self._lerp_rounding()
        assert rounding is not None, "torch rounds averages in a way of its own"
        self._average, self._fused = plain(average), rounding == "once"

    @abstractmethod
    def _lerp_rounding(self) -> Literal["once", "twice"] | None:
        """How averages are rounded where the table lies, as `lerp_rounding` has it."""


class LazyTable(TableByRows):
    """Which step each row of a weight (R, E) is current at, and what it takes to make the steps that it is behind.

    Costs 8 bytes a row beside weight, moments and average, and some 20 bytes for every step since all rows were
    current, which are LONGEST at most.
    """

    def __init__(self, weight: Tensor, *, negligible: float = HALF_ULP) -> None:
        super().__init__(weight, negligible=negligible)
        self._rows, self._width = weight.shape
        self._stamps = np.zeros(self._rows, dtype=np.int32)
        """The step each row is current at, or one before `_base`."""
        self._place = np.zeros(self._rows, dtype=np.int32)
        self._unaveraged: list[NDArray[np.int64]] | None = None
        """Rows current at the latest step while the average has yet to be taken after it; else None."""

    def _lerp_rounding(self) -> Literal["once", "twice"] | None:
        return lerp_rounding()

    def bring_up_to_date(self, ids: Tensor | None = None) -> None:
        """Make the steps that these rows, or all, are behind.

        Raises: IndexError for an id that is no row.
        """
        if ids is not None:
            self._bring_rows(ids)
        elif self._base < self._now:
            bounds = self._history.bounds(float(self._betas[1]))
            _run_all(partial(self._bring_range, start, bounds) for start in range(0, self._rows, RANGE_ROWS))
            self._base = self._now
            self._history.clear()

    def step(self, gradient: Tensor, scalars: Sequence[float], found_inf: Tensor | None = None) -> None:
        """One step at `nadamw.scalars_of` with a sparse gradient: of its rows now, of all others when they are read.

        Of none where `found_inf` is not 0.
        """
        assert self._moments is not None
        if withheld(found_inf):
            return
        rows, sums = self._summed(gradient)
        decay, beta1, rest1, beta2, rest2, addend, factor = (np.float32(value) for value in scalars)
        if (beta1, beta2) != self._betas or self._history.steps >= LONGEST:
            self.bring_up_to_date()
            self._betas = beta1, beta2
        self._bring_rows(torch.from_numpy(rows))
        arrays = self._arrays()
        numbers = decay, beta1, rest1, beta2, rest2, addend, factor
        _run_all(
            partial(replay.move_rows, rows[part], self._width, arrays[0], sums[part], *arrays[1:3], *numbers)
            for part in _parts(len(rows))
        )
        self._now += 1
        self._stamps[rows] = self._now
        self._history.append(decay, factor, addend)
        self._unaveraged = [rows]

    def take_average(self, weight: float) -> None:
        """average ← average + weight·(θ − average) of the whole table, after a step."""
        assert self._average is not None
        if self._unaveraged is None or self._base == self._now:
            self.bring_up_to_date()
            torch._foreach_lerp_([self._average], [plain(self._weight)], weight)  # pyright: ignore[reportPrivateImportUsage]
        else:
            rounded = np.float32(weight)
            theta, _, _, average = self._arrays()
            rows = np.concatenate(self._unaveraged)
            _run_all(
                partial(replay.average_rows, rows[part], self._width, average, theta, rounded, self._fused)
                for part in _parts(len(rows))
            )
            self._history.averaged(rounded)
        self._unaveraged = None

    def gradient(self, ids: Tensor, gradient: Tensor, padding: int) -> Tensor:
        """The sparse gradient (R, E) of looking up `ids` (N,), from the looked up rows' own (N, E).

        Coalesced, each row's gradients added up in the order of `ids` as the dense backward of an embedding does it.
        """
        rows, sums = self._sums(flat(ids), gradient.numpy(), padding)
        return torch.sparse_coo_tensor(
            torch.from_numpy(rows).unsqueeze(0),
            torch.from_numpy(sums),
            (self._rows, self._width),
            is_coalesced=True,
            check_invariants=False,
        )

    def _sums(
        self, ids: NDArray[Any], values: NDArray[np.float32], padding: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Every row of `ids` once, ascending, and the sum of its `values`."""
        rows = np.empty(ids.size, dtype=np.int64)
        rows = np.sort(rows[: replay.distinct(ids, padding, self._place, rows)])
        self._place[rows] = np.arange(len(rows))
        sums = np.zeros((len(rows), self._width), dtype=np.float32)
        columns = max(LEAST_COLUMNS, -(-self._width // torch.get_num_threads()))
        _run_all(
            partial(replay.sum_rows, ids, padding, self._place, values, sums, low, min(low + columns, self._width))
            for low in range(0, self._width, columns)
        )
        return rows, sums

    def _summed(self, gradient: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and values of a sparse gradient, each row once."""
        rows, values = gradient._indices()[0].numpy(), gradient._values().contiguous().numpy()
        return (rows, values) if (np.diff(rows) > 0).all() else self._sums(rows, values, -1)

    def _bring_rows(self, ids: Tensor) -> None:
        if self._base == self._now:
            return
        wanted = flat(ids)
        rows, since = np.empty((2, wanted.size), dtype=np.int64)
        count = replay.take_stale(wanted, self._stamps, self._base, self._now, rows, since)
        if count < 0:
            raise IndexError(f"index out of range: the table has {self._rows:,} rows")
        rows, since = rows[:count], since[:count]
        if count:
            bounds = self._history.bounds(float(self._betas[1]))
            _run_all(partial(self._replay, rows[part], since[part], bounds) for part in _parts(count))
        if self._unaveraged is not None:
            self._unaveraged.append(rows)

    def _bring_range(self, start: int, bounds: NDArray[np.float64]) -> None:
        steps = np.maximum(self._stamps[start : start + RANGE_ROWS], self._base)
        behind = np.flatnonzero(steps < self._now)
        self._replay(start + behind, steps[behind].astype(np.int64) - self._base, bounds)

    def _replay(self, rows: NDArray[np.int64], since: NDArray[np.int64], bounds: NDArray[np.float64]) -> None:
        theta, first, second, average = self._arrays()
        beta1, beta2 = self._betas
        replay.replay(
            rows,
            since,
            self._history.steps,
            self._width,
            theta,
            first,
            second,
            average,
            self._history.numbers,
            bounds,
            beta1,
            beta2,
            self._average is not None,
            self._fused,
            self.negligible,
        )

    def _arrays(self) -> list[NDArray[np.float32]]:
        """θ, m, v and the average (θ again without one), flat."""
        assert self._moments is not None
        weight = plain(self._weight)
        average = weight if self._average is None else self._average
        return [tensor.view(-1).numpy() for tensor in (weight, *self._moments, average)]


def plain(tensor: Tensor) -> Tensor:
    """The same memory as a detached tensor that brings nothing up to date."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()


@cache
def lerp_rounding() -> Literal["once", "twice"] | None:
    """How this build's `lerp` of float32 rounds: once at its end, as most do, or after product and sum.

    None where it does neither, so that its averages cannot be made up for later.
    """
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(4099, generator=generator) for _ in range(2))
    for rounding in ("once", "twice"):
        if all(_lerps_alike(start, end, weight, fused=rounding == "once") for weight in (0.01, 0.3, 0.7, 1.0)):
            return rounding
    return None


def _lerps_alike(start: Tensor, end: Tensor, weight: float, *, fused: bool) -> bool:
    average, row = start.clone().numpy(), np.zeros(1, dtype=np.int64)
    replay.average_rows(row, len(average), average, end.numpy(), np.float32(weight), fused)
    return np.array_equal(average, torch.lerp(start, end, weight).numpy())


def flat(ids: Tensor) -> NDArray[Any]:
    return ids.detach().reshape(-1).numpy()


def _parts(count: int) -> list[slice]:
    return [slice(start, start + TASK_ROWS) for start in range(0, count, TASK_ROWS)]


def _run_all(tasks: Iterable[Callable[[], None]]) -> None:
    """Every task, in as many threads as torch uses; rows move by themselves, so the division changes no bit."""
    tasks, threads = list(tasks), torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            task()
    else:
        for done in thread_pool(threads).map(lambda task: task(), tasks):
            assert done is None
