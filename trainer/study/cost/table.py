"""Rounds of all ways in turn, as ratios within a round, and their page beside the published table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from trainer.config import config_errors
from trainer.learner import ModelConfig
from trainer.report import BLUE, GREY, INK, ORANGE, Table, style, write_figure, write_page, write_table
from trainer.study.cost.options import CostConfig
from trainer.study.cost.ways import CHECKED, JVP, ORIGINAL_OPERATOR, ORIGINAL_REST, PLAIN, PRODUCT, SECANT, Ways

PUBLISHED_PLAIN = 0.6124
PUBLISHED = {PLAIN: PUBLISHED_PLAIN, ORIGINAL_OPERATOR: 36.9928, ORIGINAL_REST: 5.5510}
"""Seconds of Table 4.1: one A100 of 40 GB, 32,768 rows, means of 5,000 steps."""
PUBLISHED_WHOLE = 43.1561
WITH_JVP, WITH_ORIGINAL = "complete step, with one JVP", "complete step, the original's way"
PARTS = {WITH_JVP: (PLAIN, JVP), WITH_ORIGINAL: (PLAIN, ORIGINAL_OPERATOR, ORIGINAL_REST)}
ORDER = (PLAIN, JVP, SECANT, PRODUCT, CHECKED, ORIGINAL_OPERATOR, ORIGINAL_REST, WITH_JVP, WITH_ORIGINAL)
COLUMNS = (
    "part",
    "seconds",
    "over_the_plain_step",
    "lowest_ratio",
    "highest_ratio",
    "published_seconds",
    "published_over_the_plain_step",
)
MISSING = (
    "curvlinops is not installed, so its rows and the original's way are left out; "
    "pip install 'alphastream[curvlinops]' adds them."
)


def cost_study(config: CostConfig, out: Path, *, said: Callable[[str], None]) -> Table:
    """Measures, writes `out`/index.html, cost.csv and cost.png, and returns the table; `said` hears of progress.

    Raises: ConfigError for a model that cannot be built, or a graphics card that is asked for and not there.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    installed = find_spec("curvlinops") is not None
    with config_errors("study cost"):
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device is cuda, and no graphics card is usable here; leave it out")
        device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
        model = ModelConfig(preset=config.preset, table_rows=config.table_rows)
        ways = Ways(model, batch_rows=config.batch_rows, device=device, curvlinops=installed)
    if not installed:
        said(MISSING)
    ways.round()  # the first calls compile, allocate and learn the look-ups
    turns = []
    for number in range(config.rounds):
        turns.append(ways.round())
        said(f"round {number + 1} of {config.rounds}: plain step {turns[-1][PLAIN]:.3g} s, α* {turns[-1][JVP]:.3g} s")
    table = cost_table(turns)
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / f"{table.stem}.csv", table)
    write_figure(out / "cost.png", ratio_figure(table))
    write_page(
        out / "index.html",
        title=str(out),
        said=[*_sentences(config, ways, device), *([] if installed else [MISSING])],
        pictures=[("cost", "What each part takes, over a plain step of the same round; published ratios in grey.")],
        tables=[table],
    )
    return table


def cost_table(turns: Sequence[Mapping[str, float]]) -> Table:
    """Medians over the rounds: of seconds, and of the ratios to the plain step of the same round."""
    rows: list[tuple[Any, ...]] = []
    for name in ORDER:
        parts = PARTS.get(name, (name,))
        if any(part not in turns[0] for part in parts):
            continue
        seconds = [sum(turn[part] for part in parts) for turn in turns]
        ratios = [value / turn[PLAIN] for value, turn in zip(seconds, turns, strict=True)]
        published = PUBLISHED_WHOLE if name == WITH_ORIGINAL else PUBLISHED.get(name)
        against = None if published is None else published / PUBLISHED_PLAIN
        medians = statistics.median(seconds), statistics.median(ratios)
        rows.append((name, *medians, min(ratios), max(ratios), published, against))
    return Table(stem="cost", title="What a step takes, and α* beside it", columns=COLUMNS, rows=rows)


def _sentences(config: CostConfig, ways: Ways, device: torch.device) -> list[str]:
    parameters = sum(p.numel() for p in ways.model.parameters())
    where = f"{torch.get_num_threads()} of {os.cpu_count()} processor cores"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return [
        f"{config.preset} with a table of {config.table_rows:,} rows, {parameters:,} parameters, batches of "
        f"{config.batch_rows:,} random rows, NAdamW that moves every row of the table; on {where}, torch "
        f"{torch.__version__}. Medians of {config.rounds} rounds in which all ways take their turn.",
        "Published: 539,267,457 parameters, 32,768 rows, one A100 of 40 GB. There the operator was rebuilt at every "
        "step with its self-check, and direction and products were dense vectors on the host.",
        "Ratios go with the size of the table: a plain step and everything dense grow with it, one JVP does not.",
    ]


def ratio_figure(table: Table) -> Figure:
    """Ratios to the plain step on a logarithmic scale, the published ones beside."""
    figure = Figure(figsize=(9.6, 1.6 + 0.45 * len(table.rows)), layout="constrained")
    axes = figure.subplots()
    style(axes, "Time over that of a plain step", "")
    rows = list(table.rows)[::-1]
    for place, (name, _, here, _, _, _, published) in enumerate(rows):
        color = ORANGE if name in PARTS else INK if name == PLAIN else BLUE
        _bar(axes, place + 0.18, here, color, "here" if name == JVP else None)
        if published is not None:
            _bar(axes, place - 0.18, published, GREY, "published" if name == PLAIN else None)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=9)
    axes.set_xscale("log")
    ratios = [value for row in rows for value in (row[2], row[6]) if value is not None]
    axes.set_xlim(min(ratios) / 2, max(ratios) * 2.5)
    axes.set_xlabel("times a plain step")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


def _bar(axes: Any, place: float, value: float, color: str, label: str | None) -> None:
    axes.barh(place, value, height=0.34, color=color, label=label)
    axes.annotate(f" {value:.3g}", (value, place), va="center", fontsize=8, color=INK)
