"""Pairs through an NVIDIA DALI pipeline: a batch is one sample, and which one a function of `BatchInfo`."""

from __future__ import annotations

import importlib
import time
from collections import deque
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.buffers import BufferPool
from pipeline.device.batch_layout import BatchLayout
from pipeline.device.feed import DevicePair, Made
from pipeline.device.model_inputs import ModelInputs, encoded_inputs, to_inputs
from pipeline.device.streams import upload_stream
from pipeline.errors import InputError
from pipeline.rows import BatchPair, Gap, HostPairs, Moduli, OncePerBatch, RowBatch
from pipeline.stages import StageTotals


def import_dali() -> Any:
    """The package `nvidia.dali`. Raises: InputError if it cannot be imported."""
    try:
        return importlib.import_module("nvidia.dali")
    except ImportError as error:
        raise InputError(
            f'data.feed = "dali" needs NVIDIA DALI, which cannot be imported ({error}); install the extra with '
            "pip install 'alphastream[dali]', or set data.feed = \"ring\""
        ) from None


class DaliPairs:
    """Makes the pairs that `pairs` would give, from where it stands, by a DALI pipeline on `device`.

    Iteration k of the pipeline is the k-th pair, or the gap in its place, from where `pairs` stands: a function
    of k alone. A pipeline built with the `checkpoint` of another that started there goes on with the pair after the
    last that one made, however far it had read ahead.

    An iteration has two outputs of one sample each, b2 and b1, every batch packed into one run of words that DALI
    takes over on its own thread and, for a GPU, copies there. The model's transform is the ring's, applied to DALI's
    memory, so batches are the ring's bit for bit. Iterations share nothing: a sliding probe is packed once, but sent
    twice, as b1 and as the next b2.

    At most `depth` iterations are under way: with 2, one is packed while the one before is copied. More would only
    hold back pairs that are ready until later ones are read.
    """

    def __init__(
        self,
        pairs: HostPairs,
        *,
        device: torch.device,
        table_rows: Moduli,
        depth: int,
        stages: StageTotals,
        checkpoint: bytes | None = None,
    ) -> None:
        """Raises: InputError if DALI cannot be imported."""
        self._pairs, self._table_rows, self._stages = pairs, table_rows, stages
        self._source = _Source(pairs, stages)
        self._stream = upload_stream("feed", device) if device.type == "cuda" else None
        self._pipeline: Any = self._build(depth, checkpoint)

    def make(self) -> Made:
        skipped = 0
        for _ in range(self._pairs.spans.steps_per_epoch):  # an epoch of nothing but gaps ends them
            self._pipeline.schedule_run()
            start = time.perf_counter()
            b2, b1 = self._outputs()
            found = self._source.sent.popleft().found
            skipped += found.skipped
            if isinstance(found, BatchPair):
                made = self._made(found, b1, b2, skipped)
                rows = found.b2.rows + (found.b1.rows if self._pairs.spans.pairing != "sliding" else 0)
                self._stages.add("transfer", time.perf_counter() - start, rows)
                return made
        raise self._pairs.nothing_left()

    def checkpoint(self) -> bytes:
        """DALI's own checkpoint, as of the last pair made."""
        return self._pipeline.checkpoint()

    def close(self) -> None:
        """Ends the pipeline and its threads; the pairs made stay valid."""
        # With its last reference would be too late: the traceback of an error holds the frames that led to it.
        self._pipeline._shutdown()

    def _build(self, depth: int, checkpoint: bytes | None) -> Any:
        dali, device_id = import_dali(), None  # without a device DALI needs no driver
        if self._stream is not None:
            device_id = self._stream.device_index
        pipeline = dali.Pipeline(
            batch_size=1,
            num_threads=1,
            device_id=device_id,
            prefetch_queue_depth=depth,
            exec_dynamic=True,  # an output is its holder's, not filled again by later iterations
            enable_checkpointing=True,
            checkpoint=checkpoint,
        )
        with pipeline:
            batches = dali.fn.external_source(
                source=self._source, num_outputs=2, batch_info=True, no_copy=True, dtype=dali.types.INT32, ndim=1
            )
            pipeline.set_outputs(*(batches if device_id is None else [batch.gpu() for batch in batches]))
        try:
            pipeline.build()
        except RuntimeError as error:
            cause = " ".join(str(error).split())
            raise InputError(
                f'NVIDIA DALI cannot start ({cause}); update the driver, or set data.feed = "ring"'
            ) from error
        return pipeline

    def _outputs(self) -> tuple[Any, Any]:
        """(b2, b1) of the next iteration, complete, on the device. Raises: the source's error in its turn."""
        try:
            return self._pipeline.outputs()
        except StopIteration:
            error = self._source.error
        assert error is not None
        raise error

    def _made(self, pair: BatchPair, b1: Any, b2: Any, skipped: int) -> Made:
        ready = None
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            made = DevicePair.of(pair, b1=self._inputs(pair.b1, b1), b2=self._inputs(pair.b2, b2), skipped=skipped)
            if self._stream is not None:
                ready = torch.cuda.Event(blocking=True)  # without taking a core from the threads that read
                ready.record(self._stream)
                ready.synchronize()  # until then DALI must not have the outputs' memory back
        return Made(made, ready)

    def _inputs(self, batch: RowBatch, output: Any) -> ModelInputs:
        parts = BatchLayout.of(batch).unpack(torch.from_dlpack(output[0]))
        return encoded_inputs(*parts) if self._stream is None else to_inputs(*parts, table_rows=self._table_rows)


class _Sent(NamedTuple):
    """What the source has given to an iteration whose outputs have not been taken yet."""

    found: BatchPair | Gap
    words: tuple[NDArray[np.int32], NDArray[np.int32]]
    """(b1, b2), held so that no thread of DALI's is the last to let go of memory that Python counts."""


class _Source:
    """The pipeline's external source. An error ends DALI's stream, so that the pairs before it are handed over."""

    def __init__(self, pairs: HostPairs, stages: StageTotals) -> None:
        self.sent: deque[_Sent] = deque()
        self.error: Exception | None = None
        self._pairs, self._start, self._stages = pairs, pairs.position, stages
        self._buffers = BufferPool()
        self._packed = OncePerBatch(self._pack)

    def __call__(self, info: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(b2, b1) of the pair at iteration `info.iteration`, as DALI batches (1, words); no words for a gap."""
        try:
            found = self._pairs.at(self._pairs.spans.position_after(self._start, info.iteration))
            b1, b2 = self._packed(found) if isinstance(found, BatchPair) else (self._words(0), self._words(0))
        except Exception as error:
            self.error = error
            raise StopIteration from None
        self.sent.append(_Sent(found, (b1, b2)))
        return b2[None], b1[None]

    def _pack(self, batch: RowBatch) -> NDArray[np.int32]:
        layout = BatchLayout.of(batch)
        words = self._words(layout.words)
        with self._stages.timed("collate", 0):  # the reader counts the rows of this stage
            layout.pack(batch, torch.from_numpy(words))
        return words

    def _words(self, count: int) -> NDArray[np.int32]:
        return self._buffers.take((count,), np.int32)
