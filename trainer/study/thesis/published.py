"""What D. Suckrow, Curvature-Based Step Sizes for Training Deep Neural Networks (2025), reports of its two experiments.

One device, Criteo 1TB, batch 32,768, 85,328 steps, peak rate 2.19e-4; see studies/thesis-observe.toml and thesis-apply.
"""

from __future__ import annotations

PEAK_RATE = 2.19e-4
BATCH_ROWS = 32_768
STEPS = 85_328
BASELINE_SECONDS, LONG_SECONDS = 13_699.45, 61_624.0
"""Experiment 2's budgets in seconds: what its scheduled baseline took, and 4.5 times as much."""

OBSERVED: dict[str, float] = {
    "estimates": 4_300,
    "unbiased_absolute_mean": 1.80e-4,
    "unbiased_absolute_median": 1.31e-4,
    "unbiased_absolute_sd": 3.32e-4,
    "unbiased_absolute_sd_over_mean": 3.32 / 1.80,
    "unbiased_negative": 1_102,
    "unbiased_negative_share": 0.2563,
    "unbiased_relative_mean": 210.88,
    "unbiased_relative_median": 1.64,
    "biased_absolute_mean": 5.23e-3,
    "biased_absolute_median": 3.68e-3,
    "biased_absolute_sd": 4.78e-3,
    "biased_absolute_sd_over_mean": 4.78 / 5.23,
    "biased_negative": 0,
    "biased_negative_share": 0.0,
    "biased_relative_mean": 1881.79,
    "biased_relative_median": 55.62,
    "correlation_absolute": 0.842,
    "correlation_slope": 0.8407,
    "correlation_curvature": 0.9998,
    "hybrid_less_biased": -1692.29,
    "unbiased_less_hybrid": 21.77,
    "cosine_b1_mean": -0.0063,
    "cosine_b2_mean": -0.0751,
}
"""Experiment 1, under the names of `statistics`; what it does not give as a number is left out."""

SCHEDULE, SCHEDULE_FREE, ALPHA = "schedule", "schedule-free", "alpha"
BEST_LOSS: dict[tuple[str, str], float] = {
    ("steps", ALPHA): 0.124372,
    ("steps", SCHEDULE): 0.124286,
    ("steps", SCHEDULE_FREE): 0.124606,
    ("baseline's time", ALPHA): 0.125151,
    ("baseline's time", SCHEDULE): 0.124338,
    ("baseline's time", SCHEDULE_FREE): 0.124791,
    ("long time", ALPHA): 0.124445,
    ("long time", SCHEDULE_FREE): 0.124791,
}
"""Experiment 2's best validation loss by budget and rule."""
BEST_CELL = "I = 5000, N = 10"
"""The cell that was best within the budget in steps."""
STEPS_WITHIN_BASELINE = 41_885
"""Steps that α* completed in the time in which the baseline completed its 85,328."""
