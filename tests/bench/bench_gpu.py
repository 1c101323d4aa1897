"""On a GPU: training steps, their parts, NAdamW, what α* costs, and the feeds, as ratios within one run.

Ids are skewed as in `bench_table`. Times of the device are from its own events; a peer takes turns with ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ops.step_clock import StepClock
from pipeline.device import DataConfig, open_feed
from pipeline.schema import CRITEO
from pipeline.shards import Manifest, ShardWriter, Split
from stepsize import StepSizeWorker
from stepsize.losses import BCEWithLogits
from stepsize.measuring.handoff import Inline, SideStream
from tests.bench.bench_table import AlgoPerf, Batch, batches
from trainer.learner import ModelConfig, OptimizerConfig, build_model, build_optimizer
from trainer.step import first_click_rows

SMALL = {"embedding_dim": 8, "bottom": (16, 8), "top": (16, 1)}
"""Widths for a look at whether the benchmark runs, without a GPU."""

GROUP_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of one benchmark; `value` is in `unit`, which is "ratio" where it was taken against `peer`."""

    part: str
    what: str
    rows: int
    value: float
    unit: str
    peer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how large; `steps` a round, of `rounds`."""

    device: torch.device
    rows: int
    table_rows: int
    steps: int
    rounds: int
    tiny: bool

    def model(self) -> ModelConfig:
        sizes: dict[str, Any] = SMALL if self.tiny else {}
        return ModelConfig(preset="dlrm-small", table_rows=self.table_rows, **sizes)

    def batches(self, count: int) -> list[Batch]:
        """So many different batches, on the device."""
        found = []
        for dense, ids, label in islice(batches(self.rows, self.table_rows, seed=1), count):
            found.append((dense.to(self.device), ids.int().to(self.device), label.to(self.device)))
        return found

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], Any]) -> float:
        """Wall time of `work` and of what it launched."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return 1000 * (time.perf_counter() - start)


class Ours:
    """The trainer's model and NAdamW on the device."""

    def __init__(self, setting: Setting, table: str) -> None:
        self.model = build_model(setting.model(), dense_features=13, sparse_features=26, seed=0).to(setting.device)
        self.optimizer = build_optimizer(
            OptimizerConfig(table=table).resolved("dlrm-small"),  # pyright: ignore[reportArgumentType]
            self.model,
        )

    def loss(self, batch: Batch) -> Tensor:
        dense, ids, label = batch
        return binary_cross_entropy_with_logits(self.model(dense, ids), label)

    def step(self, batch: Batch) -> None:
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


class Peer:
    """AlgoPerf's step on the device."""

    def __init__(self, setting: Setting) -> None:
        with torch.device(setting.device):
            self._peer = AlgoPerf(setting.table_rows)

    def step(self, batch: Batch) -> None:
        dense, ids, label = batch
        self._peer.step((dense, ids.long(), label))


def steps(setting: Setting) -> Iterator[Figure]:
    """Rows a second by either table, and AlgoPerf's own step for a peer, in turns."""
    stream = setting.batches(4)
    subjects: dict[str, Any] = {"lazy table": Ours(setting, "lazy"), "dense table": Ours(setting, "dense")}
    if not setting.tiny:
        subjects["AlgoPerf"] = Peer(setting)

    def turn(subject: Any) -> float:
        def all_steps() -> None:
            for index in range(setting.steps):
                subject.step(stream[index % len(stream)])

        return setting.milliseconds(all_steps) / setting.steps

    for subject in subjects.values():
        turn(subject)  # compiles and warms up
    times = {name: [] for name in subjects}
    for _ in range(setting.rounds):
        for name, subject in subjects.items():
            times[name].append(turn(subject))
    for name, found in times.items():
        rate = 1000 * setting.rows / statistics.median(found)
        yield Figure(part="steps", what=f"training, {name}", rows=setting.rows, value=rate, unit="rows/s")
    for peer in ("dense table", "AlgoPerf"):
        if peer in times:
            ratio = statistics.median(b / a for a, b in zip(times["lazy table"], times[peer], strict=True))
            what = "time of a step over ours with a lazy table"
            yield Figure(part="steps", what=what, rows=setting.rows, value=ratio, unit="ratio", peer=peer)


