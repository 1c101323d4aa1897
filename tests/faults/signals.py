"""Every signal a scheduler sends, at random moments of a run, its start included: `python -m tests.faults.signals`.

A moment is drawn over the whole time of a run, from when its handlers are in place. Signals that stop a run are sent to
one that is started again each time until it ends; after that, and after each run that only saved or showed stacks, the
weights are those of a run that nothing disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.runs import Run, write_data, write_settings
from tests.resume import lasting, same_bits
from trainer.process.signals import HEARD, STOPS

STEPS = 2000
"""Of the run that is disturbed: some seconds."""
MOST_SECONDS = 3600
"""A process takes less, on whatever machine."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one signal."""

    number: signal.Signals
    after_seconds: float
    code: int
    said: str

    @property
    def problem(self) -> str | None:
        """What is wrong with it, or None: a run that stopped says so and gives 143, one that had ended gives 0."""
        allowed = (0, 143) if self.number in STOPS else (0,)
        if self.code not in allowed:
            return f"{self.number.name} after {self.after_seconds:.2f} s: exit code {self.code}\n{self.said}"
        if "Traceback (most recent call last)" in self.said or not (self.code == 0 or self.said.strip()):
            return f"{self.number.name} after {self.after_seconds:.2f} s said:\n{self.said}"
        return None


def hears(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def disturbed(config: Path, run: Path, number: signal.Signals, after_seconds: float) -> Outcome:
    """A process of the run that gets the signal so long after its handlers are in place."""
    process = Run(config, run)
    process.wait_until(lambda: hears(process.process.pid, number))
    time.sleep(after_seconds)  # the moment is what varies; nothing waits on it
    process.process.send_signal(number)
    code = process.end(at_most_seconds=MOST_SECONDS)
    return Outcome(number=number, after_seconds=after_seconds, code=code, said=process.said())


def same_end(run: Path, whole: Path) -> bool:
    """Whether two runs left the same weights and the same steps."""
    (tensors, steps, estimates), (expected, all_steps, all_estimates) = lasting(run), lasting(whole)
    return steps == all_steps and estimates == all_estimates and same_bits(tensors, expected)


def main() -> int:
    """Sends every signal at so many random moments; prints a line for each, and what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.signals", description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="of each signal")
    names = [number.name.removeprefix("SIG") for number in HEARD]
    parser.add_argument(
        "--signals", nargs="+", choices=names, default=names, metavar="SIG", help=f"of {' '.join(names)}"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of the run that is disturbed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, problems = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory(prefix="signals-") as name:
        folder = Path(name)
        config = write_settings(folder / "config.toml", write_data(folder / "data"), steps=arguments.steps)
        began = time.monotonic()
        assert Run(config, folder / "whole").end(at_most_seconds=MOST_SECONDS) == 0
        seconds = time.monotonic() - began
        for number in (signal.Signals[f"SIG{name}"] for name in arguments.signals):
            outcomes, wrong, same = [], [], True
            turn = 0
            for _ in range(arguments.moments):
                run = folder / f"{number.name}-{turn}"
                outcomes.append(disturbed(config, run, number, chance.uniform(0, seconds)))
                wrong += [problem] if (problem := outcomes[-1].problem) else []
                if outcomes[-1].code == 0:
                    same, turn = same and same_end(run, folder / "whole"), turn + 1
            last = folder / f"{number.name}-{turn}"
            if last.exists():
                assert Run(config, last).end(at_most_seconds=MOST_SECONDS) == 0
                same = same and same_end(last, folder / "whole")
            codes = {code: sum(outcome.code == code for outcome in outcomes) for code in (0, 143)}
            print(
                f"{number.name:8} {len(outcomes)} moments within {seconds:.1f} s: {codes[143]} stopped, {codes[0]} "
                f"ended; {len(wrong)} wrong; end {'the same' if same else 'ANOTHER'}",
                *wrong,
                sep="\n",
                flush=True,
            )
            problems += len(wrong) + (not same)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
