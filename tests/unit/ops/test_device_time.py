"""Events to phases, on made-up times: what a gap was follows from what the host did while the device was dry."""

from __future__ import annotations

import random

import pytest

from ops.device_time import DeviceStep, phases_of, shared


def step(**changes: object) -> DeviceStep:
    values = {"gap": 0, "began_at": 1000, "waits": [(900, 1000)], "transfer": 0, "work": [("forward", 50)]} | changes
    return DeviceStep(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("gap", "waits", "data_wait"),
    [
        (0, [(200, 1000)], 0),  # the device was busy all the while
        (20, [(200, 1000)], 20),
        (20, [(990, 1000)], 10),  # busy elsewhere at first
        (20, [(900, 995)], 15),  # and at last
        (20, [(900, 980)], 0),  # up to the gap
        (20, [], 0),
        (100, [(905, 915), (950, 960)], 20),
    ],
)
def test_only_the_part_of_the_wait_in_which_the_device_was_dry_counts(
    gap: int, waits: list[tuple[int, int]], data_wait: int
) -> None:
    spent = phases_of(step(gap=gap, waits=waits))
    assert (spent["data_wait"], spent["other"], spent["forward"]) == (data_wait, gap - data_wait, 50)


def test_the_queue_s_wait_for_the_copy_is_transfer() -> None:
    assert phases_of(step(transfer=7)) == {
        "data_wait": 0,
        "transfer": 7,
        "communication": 0,
        "other": 0,
        "forward": 50,
    }


@pytest.mark.parametrize(
    ("talks", "communication"),
    [([], 0), ([(200, 900)], 0), ([(200, 910)], 10), ([(905, 915), (950, 1000)], 60), ([(850, 1000)], 100)],
)
def test_of_the_wait_for_other_ranks_the_part_in_which_the_device_was_dry_counts(
    talks: list[tuple[int, int]], communication: int
) -> None:
    spent = phases_of(step(gap=100, waits=[], talks=talks, work=[("forward", 50), ("communication", 7)]))
    assert (spent["communication"], spent["other"]) == (communication + 7, 100 - communication)


def test_a_phase_in_several_parts_is_added_up() -> None:
    work = [("alpha", 3), ("optimizer", 4), ("alpha", 5), ("other", 6)]
    assert phases_of(step(work=work, gap=8, waits=[])) == {
        "data_wait": 0,
        "transfer": 0,
        "communication": 0,
        "alpha": 8,
        "optimizer": 4,
        "other": 14,
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_phases_sum_to_the_time_whatever_it_was(seed: int) -> None:
    chosen = random.Random(seed)
    edges = sorted(chosen.sample(range(10**9), 12))
    one = step(
        gap=chosen.randrange(10**9),
        began_at=chosen.randrange(10**9),
        waits=list(zip(edges[::4], edges[1::4], strict=True)),
        talks=list(zip(edges[2::4], edges[3::4], strict=True)),
        transfer=chosen.randrange(10**6),
        work=[
            (chosen.choice(("forward", "alpha", "communication", "other")), chosen.randrange(10**6)) for _ in range(5)
        ],
    )
    spent = phases_of(one)
    assert sum(spent.values()) == one.gap + one.transfer + sum(time for _, time in one.work)
    assert min(spent.values()) >= 0


def test_shared_time_is_symmetric_in_its_ends() -> None:
    assert shared((0, 10), [(-5, 3), (8, 20)]) == 5
    assert shared((0, 10), [(10, 20)]) == 0
