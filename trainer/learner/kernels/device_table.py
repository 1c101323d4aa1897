"""A table kept by rows on the device: what `LazyTable` does on the CPU, queued there, with nothing read back.

The host knows how many steps were made, the device which rows have made them. So every kernel runs over all look-ups,
and finds out for itself which rows they are and whether these are behind. Letters: R rows, E embedding width, N
look-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.learner.kernels import launches
from trainer.learner.kernels.launches import MissedSteps, RowArrays
from trainer.learner.kernels.rounding import foreach_lerp_rounding
from trainer.learner.tables.replay import HALF_ULP
from trainer.learner.tables.table import LONGEST, TableByRows, plain


class DeviceTable(TableByRows):
    """Which step each row of a weight (R, E) is current at, and what it takes to make the steps that it is behind.

    Surface and results are those of `LazyTable`, but for two things. A gradient holds the looked up rows' own as they
    are, and `step` adds them up by `launches.sum_by_row`, in another order than torch's backward does. And an id that
    is no row is left out: the look-up that follows refuses it, as it does for any table on the device.
    A table may be read on another stream than the one that trains it: each waits for the other where they change turns.
    """

    def __init__(self, weight: Tensor, *, negligible: float = HALF_ULP) -> None:
        super().__init__(weight, negligible=negligible)
        plainly = plain(weight)
        self._shape, self._device = tuple(plainly.shape), plainly.device
        self._on_device: MissedSteps | None = None
        """The history as it lies on the device; None where that is out of date."""
        self._stamps = torch.zeros(self._shape[0], dtype=torch.int32, device=self._device)
        """The step each row is current at, or one before `_base`."""
        self._unaveraged = False
        """Whether the average has yet to be taken after the latest step."""
        self._withheld: Tensor | None = None
        """(LONGEST,) float32 on the device: of each step of the history, whether it moved nothing; None if all did."""
        self._stream: torch.cuda.Stream | None = None

    def _lerp_rounding(self) -> Literal["once", "twice"] | None:
        return foreach_lerp_rounding(self._device)

    def bring_up_to_date(self, ids: Tensor | None = None) -> None:
        """Make the steps that these rows, or all, are behind."""
        self._take_turn()
        if self._base == self._now or (ids is not None and ids.device != self._device):
            return
        flat = None if ids is None else ids.detach().reshape(-1)
        launches.catch_up(flat, self._stamps, self._arrays(), self._steps(), self.negligible)
        if ids is None:
            self._base = self._now
            self._history.clear()
            self._on_device = None

    def step(self, gradient: Tensor, scalars: Sequence[float], found_inf: Tensor | None = None) -> None:
        """One step at `nadamw.scalars_of` with a sparse gradient: of its rows now, of all others when they are read.

        Of none where `found_inf` is not 0, which only the device knows: what it says is kept beside the history.
        """
        decay, beta1, rest1, beta2, rest2, addend, factor = (np.float32(value) for value in scalars)
        if (beta1, beta2) != self._betas or self._history.steps >= LONGEST:
            self.bring_up_to_date()
            self._betas = beta1, beta2
        ids, values = gradient._indices()[0], gradient._values().contiguous()
        self.bring_up_to_date(ids)
        if len(ids):
            found = launches.sum_by_row(ids, values)
            numbers = decay, beta1, rest1, beta2, rest2, addend, factor
            launches.move_found(found, self._stamps, self._now + 1, self._arrays(), numbers, found_inf=found_inf)
        self._note(found_inf)
        self._now += 1
        self._history.append(decay, factor, addend)
        self._on_device, self._unaveraged = None, True

    def take_average(self, weight: float) -> None:
        """average ← average + weight·(θ − average) of the whole table, after a step."""
        assert self._average is not None
        self._take_turn()
        if not self._unaveraged or self._base == self._now:
            self.bring_up_to_date()
            torch._foreach_lerp_([self._average], [plain(self._weight)], weight)  # pyright: ignore[reportPrivateImportUsage]
        else:
            rounded = np.float32(weight)
            launches.average_current(self._stamps, self._now, self._arrays(), rounded)
            self._history.averaged(rounded)
            self._on_device = None
        self._unaveraged = False

    def gradient(self, ids: Tensor, gradient: Tensor, padding: int) -> Tensor:
        """The sparse gradient (R, E) of looking up `ids` (N,), from the looked up rows' own (N, E); not coalesced."""
        flat = ids.detach().reshape(-1)
        values = gradient if padding < 0 else gradient.masked_fill((flat == padding).unsqueeze(1), 0.0)
        return torch.sparse_coo_tensor(
            flat.unsqueeze(0), values, self._shape, is_coalesced=False, check_invariants=False
        )

    def _arrays(self) -> RowArrays:
        assert self._moments is not None
        return RowArrays(plain(self._weight), *self._moments, self._average, self._fused)

    def _steps(self) -> MissedSteps:
        """The history on the device; one copy at most a step."""
        if self._on_device is None:
            count = self._history.steps
            bounds = self._history.bounds(float(self._betas[1]))
            numbers = np.ascontiguousarray(self._history.numbers[:, :count])
            both = np.concatenate([bounds.reshape(-1).view(np.uint8), numbers.reshape(-1).view(np.uint8)])
            copied = launches.to_device(torch.from_numpy(both), self._device)
            self._on_device = MissedSteps(
                self._base,
                count,
                copied[bounds.nbytes :].view(torch.float32).view(4, count),
                copied[: bounds.nbytes].view(torch.float64).view(bounds.shape),
                self._betas,
                self._withheld,
            )
        return self._on_device

    def _note(self, found_inf: Tensor | None) -> None:
        """Keeps, on the device, whether the step about to join the history is one that moved nothing."""
        if found_inf is not None and self._withheld is None:
            self._withheld = torch.zeros(LONGEST, device=self._device)
        if self._withheld is not None:
            place = self._withheld[self._history.steps]
            place.zero_() if found_inf is None else place.copy_(found_inf)

    def _take_turn(self) -> None:
        """Everything queued on the stream that used the table last comes before what is queued on this one."""
        if self._device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self._device)
        if stream != self._stream:
            if self._stream is not None:
                stream.wait_stream(self._stream)
                self._on_device = None  # its memory is the other stream's
            self._stream = stream
