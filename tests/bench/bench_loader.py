"""The loader against Arrow's bare reading, torchdata over a HuggingFace stream, and mosaicml-streaming, same rows.

`python -m tests.bench.bench_loader [--rows N] [--data DATA]`. Ours makes full pairs as tensors, shuffled by rows, with
checksums; two threads read. All files come from a warm cache. Contenders take turns, the best of the rounds counts.
By the clock, other programs on the machine weigh on whoever runs beside them; rows by CPU second do not show that, but
only what runs in this process can be counted so. At the end: how long it takes to find a random position again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.device import DataConfig, open_feed
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.rows import Order, PairSpans
from pipeline.sample import SampleConfig, write_sample
from pipeline.schema import CRITEO, SPLITS
from pipeline.shards import Manifest, Shard, Split

BATCH_ROWS = 32_768
TABLE_ROWS = 4_194_304
THREADS = 2
PEER_ROWS = 200_000  # the slow ones need no more to show their speed
PEER_BATCH_ROWS = 2_048  # nor batches that take them seconds
SECONDS = 4.0


def ours(data: Path, shuffle: str) -> Iterator[int]:
    config = DataConfig(path=str(data), batch_rows=BATCH_ROWS, read_threads=THREADS, shuffle=shuffle)  # type: ignore[arg-type]
    with open_feed(config, Manifest.load(data), table_rows=TABLE_ROWS, device=torch.device("cpu")) as feed:
        for pair in feed:
            yield pair.rows


def bare(data: Path, threads: bool) -> Iterator[int]:
    """Row groups to Arrow tables, one after the other: no shuffle, no tensors, nulls still in their bitmaps."""
    while True:
        for path in sorted((data / "train").glob("*.parquet")):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, use_threads=threads).num_rows


def bare_side_by_side(data: Path) -> Iterator[int]:
    """The same with as many readers as ours has, each on row groups of its own: the most that Arrow can do here."""
    paths = sorted((data / "train").glob("*.parquet"))
    groups = [(path, group) for path in paths for group in range(pq.read_metadata(path).num_row_groups)]

    def read(at: tuple[Path, int]) -> int:
        with pq.ParquetFile(at[0], page_checksum_verification=True) as file:
            return file.read_row_group(at[1], use_threads=False).num_rows

    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(read, at) for at in groups[: 2 * THREADS]]
        for at in itertools.cycle(groups):
            yield waiting.pop(0).result()
            waiting.append(pool.submit(read, at))


def torchdata_over_huggingface(data: Path) -> Iterator[int]:
    """As their documentation has it: a stream of rows, shuffled in a buffer, collated into batches by the loader."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    stream = huggingface_stream(data)
    # A shuffled stream counts as one shard for every so many, and a worker needs one of its own.
    rows = stream.shuffle(seed=0, buffer_size=10_000, max_buffer_input_shards=max(stream.num_shards // THREADS, 1))
    while True:
        for batch in StatefulDataLoader(rows, batch_size=PEER_BATCH_ROWS, num_workers=THREADS, collate_fn=collate):
            yield len(batch["label"])


def torchdata_over_arrow_batches(data: Path) -> Iterator[int]:
    """As fast as that stream can be made to go: whole Arrow tables to tensors in the workers, in file order."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    tables = ArrowBatches(huggingface_stream(data).with_format("arrow"))
    while True:
        for batch in StatefulDataLoader(tables, batch_size=None, num_workers=THREADS):
            yield len(batch["label"])


class ArrowBatches(torch.utils.data.IterableDataset):
    """Tables of a stream as dictionaries of tensors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for table in self._stream.iter(batch_size=BATCH_ROWS):
            yield {
                name: torch.from_numpy(table.column(name).fill_null(0).to_numpy().copy()) for name in table.column_names
            }


def huggingface_stream(data: Path) -> Any:
    import datasets  # pyright: ignore[reportMissingImports]

    files = [str(path) for path in sorted((data / "train").glob("*.parquet"))]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def collate(rows: list[dict[str, int | None]]) -> dict[str, torch.Tensor]:
    """The loader's own collation has no answer to a missing integer."""
    return {name: torch.tensor([row[name] or 0 for row in rows]) for name in rows[0]}


def mosaic_streaming(folder: Path) -> Iterator[int]:
    streaming = import_streaming()
    from torch.utils.data import DataLoader

    dataset = streaming.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=BATCH_ROWS, allow_unsafe_types=False
    )
    while True:
        for batch in DataLoader(dataset, batch_size=PEER_BATCH_ROWS, num_workers=THREADS):
            yield len(batch["row"])


def write_mosaic(data: Path, folder: Path) -> None:
    """The first rows in mosaicml-streaming's format, a row as one array of 40 numbers: a field each would be slower."""
    streaming = import_streaming()
    path = min((data / "train").glob("*.parquet"))
    table = pq.read_table(path).slice(0, PEER_ROWS)
    rows = np.stack([column.fill_null(0).to_numpy().astype(np.int32) for column in table.columns], axis=1)
    with streaming.MDSWriter(out=str(folder), columns={"row": "ndarray:int32:40"}) as writer:
        for row in rows:
            writer.write({"row": row})


def import_streaming() -> types.ModuleType:
    """mosaicml-streaming; it loads torchvision for data sets of pictures, and where that cannot be loaded (it must
    match torch's build) an empty stand-in will do."""
    try:
        import streaming  # pyright: ignore[reportMissingImports]
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "streaming")]:
            del sys.modules[name]
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module = types.ModuleType(f"torchvision{name}")
            module.__path__ = []
            module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
            sys.modules[module.__name__] = module
        import streaming  # pyright: ignore[reportMissingImports]
    return streaming