class Stopwatch:
    """Milliseconds of stretches of the current stream: by its events, or the host's clock where there are none."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: dict[str, list[tuple[Any, Any]]] = {}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def stretch(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._marks.setdefault(name, []).append((start, self._now()))

    def medians(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize()
            return {name: statistics.median(a.elapsed_time(b) for a, b in marks) for name, marks in self._marks.items()}
        return {name: 1000 * statistics.median(b - a for a, b in marks) for name, marks in self._marks.items()}


class TimedLane:
    """The device's lane, with the work's own time taken on its stream."""

    def __init__(self, device: torch.device, watch: Stopwatch) -> None:
        self._lane = SideStream(device) if device.type == "cuda" else Inline()
        self._watch = watch

    def submit(self, work: Callable[[], Any], uses: Any) -> Any:
        def timed() -> Any:
            with self._watch.stretch("probe, on the side stream"):
                return work()

        return self._lane.submit(timed, uses)


def worker_of(setting: Setting, subject: Ours, watch: Stopwatch) -> StepSizeWorker:
    """One as the trainer has it."""
    lane, delay = TimedLane(setting.device, watch), 4 if setting.device.type == "cuda" else 0
    return StepSizeWorker(
        subject.model, subject.optimizer, BCEWithLogits(), take_rows=first_click_rows, delay=delay, lane=lane
    )


def measured_step(
    subject: Ours, worker: StepSizeWorker, pair: tuple[Batch, Batch], step: int, watch: Stopwatch
) -> None:
    """One step on the first of the pair, measured on the second, its parts under `watch`."""
    b2, (dense, ids, label) = pair
    with watch.stretch("forward"):
        loss = subject.loss(b2)
    with watch.stretch("backward"):
        subject.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    with watch.stretch("snapshot"):
        worker.before_step((dense, ids), label, step=step)
    with watch.stretch("optimizer"):
        subject.optimizer.step()
    with watch.stretch("difference"):
        worker.after_step()
    worker.poll(step=step)


def parts(setting: Setting) -> Iterator[Figure]:
    """The time of each part of a measured step."""
    stream = setting.batches(4)
    for table in ("lazy", "dense"):
        subject = Ours(setting, table)
        worker = worker_of(setting, subject, Stopwatch(setting.device))
        for step in range(3):
            measured_step(subject, worker, (stream[0], stream[1]), step, Stopwatch(setting.device))
        watch = Stopwatch(setting.device)
        worker._lane._watch = watch  # pyright: ignore[reportAttributeAccessIssue]
        for step in range(3, 3 + setting.steps * setting.rounds):
            pair = stream[step % len(stream)], stream[(step + 1) % len(stream)]
            measured_step(subject, worker, pair, step, watch)
        worker.flush()
        for name, value in watch.medians().items():
            yield Figure(part="parts", what=f"{name}, {table} table", rows=setting.rows, value=value, unit="ms")
        worker.close()
        del subject, worker
        gc.collect()


def optimizer(setting: Setting) -> Iterator[Figure]:
    """NAdamW alone on the parameters that are no table, against torch's own in the same turns."""
    configs = {
        "ours": OptimizerConfig(table="dense").resolved("dlrm-small"),
        "torch AdamW, fused": OptimizerConfig(name="adamw", options={"fused": True}),
        "torch AdamW, foreach": OptimizerConfig(name="adamw", options={"foreach": True}),
        "torch NAdam, foreach": OptimizerConfig(
            name="nadam", options={"foreach": True, "decoupled_weight_decay": True}
        ),
    }
    subjects = {}
    for name, config in configs.items():
        sizes: dict[str, Any] = SMALL if setting.tiny else {}
        model = build_model(
            ModelConfig(preset="dlrm-small", table_rows=16, **sizes), dense_features=13, sparse_features=26, seed=0
        ).to(setting.device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        subjects[name] = build_optimizer(config, model)

    def turn(name: str) -> float:
        def all_steps() -> None:
            for _ in range(10 * setting.steps):
                subjects[name].step()

        return setting.milliseconds(all_steps) / (10 * setting.steps)

    for name in subjects:
        turn(name)
    times = {name: [] for name in subjects}
    for _ in range(setting.rounds):
        for name in subjects:
            times[name].append(turn(name))
    ours = times.pop("ours")
    yield Figure(part="optimizer", what="NAdamW's step", rows=0, value=statistics.median(ours), unit="ms")
    for name, found in times.items():
        ratio = statistics.median(b / a for a, b in zip(ours, found, strict=True))
        yield Figure(part="optimizer", what="time of a step over ours", rows=0, value=ratio, unit="ratio", peer=name)


def alpha(setting: Setting) -> Iterator[Figure]:
    """What measuring adds to a step: stretches of measured and of plain steps in turns, of one model."""
    stream, subject = setting.batches(4), Ours(setting, "lazy")
    watch = Stopwatch(setting.device)
    worker, step = worker_of(setting, subject, watch), 0

    def stretch(*, measure: bool) -> float:
        def all_steps() -> None:
            nonlocal step
            for _ in range(setting.steps):
                pair = stream[step % len(stream)], stream[(step + 1) % len(stream)]
                if measure:
                    measured_step(subject, worker, pair, step, watch)
                else:
                    subject.step(pair[0])
                step += 1
            worker.flush(step=step)

        return setting.milliseconds(all_steps)

    for measure in (True, False):
        stretch(measure=measure)
    ratios = [stretch(measure=True) / stretch(measure=False) for _ in range(setting.rounds)]
    what = "time of steps that are all measured, and of the measuring, over plain ones"
    yield Figure(
        part="alpha", what=what, rows=setting.rows, value=statistics.median(ratios), unit="ratio", peer="plain"
    )
    overhead = 0.01 * (statistics.median(ratios) - 1)
    what = "added to a run that measures 10 steps in 1,000"
    yield Figure(part="alpha", what=what, rows=setting.rows, value=100 * overhead, unit="%", peer="plain")


def write_shards(folder: Path, setting: Setting) -> Manifest:
    """Shards of four batches of skewed ids, not preprocessed, which takes packages that nothing else here needs."""
    (folder / "train").mkdir(parents=True)
    shards, bounds = [], np.array(CRITEO.bucket_sizes, dtype=np.int32)[:, None]
    for number, (dense, ids, label) in enumerate(islice(batches(setting.rows, 1 << 31, seed=2), 4)):
        name = f"train/part-{number:05d}.parquet"
        counts = (100 * dense.numpy().T).astype(np.int32)
        buckets = (ids.numpy() % bounds).astype(np.int32)
        with ShardWriter(folder / name, CRITEO, "lz4") as writer:
            for start in range(0, setting.rows, GROUP_ROWS):
                part = slice(start, start + GROUP_ROWS)
                present = np.ones(counts[:, part].shape, dtype=np.uint8)
                writer.write_group(
                    label.numpy()[part].astype(np.uint8),
                    np.ascontiguousarray(counts[:, part]),
                    present,
                    np.ascontiguousarray(buckets[:, part]),
                )
            shards.append(writer.finish(name))
    Manifest(
        folder=folder,
        format=CRITEO,
        splits={"train": Split(shards=tuple(shards)), "validation": Split(shards=()), "test": Split(shards=())},
        compression="lz4",
        statistics={},
        rejected_rows=0,
        rejects=(),
        plan={},
    ).save()
    return Manifest.load(str(folder))


def feeds(setting: Setting) -> Iterator[Figure]:
    """Rows a second that each feed gives, and the share of training's time that is spent waiting for it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "data")
        manifest = write_shards(folder, setting)
        for kind in ("ring", "dali"):
            try:
                yield from _feed(setting, folder, manifest, kind)
            except Exception as error:
                if kind == "ring":
                    raise
                print(f"  dali: {error}", flush=True)


def _feed(setting: Setting, folder: Path, manifest: Manifest, kind: Any) -> Iterator[Figure]:
    config = DataConfig(path=str(folder), batch_rows=setting.rows, feed=kind)
    count = setting.steps * setting.rounds
    with open_feed(config, manifest, table_rows=setting.table_rows, device=setting.device) as feed:
        next(feed)

        def all_pairs() -> None:
            for _ in range(count):
                next(feed)

        alone = setting.milliseconds(all_pairs)
        rate = 1000 * count * setting.rows / alone
        yield Figure(part="feeds", what=f"{kind} alone", rows=setting.rows, value=rate, unit="rows/s")
        subject, clock = Ours(setting, "lazy"), StepClock()
        for index in range(count + 2):
            if index == 2:
                setting.wait()
                clock.finish_outside()
            with clock.phase("data_wait"):
                pair = next(feed)
                if setting.device.type == "cuda":  # the host runs ahead: only with the device idle is a wait a wait
                    torch.cuda.current_stream().synchronize()
            subject.step((pair.b2.dense, pair.b2.ids, pair.b2.label))
            setting.wait()
        timing = clock.finish_outside()
        share = 100 * timing.phases["data_wait"] / timing.seconds
        yield Figure(part="feeds", what=f"{kind}, share of waiting", rows=setting.rows, value=share, unit="%")


PARTS = {"steps": steps, "parts": parts, "optimizer": optimizer, "alpha": alpha, "feeds": feeds}


def measured(setting: Setting, name: str) -> list[Figure]:
    """All figures of one benchmark, printed as they come."""
    found = []
    for figure in PARTS[name](setting):
        peer = f" ({figure.peer})" if figure.peer else ""
        print(f"  {figure.rows:>7,} rows  {figure.value:14,.3f} {figure.unit:7} {figure.what}{peer}", flush=True)
        found.append(figure)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="by default all of them")
    parser.add_argument("--rows", type=int, action="append", help="of a batch; by default 32768 and 262144")
    parser.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="cpu: tiny sizes, to see that it runs"
    )
    parser.add_argument("--table-rows", type=int, default=4_194_304)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    tiny = arguments.device == "cpu"
    if not tiny and not torch.cuda.is_available():
        print("no CUDA device is here; --device cpu shows, at tiny sizes, that the benchmark runs")
        return
    figures: list[Figure] = []
    with mock.patch.dict("os.environ", {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}):
        for name in arguments.part or PARTS:
            print(f"{name}:", flush=True)
            for rows in [64] if tiny else arguments.rows or [32_768, 262_144]:
                setting = Setting(
                    device=torch.device(arguments.device),
                    rows=rows,
                    table_rows=4096 if tiny else arguments.table_rows,
                    steps=2 if tiny else arguments.steps,
                    rounds=2 if tiny else arguments.rounds,
                    tiny=tiny,
                )
                figures += measured(setting, name)
                if arguments.json:
                    arguments.json.write_text(json.dumps([asdict(figure) for figure in figures]), encoding="utf-8")
                if name == "optimizer":
                    break
                gc.collect()


if __name__ == "__main__":
    main()
