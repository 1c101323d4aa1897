"""What a rollback costs the rate: half, and far more where the run got nowhere since the last one."""

from __future__ import annotations

from trainer.divergence import Recovery


def test_the_rate_is_halved_and_in_place_it_falls_faster() -> None:
    recovery = Recovery()
    factors = []
    for step in (400, 400, 400, 400, 900):
        before = recovery.rate_factor
        recovery.roll_back(step, from_step=step + 30, rows=10)
        factors.append(recovery.rate_factor / before)
    assert factors == [0.5, 0.5**6, 0.5**12, 0.5**12, 0.5]
    assert (recovery.rollbacks, recovery.rows_skipped, recovery.step, recovery.in_place) == (5, 50, 900, 1)


def test_it_is_restored_and_forgotten() -> None:
    recovery, other = Recovery(), Recovery()
    recovery.roll_back(3, from_step=9, rows=7)
    other.load_state_dict(recovery.state_dict())
    assert other == recovery
    assert other.held_until == 15
    earlier = {name: value for name, value in recovery.state_dict().items() if name != "held_until"}
    other.load_state_dict(earlier)  # as a checkpoint of an earlier version has it
    assert other.held_until == 0
    other.load_state_dict(None)
    assert other == Recovery()
