"""Preprocessing against its own kernel, pyarrow.csv with a vectorized hash, and DuckDB, on the same rows.

`python -m tests.bench.bench_preprocess [--rows N] [--log FILE]`. One core unless a line says otherwise; every
contender reads the same plain file from a warm cache and writes lz4 Parquet, and all take their turn in every round.
Speed a core is rows by CPU second (user and system, all threads), which other programs on the machine disturb less
than the clock; what a second core gains is by the clock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from pipeline.encode import tsv
from pipeline.line_buffer import PADDING_BYTES
from pipeline.preprocess import PreprocessConfig, preprocess
from pipeline.sample import SampleConfig, write_sample
from pipeline.schema import CRITEO, ROW_GROUP_ROWS
from pipeline.source.newlines import after_last_newline
from tests.bench.parquet_writers import Seconds, compare_writers, row_groups

ROOT = Path(__file__).resolve().parents[2]
K2 = np.uint64(0x9AE16A3B2F90404F)
GROUP_BYTES = 64 << 20
TWO_CORES = "ours, two cores"
KERNEL_ON_TWO = "bare kernel, two cores"


def ours(log: Path, out: Path, workers: int) -> None:
    config = PreprocessConfig(sources=(str(log),), out=out, split="train", workers=workers)
    preprocess(config)


def bare_kernel(log: Path, threads: int) -> None:
    """Parse and hash every line, from memory to memory; nothing is kept. Each thread has an equal part of them."""
    content = in_memory(log)
    stop = len(content) - PADDING_BYTES
    cuts = [int(after_last_newline(content, 0, stop * part // threads)) for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: parse_part(content, *part), pairwise(cuts)))


def parse_part(content: np.ndarray, position: int, stop: int) -> None:
    layout, scratch, rejects = tsv.make_layout(CRITEO), tsv.make_scratch(CRITEO), tsv.make_rejects()
    group, tally = tsv.make_group(CRITEO, ROW_GROUP_ROWS), tsv.make_tally(CRITEO)
    while position < stop:
        position, *_ = tsv.parse(content, position, stop, layout, group, 0, tally, rejects, scratch)


_contents: dict[Path, np.ndarray] = {}


def in_memory(log: Path) -> np.ndarray:
    if log not in _contents:
        _contents[log] = np.frombuffer(log.read_bytes() + bytes(PADDING_BYTES), np.uint8)
    return _contents[log]


def arrow_and_numpy(log: Path, out: Path) -> None:
    """pyarrow.csv for the fields, the same hash as whole-column numpy operations, pyarrow.parquet for the file."""
    names = list(CRITEO.columns)
    types = {name: pa.int32() for name in names[:14]} | {name: pa.string() for name in CRITEO.sparse}
    reader = csv.open_csv(
        log,
        read_options=csv.ReadOptions(column_names=names, block_size=GROUP_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(delimiter="\t"),
        convert_options=csv.ConvertOptions(column_types=types, null_values=["", "-1"], strings_can_be_null=True),
    )
    schema = pa.schema([pa.field(name, pa.uint8() if name == "label" else pa.int32()) for name in names])
    out.mkdir()
    with pq.ParquetWriter(out / "part.parquet", schema, compression="lz4", write_page_checksum=True) as writer:
        for batch in reader:
            columns = [batch["label"].cast(pa.uint8()), *(batch[name] for name in CRITEO.dense)]
            for j, name in enumerate(CRITEO.sparse):
                columns.append(pa.array(hash_column(batch[name].fill_null("00000000"), j)))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP_ROWS)


def hash_column(column: pa.StringArray, j: int) -> np.ndarray:
    """Fingerprint64 of eight characters and the decimal j, modulo the column's size."""
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    assert (np.diff(starts) == 8).all()
    word = np.frombuffer(data, np.uint8)[starts[0] : starts[-1]].view(np.uint64)
    suffix = str(j).encode()
    bits = np.uint64(8 * len(suffix))
    last = (word >> bits) | (np.uint64(int.from_bytes(suffix, "little")) << (np.uint64(64) - bits))
    factor = K2 + np.uint64(2 * (8 + len(suffix)))
    a = word + K2
    c = rotate(last, 37) * factor + a
    d = (rotate(a, 25) + last) * factor
    p = (c ^ d) * factor
    p ^= p >> np.uint64(47)
    q = (d ^ p) * factor
    q ^= q >> np.uint64(47)
    return (q * factor % np.uint64(CRITEO.bucket_sizes[j])).astype(np.int32)


def rotate(value: np.ndarray, bits: int) -> np.ndarray:
    return value >> np.uint64(bits) | value << np.uint64(64 - bits)


def duck(log: Path, out: Path, *, statistics: bool) -> None:
    """DuckDB reading the fields and hashing the categories with its own hash; with `statistics`, those of a manifest
    too (it knows one number less, how many categories were missing), from the file it wrote, its quickest way."""
    import duckdb

    columns = ", ".join(f"'{name}': '{'INTEGER' if i < 14 else 'VARCHAR'}'" for i, name in enumerate(CRITEO.columns))
    hashed = ", ".join(
        f"(hash({name}) % {size})::INTEGER AS {name}"
        for name, size in zip(CRITEO.sparse, CRITEO.bucket_sizes, strict=True)
    )
    out.mkdir()
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.execute(
        f"COPY (SELECT label::UTINYINT AS label, {', '.join(CRITEO.dense)}, {hashed} FROM "
        f"read_csv('{log}', delim='\t', header=false, quote='', columns={{{columns}}})) "
        f"TO '{out}/part.parquet' (FORMAT parquet, COMPRESSION lz4_raw, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
    )
    if statistics:
        dense = ", ".join(f"count({name}), min({name}), max({name}), avg({name})" for name in CRITEO.dense)
        sparse = ", ".join(f"approx_count_distinct({name})" for name in CRITEO.sparse)
        connection.sql(f"SELECT count(*), avg(label), {dense}, {sparse} FROM '{out}/part.parquet'").fetchall()


