"""What three trials' times say: parts that sum to the step, the bottleneck stage, predictions, and honest doubt."""

from __future__ import annotations

import random

import pytest

from trainer.cli.stall import print_report
from trainer.stall.comparison import StepSample, TrialTimes, compare, standard_error, times, whole_windows


def trial(
    name: str, seconds: float, *, waiting: float = 0.0, stages: dict[str, tuple[float, int]] | None = None
) -> TrialTimes:
    """A trial of 20 steps of 100 rows that all take the same time."""
    samples = [StepSample(seconds=seconds, waiting=waiting, rows=100)] * 20
    return times(name, samples, stages, reader_threads=2)


def test_the_parts_sum_to_the_whole_step() -> None:
    report = compare(
        trial("compute", 0.02), trial("warm", 0.03, waiting=0.009), trial("cold", 0.05, waiting=0.028), reader_threads=2
    )
    parts = {part.name: part for part in report.components}
    assert parts["compute"].seconds_per_step == pytest.approx(0.02)
    assert parts["preparation stall"].seconds_per_step == pytest.approx(0.01)
    assert parts["preparation stall"].waiting_per_step == pytest.approx(0.009)
    assert parts["fetch stall"].seconds_per_step == pytest.approx(0.02)
    assert parts["fetch stall"].waiting_per_step == pytest.approx(0.019)
    assert [part.share for part in report.components] == pytest.approx([0.4, 0.2, 0.4])


def test_without_a_cold_trial_there_is_no_fetch_stall() -> None:
    report = compare(trial("compute", 0.02), trial("warm", 0.03), None, reader_threads=2, no_cold_trial="no such call")
    assert [part.name for part in report.components] == ["compute", "preparation stall"]
    assert sum(part.share for part in report.components) == pytest.approx(1)
    assert report.no_cold_trial == "no such call"


def test_no_waiting_is_predicted_from_the_wait_and_measured_against_computing() -> None:
    report = compare(trial("compute", 0.02), trial("warm", 0.05, waiting=0.025), None, reader_threads=2)
    (gain,) = report.speedups
    assert gain.predicted == pytest.approx(2.0)
    assert gain.measured == pytest.approx(2.5)


def test_a_stage_is_scaled_to_the_rows_that_the_trial_got_through() -> None:
    """4,000 rows were read, half of them ahead: a row took 5 µs of a thread, a step of 100 rows 0.5 ms."""
    use = trial("warm", 0.01, stages={"decode": (0.02, 4000)}).stages[0]
    assert use.seconds_per_step == pytest.approx(0.0005)
    assert use.busy_share == pytest.approx(0.025)


def test_the_bottleneck_is_the_longest_stage_of_the_busiest_threads() -> None:
    """Two reader threads share three stages and are busy for 75 % in all; one stage alone is busy for 60 %."""
    shared = {"source_read": (0.3, 2000), "decode": (0.9, 2000), "shuffle": (0.3, 2000)}
    measured = trial("warm", 0.05, stages={**shared, "collate": (0.6, 2000)})
    assert measured.bottleneck is not None
    assert measured.bottleneck.stage == "decode"
    measured = trial("warm", 0.05, stages={**shared, "collate": (0.8, 2000)})
    assert measured.bottleneck is not None
    assert measured.bottleneck.stage == "collate"


@pytest.mark.parametrize(("waiting", "step_after"), [(0.03, 0.04), (0.004, 0.046), (0.0, 0.05)])
def test_a_wider_stage_gives_what_its_threads_save_and_no_more_than_is_waited_for(
    waiting: float, step_after: float
) -> None:
    """Decoding takes 40 ms of two threads a step: twice as fast, rows come 10 ms earlier."""
    measured = trial("warm", 0.05, waiting=waiting, stages={"decode": (0.8, 2000)})
    gain = measured.wider(threads=2)
    assert gain is not None
    assert gain.predicted == pytest.approx(0.05 / step_after)


