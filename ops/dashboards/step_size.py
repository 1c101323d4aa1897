"""Whether the learning rate is right: what α* says of it, how surely, and what the policy made of that."""

from __future__ import annotations

from ops.dashboards.panels import AnyPanel, Board, Row, latest, lines, spread, stacked
from ops.dashboards.queries import (
    BOTTLENECK,
    LEGEND,
    OVERVIEW,
    STEP_SIZE,
    metric,
    named,
    per_run,
    quantile,
    rate,
    selector,
)

BUCKETS = selector("alpha_relative_bucket")
MEASURING = per_run(rate("step_phase_seconds_total", 'phase="alpha"', window="5m"))


def _rows() -> list[Row]:
    return [
        Row(title="Is the rate right", height=5, further=OVERVIEW, panels=_verdict()),
        Row(title="Rate", height=10, further=OVERVIEW, panels=_rate()),
        Row(title="Estimates", height=10, further=OVERVIEW, panels=_estimates()),
        Row(title="Measuring", height=8, further=BOTTLENECK, panels=_measuring()),
    ]


def _verdict() -> list[AnyPanel]:
    return [
        latest(
            "α*, times the applied step",
            metric("alpha_pooled_relative"),
            unit="none",
            decimals=2,
            description="The one factor by which the latest 200 measured steps should have been longer; 1 is right. "
            "Nothing before the tenth estimate.",
        ),
        latest(
            "± (95 %)",
            named(f"1.96 * {selector('alpha_pooled_relative_standard_error')}"),
            unit="none",
            decimals=2,
            description="Half the width of its confidence interval: while 1 lies inside, the rate may be right.",
        ),
        latest(
            "Rate applied", metric("learning_rate"), unit="sci", description="The learning rate of the latest step."
        ),
        latest(
            "Rate proposed by α*",
            metric("learning_rate_proposed"),
            unit="sci",
            description="Pooled over the latest 200 estimates, each at the rate of its own step.",
        ),
    ]


def _rate() -> list[AnyPanel]:
    error = f"1.96 * {selector('learning_rate_proposed_standard_error')}"
    return [
        lines(
            "Learning rate: applied, scheduled, proposed by α*",
            {
                metric("learning_rate"): "{{run}} applied",
                metric("learning_rate_scheduled"): "{{run}} scheduled",
                metric("learning_rate_proposed"): "{{run}} by α*",
                named(f"{selector('learning_rate_proposed')} - {error}"): "{{run}} by α*, low",
                named(f"{selector('learning_rate_proposed')} + {error}"): "{{run}} by α*, high",
            },
            unit="sci",
            from_zero=False,
            description="Where the proposed rate runs above the applied one, longer steps would pay. Low and high: its "
            "95 % interval.",
        ),
        lines(
            "α* pooled, times the applied step",
            {
                metric("alpha_pooled_relative"): LEGEND,
                named(
                    f"{selector('alpha_pooled_relative')} - 1.96 * {selector('alpha_pooled_relative_standard_error')}"
                ): "{{run}} low",
                named(
                    f"{selector('alpha_pooled_relative')} + 1.96 * {selector('alpha_pooled_relative_standard_error')}"
                ): "{{run}} high",
            },
            from_zero=False,
            description="Long above 1: a higher optimizer.lr; long below: a lower one; stepsize.policy = 'auto' "
            "follows it by itself.",
        ),
        lines(
            "α* of the latest steps as a whole",
            {
                metric("horizon_alpha_relative"): LEGEND,
                named(
                    f"{selector('horizon_alpha_relative')} - 1.96 * {selector('horizon_alpha_relative_standard_error')}"
                ): "{{run}} low",
                named(
                    f"{selector('horizon_alpha_relative')} + 1.96 * {selector('horizon_alpha_relative_standard_error')}"
                ): "{{run}} high",
            },
            from_zero=False,
            description="Of the latest quarter or so of all steps, which stepsize.policy = 'auto' keeps a little above "
            "½. At ½ they gained nothing, below it they lost; at 1 their sum landed at the minimum along it.",
        ),
        lines(
            "Steps measured as a whole",
            {metric("horizon_steps"): LEGEND},
            description="How many steps the latest of these measurements was of; none of policies that look at single "
            "steps.",
        ),
        lines(
            "What rollbacks left of the rate",
            {metric("rate_factor"): LEGEND},
            description="A factor on every rate, the schedule's and the policy's: 1 until the run diverges and goes "
            "back to a checkpoint, lower from then on.",
        ),
    ]


def _estimates() -> list[AnyPanel]:
    quartiles = {
        quantile(share, "alpha_relative", window="30m"): f"{{{{run}}}} {name}"
        for share, name in ((0.25, "lower quartile"), (0.5, "median"), (0.75, "upper quartile"))
    }
    return [
        spread(
            "Spread of single estimates",
            f"sum by (le) ({named(f'increase({BUCKETS}[$__rate_interval])')})",
            description="α* relative to the step, all chosen runs together; 1: the step was just right; below 0: it "
            "climbed on fresh rows.",
        ),
        lines(
            "Quartiles of single estimates",
            quartiles,
            from_zero=False,
            description="Over 30 minutes, of each run's own histogram. They scatter widely: the pooled number is the "
            "one to go by.",
        ),
    ]


def _measuring() -> list[AnyPanel]:
    return [
        stacked(
            lines(
                "Estimates per second by outcome",
                {per_run(rate("alpha_estimates_total", window="5m"), by="outcome"): "{{run}} {{outcome}}"},
                description="ok and ascent carry a number. flat: the rate is near 0; nonfinite: the loss soon; "
                "stale and dropped: the estimate came too late, or what it read was changed.",
            )
        ),
        stacked(
            lines(
                "Measurements of many steps per second by outcome",
                {per_run(rate("horizon_estimates_total", window="15m"), by="outcome"): "{{run}} {{outcome}}"},
                description="stepsize.policy = 'auto' measures ever more seldom, at least every 6,250 steps "
                "or as soon as a run is a quarter longer.",
            )
        ),
        lines(
            "Age of an estimate",
            {metric("alpha_age_steps"): LEGEND},
            description="Steps between an estimate's own step and its hand-over: stepsize.delay.",
        ),
        lines(
            "Time for measuring",
            {f"{MEASURING} / {per_run(rate('step_phase_seconds_total', window='5m'))}": LEGEND},
            unit="percentunit",
            description="Share of wall time that training waits for measurements. Less: a longer stepsize.interval.",
        ),
    ]


BOARD = Board(
    uid=STEP_SIZE,
    title="Alphastream: step size",
    description="Is the learning rate right, by what α* measures, and how sure is that?",
    rows=_rows(),
)