@dataclass(kw_only=True)
class Rounds:
    """Seconds of a contender in every round; ratios are taken within a round, for the machine's speed drifts."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], object], cores: set[int]) -> None:
        """Run `work` while this process may only use `cores`."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            self.cpu.append(time.process_time() - cpu)
            self.wall.append(time.perf_counter() - wall)
        finally:
            os.sched_setaffinity(0, before)


def ratio(above: list[float], below: list[float]) -> str:
    """Of each round, as `median (lowest to highest)`."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def print_writers(writers: list[Seconds], whole: list[float]) -> None:
    """What our Parquet writer gains, beside the CPU seconds of `whole` calls of preprocessing."""
    ours, arrow = [each.ours for each in writers], [each.arrow for each in writers]
    with_arrow = [all_of_it - mine + theirs for all_of_it, mine, theirs in zip(whole, ours, arrow, strict=True)]
    print(f"pyarrow.parquet for the same columns in the same dialect: {ratio(arrow, ours)} times the CPU time of ours")
    print(f"preprocessing with it in place of ours would take {ratio(with_arrow, whole)} times the CPU time")


def make_log(folder: Path, rows: int) -> Path:
    write_sample(SampleConfig(out=folder / "log", rows=rows, days=1))
    return folder / "log/day_0.tsv"


def peak_memory(log: Path, out: Path, times: int) -> tuple[int, float]:
    """Rows and peak memory in bytes of preprocessing `log` over and over, as one stream, in a process of its own."""
    program = (
        "import pathlib, re, sys; from pipeline.preprocess.command import PreprocessConfig, preprocess\n"
        "done = preprocess(PreprocessConfig(sources=('-',), out=pathlib.Path(sys.argv[1])))\n"
        # Of this program alone: ru_maxrss counts the parent before exec, too.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(done.rows, int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) * 1024)"
    )
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        for _ in range(times):
            with log.open("rb") as file:
                shutil.copyfileobj(file, child.stdin, 1 << 20)
        child.stdin.close()
        rows, peak = child.stdout.read().split()
    return int(rows), float(peak)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=4_000_000)
    arguments.add_argument("--log", type=Path, help="a log to read instead of a generated one")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--memory-rows", type=int, default=20_000_000, help="0 leaves the measurement out")
    given = arguments.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    one, two = {cores[0]}, set(cores[:2])
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "out"
        log = given.log or make_log(folder, given.rows)
        with log.open("rb") as file:
            rows = sum(1 for _ in file)
        contenders: dict[str, tuple[Callable[[], object], set[int]]] = {
            "ours": (lambda: ours(log, out, 1), one),
            "bare kernel": (lambda: bare_kernel(log, 1), one),
            "pyarrow.csv + numpy": (lambda: arrow_and_numpy(log, out), one),
        }
        if len(two) == 2:
            contenders[TWO_CORES] = (lambda: ours(log, out, 2), two)
            contenders[KERNEL_ON_TWO] = (lambda: bare_kernel(log, 2), two)
        try:
            import duckdb  # noqa: F401
        except ImportError:
            print("DuckDB: skipped, it is not installed (extra `peers`)")
        else:
            contenders["DuckDB, its own hash"] = (lambda: duck(log, out, statistics=True), one)
            contenders["DuckDB, no statistics"] = (lambda: duck(log, out, statistics=False), one)
        rounds = {name: Rounds() for name in contenders}
        bare_kernel(log, 1)
        ours(log, out, 1)
        for _ in range(given.rounds):
            for contender, (work, allowed) in contenders.items():
                shutil.rmtree(out, ignore_errors=True)
                rounds[contender].measure(work, allowed)
        groups = list(row_groups(log))
        writers = [compare_writers(groups) for _ in range(given.rounds)]
        megabytes = log.stat().st_size / 1e6
        if given.memory_rows:
            shutil.rmtree(out, ignore_errors=True)
            streamed, peak = peak_memory(log, out, -(-given.memory_rows // rows))
            print(f"peak memory over {streamed:,} rows: {peak / 1e9:.2f} GB")
    print(f"{rows:,} rows, {megabytes:,.0f} MB, {given.rounds} rounds, medians; ratios are of CPU time within a round")
    for contender, each in rounds.items():
        cpu = median(each.cpu)
        speed = f"{rows / cpu / 1e6:5.2f}M rows, {megabytes / cpu:4.0f} MB by CPU second"
        print(f"{contender:22} {speed}; ours is {ratio(each.cpu, rounds['ours'].cpu)} times as fast")
    print_writers(writers, rounds["ours"].cpu)
    if TWO_CORES in rounds:
        print(f"two cores over one, by the clock: {ratio(rounds['ours'].wall, rounds[TWO_CORES].wall)}")
        kernel = ratio(rounds["bare kernel"].wall, rounds[KERNEL_ON_TWO].wall)
        print(f"the same of the bare kernel, whose threads share nothing: {kernel}")


if __name__ == "__main__":
    main()
