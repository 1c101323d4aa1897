"""The time of every rank over a stretch of a run, by phase: minimum, mean, maximum, and the slowest rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

TALK = "communication"


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """Over `steps` steps and the pauses between them. At least two ranks.

    The slowest rank is the one that the others wait for. Whoever waits does so in an exchange, so it is the one with
    the least `communication`; what it does instead, and for longer than the others do, is why.
    """

    steps: int
    seconds: Mapping[str, Sequence[float]]
    """By phase, those of every rank in their order; a phase that is missing took none any time."""

    @property
    def ranks(self) -> int:
        return max((len(spent) for spent in self.seconds.values()), default=0)

    @cached_property
    def minimum(self) -> dict[str, float]:
        return {name: min(spent) for name, spent in self.seconds.items()}

    @cached_property
    def mean(self) -> dict[str, float]:
        """They sum to the length of the stretch, wall time, as a rank has it on average."""
        return {name: sum(spent) / len(spent) for name, spent in self.seconds.items()}

    @cached_property
    def maximum(self) -> dict[str, float]:
        return {name: max(spent) for name, spent in self.seconds.items()}

    @property
    def slowest(self) -> int:
        """The number of the rank that the others wait for; the first of equals."""
        spent = self.seconds.get(TALK, [0.0] * self.ranks)
        return min(range(len(spent)), key=spent.__getitem__)

    @property
    def of_slowest(self) -> dict[str, float]:
        """Seconds of the slowest rank by phase."""
        return {name: spent[self.slowest] for name, spent in self.seconds.items()}

    @property
    def longest_phase(self) -> str:
        """Where the slowest rank spends more than the others do on average, the most so of all phases."""
        excess = {name: spent - self.mean[name] for name, spent in self.of_slowest.items() if name != TALK}
        return max(excess, key=excess.__getitem__, default="other")

    @property
    def waited_seconds(self) -> float:
        """For which the others waited for the slowest rank: their mean `communication` less its own."""
        spent = self.seconds.get(TALK, ())
        if len(spent) < 2:
            return 0.0
        own = spent[self.slowest]
        return (sum(spent) - own) / (len(spent) - 1) - own

    @property
    def waited_share(self) -> float:
        """`waited_seconds` over the wall time, in 0..1."""
        wall = sum(self.mean.values())
        return self.waited_seconds / wall if wall > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"rank {self.slowest} of {self.ranks} is the slowest: the others wait for it {100 * self.waited_share:.0f} "
            f"% of the time, above all in its {self.longest_phase.replace('_', ' ')}"
        )

    def __add__(self, later: RankTimes) -> RankTimes:
        """Both stretches, of as many ranks, as one."""
        names = dict.fromkeys([*self.seconds, *later.seconds])
        nothing = [0.0] * max(self.ranks, later.ranks)
        return RankTimes(
            steps=self.steps + later.steps,
            seconds={
                name: [
                    one + other
                    for one, other in zip(
                        self.seconds.get(name, nothing), later.seconds.get(name, nothing), strict=True
                    )
                ]
                for name in names
            },
        )