def speed(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    """(rows by second, rows by CPU second of this process), from the second batch on, for about `seconds`."""
    next(batches)
    rows, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        rows += next(batches)
    result = rows / (time.perf_counter() - start), rows / (time.process_time() - cpu)
    batches.close()  # type: ignore[attr-defined]
    return result


def find_again(folder: Path) -> None:
    """From a checkpoint's position in 100 million rows to the rows of the next pair: manifest read and checked, the
    epoch's order made, both batches found. The rows must be those that a run from the epoch's start comes to."""
    manifest = synthetic_manifest(folder)
    spans = PairSpans(rows=manifest.splits["train"].rows, batch_rows=BATCH_ROWS, probe_rows=BATCH_ROWS)
    whole = open_order(manifest)
    whole.row_ids(0, 0, BATCH_ROWS)  # compiles what is not compiled yet
    durations, found = [], []
    gc.disable()  # as timeit does: one collection over all that peers have imported takes longer than thirty positions
    for step in np.random.default_rng(0).integers(0, spans.steps_per_epoch - 1, 30).tolist():
        start = time.perf_counter()
        order = open_order(Manifest.load(folder))
        probe, train = spans.at(step * BATCH_ROWS)
        assert probe
        pair = order.row_ids(step % 7, train[0], probe[1])
        durations.append(time.perf_counter() - start)
        found.append((step, probe[1], pair))
    gc.enable()
    for step, stop, pair in found:
        assert (pair == whole.row_ids(step % 7, 0, stop)[step * BATCH_ROWS :]).all()
    milliseconds = 1000 * np.array(durations)
    print(
        f"to a random position of {spans.rows:,} rows, rows of the next pair in hand: "
        f"median {np.median(milliseconds):.0f} ms, longest of 30 {milliseconds.max():.0f} ms"
    )


def synthetic_manifest(folder: Path) -> Manifest:
    """A manifest of 100 million rows in shards of the default size, of which only the row counts are real."""
    group_rows = (65_536,) * 4
    shards = [
        Shard(
            path=f"train/part-{number:05d}.parquet",
            rows=sum(group_rows),
            bytes=0,
            sha256="0" * 64,
            row_groups=group_rows,
            row_group_bytes=(0,) * 4,
        )
        for number in range(382)
    ]
    manifest = Manifest(
        folder=folder,
        format=CRITEO,
        splits={name: Split(shards=tuple(shards) if name == "train" else ()) for name in SPLITS},
        compression="lz4",
        statistics={},
        rejected_rows=0,
        rejects=(),
        plan={},
    )
    manifest.save()
    return manifest


def open_order(manifest: Manifest) -> Order:
    groups = [shard.row_groups for shard in manifest.splits["train"].shards]
    return Order(groups, seed=0, shuffle="rows", window_groups=DataConfig(path="").shuffle_row_groups)


def contenders(data: Path, folder: Path) -> dict[str, Callable[[], Iterator[int]]]:
    """Everything that can run here, by name; the reason is printed for what cannot."""
    found: dict[str, Callable[[], Iterator[int]]] = {
        "ours": lambda: ours(data, "rows"),
        "ours, file order": lambda: ours(data, "none"),
        "Arrow, bare": lambda: bare(data, threads=False),
        "Arrow, bare, its threads": lambda: bare(data, threads=True),
        "Arrow, bare, side by side": lambda: bare_side_by_side(data),
    }
    try:
        import datasets  # noqa: F401  # pyright: ignore[reportMissingImports]

        found["torchdata over HuggingFace"] = lambda: torchdata_over_huggingface(data)
        found["torchdata over HuggingFace, Arrow batches in file order"] = lambda: torchdata_over_arrow_batches(data)
    except ImportError as error:
        print(f"skipped torchdata over HuggingFace: {error}; install the extra `peers`")
    try:
        write_mosaic(data, folder / "mosaic")
        found["mosaicml-streaming"] = lambda: mosaic_streaming(folder / "mosaic")
    except ImportError as error:
        print(f"skipped mosaicml-streaming: {error}; install the extra `peers`")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--data", type=Path, help="data folder to use instead of generated rows")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or folder / "data"
        if options.data is None:
            write_sample(SampleConfig(out=folder / "log", rows=options.rows))
            preprocess(PreprocessConfig(sources=(str(folder / "log"),), out=data, split="train"))
        rows = Manifest.load(data).splits["train"].rows
        print(f"{rows:,} rows, batches of {BATCH_ROWS:,}, {THREADS} threads or workers each")
        runs = contenders(data, folder)
        best = dict.fromkeys(runs, (0.0, 0.0))
        for _ in range(options.rounds):
            for contender, make in runs.items():
                wall, cpu = speed(make(), SECONDS)
                best[contender] = max(wall, best[contender][0]), max(cpu, best[contender][1])
        report(best)
    with tempfile.TemporaryDirectory() as name:
        find_again(Path(name))


def report(best: dict[str, tuple[float, float]]) -> None:
    wall, cpu = best["ours"]
    print(f"ours: {wall / 1e6:.2f}M rows/s by the clock, {cpu / 1e6:.2f}M rows by CPU second")
    for name, (other_wall, other_cpu) in best.items():
        if name != "ours":
            local = "" if "torchdata" in name or "mosaic" in name else f", {cpu / other_cpu:.2f} by CPU time"
            print(f"ours / {name}: {wall / other_wall:.2f} by the clock{local}")


if __name__ == "__main__":
    main()
