"""A log's lines → tensors on the device, for a trained model to answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import torch

from pipeline.device.model_inputs import ModelInputs
from pipeline.device.ring import make_uploader
from pipeline.device.streams import hand_over
from pipeline.lines import LineBatch, RejectsSink, read_lines
from pipeline.reads import ReaderThreads
from pipeline.rows import Moduli
from pipeline.schema import LogFormat
from pipeline.source import Source
from pipeline.stages import StageTotals

BATCHES_AHEAD = 2


class LineInputs(NamedTuple):
    """Lines, and the rows among them as the model takes them."""

    lines: LineBatch
    inputs: ModelInputs | None
    """None if no line is a row."""


def open_lines(
    sources: Sequence[Source],
    log_format: LogFormat,
    *,
    table_rows: Moduli,
    device: torch.device,
    batch_rows: int,
    labelled: bool | None = None,
    skip_lines: int = 0,
    rejects: RejectsSink | None = None,
) -> Iterator[LineInputs]:
    """The lines of `sources` in batches of `batch_rows` rows, read ahead of whoever asks; see `pipeline.lines`.

    On CUDA a batch is for the stream that is current where it is asked for. Raises: as `pipeline.lines.read_lines`.
    """
    encode_rows = table_rows if device.type == "cpu" else None
    batches = read_lines(
        sources,
        log_format,
        batch_rows=batch_rows,
        table_rows=encode_rows,
        labelled=labelled,
        skip_lines=skip_lines,
        rejects=rejects,
    )
    uploader = make_uploader(device, table_rows=table_rows, stages=StageTotals(), role="evaluation")

    def following() -> LineBatch | None:
        return next(batches, None)

    with closing(ReaderThreads(1, name="lines")) as threads:
        ahead = deque(threads.submit(following) for _ in range(BATCHES_AHEAD))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(threads.submit(following))
            if not batch.rows.rows:
                yield LineInputs(batch, None)
                continue
            inputs = uploader.upload(batch.rows)
            hand_over(inputs.tensors(), uploader.mark())
            yield LineInputs(batch, inputs)