def test_the_standard_error_covers_the_mean_of_bursts() -> None:
    """Waits come in bursts of ten steps; single steps taken as independent would claim three times the precision."""
    rng = random.Random(1)
    errors, claimed = [], []
    for _ in range(400):
        seconds = [burst for _ in range(40) for burst in [rng.expovariate(1.0)] * 10]
        errors.append(sum(seconds) / 400 - 1.0)
        error = standard_error(seconds)
        assert error is not None
        claimed.append(error**2)
    assert sum(claimed) / 400 == pytest.approx(sum(error**2 for error in errors) / 400, rel=0.3)


def test_a_short_trial_claims_no_precision() -> None:
    assert standard_error([1.0, 2.0, 3.0]) is None
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.6455, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "window", "steps"),
    [
        ([100] * 25, 1000, 20),
        ([100] * 25, 990, 20),  # two windows are 1,980 rows
        ([100] * 25, 3000, 25),
        ([100, 100, 30] * 4, 230, 12),
    ],
)
def test_whole_windows(rows: list[int], window: float, steps: int) -> None:
    assert whole_windows(rows, window) == steps


@pytest.mark.parametrize(
    ("compute", "warm", "cold", "said"),
    [
        ((0.05, 0.0), (0.051, 0.0), (0.052, 0.0), "compute-bound: 96%"),
        ((0.02, 0.0), (0.05, 0.03), (0.05, 0.03), "data-bound: preparation stall is 60% of a step; the bottleneck st"),
        ((0.02, 0.0), (0.02, 0.0), (0.05, 0.03), "data-bound: fetch stall is 60% of a step; the bottleneck stage"),
        ((0.02, 0.0), (0.05, 0.01), (0.05, 0.01), "data-bound: preparation stall is 60% of a step, most of it comp"),
    ],
)
def test_the_verdict(
    compute: tuple[float, float], warm: tuple[float, float], cold: tuple[float, float], said: str
) -> None:
    stages = {"decode": (0.8, 2000)}
    trials = [
        trial(name, seconds, waiting=waiting, stages=stages)
        for name, (seconds, waiting) in (("compute", compute), ("warm", warm), ("cold", cold))
    ]
    assert compare(*trials, reader_threads=2).verdict.startswith(said)


def test_trials_that_scatter_as_much_as_they_differ_give_no_verdict() -> None:
    rng = random.Random(2)
    noisy = [StepSample(seconds=(seconds := rng.expovariate(20.0)), waiting=seconds / 2, rows=100) for _ in range(32)]
    warm = times("warm", noisy)
    report = compare(trial("compute", warm.seconds_per_step * 0.88), warm, None, reader_threads=2)
    assert report.verdict.startswith("unclear: the trials scatter as much as they differ; measure more with --steps")


@pytest.mark.parametrize("seconds", [0.05, 0.02])
def test_too_few_steps_give_no_verdict(seconds: float) -> None:
    compute = times("compute", [StepSample(seconds=0.02, waiting=0.0, rows=100)] * 3)
    warm = times("warm", [StepSample(seconds=seconds, waiting=seconds / 4, rows=100)] * 3)
    assert compare(compute, warm, None, reader_threads=2).verdict.startswith("unclear: 3 steps are too few to tell;")


def test_computing_slowed_by_more_than_the_loader_works_is_not_its_doing() -> None:
    """Decoding takes 40 ms of a thread a step; computing that is 50 ms slower has another cause as well."""
    stages = {"decode": (0.8, 2000)}
    for slower, verdict in ((0.03, "data-bound"), (0.05, "unclear")):
        warm = trial("warm", 0.1 + slower, stages=stages)
        assert compare(trial("compute", 0.1), warm, None, reader_threads=2).verdict.startswith(verdict)


def test_predictions_are_printed_only_from_trials_that_tell_something(capsys: pytest.CaptureFixture[str]) -> None:
    clear = compare(trial("compute", 0.02), trial("warm", 0.05, waiting=0.025), None, reader_threads=2)
    print_report(clear)
    assert "speed-up of" in capsys.readouterr().out
    compute, warm = (
        times(name, [StepSample(seconds=seconds, waiting=0.0, rows=100)] * 3, reader_threads=2)
        for name, seconds in (("compute", 0.02), ("warm", 0.05))
    )
    print_report(compare(compute, warm, None, reader_threads=2))
    out = capsys.readouterr().out
    assert out.startswith("unclear: ")
    assert "warm" in out
    assert "speed-up" not in out
