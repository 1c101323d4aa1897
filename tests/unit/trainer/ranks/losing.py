"""What a rank says that loses another one; to be run in processes of their own."""

from __future__ import annotations

import os

from pipeline.errors import InputError
from trainer.ranks import RankRefusedError, Ranks, RanksLostError


def lost(ranks: Ranks, word: str) -> str:
    """Rank 1 leaves, with a word or without; what rank 0 says of it at its next agreement."""
    ranks.step = 17
    ranks.gather([0.0])
    if ranks.rank == 1:
        if word:
            ranks.say_failed(InputError(word))
        os._exit(0)
    try:
        while True:
            ranks.gather([0.0])
    except (RanksLostError, RankRefusedError) as error:
        return f"{error}"


def losses(ranks: Ranks) -> str:
    return lost(ranks, "data.path: there is no /nowhere")


def silent_losses(ranks: Ranks) -> str:
    return lost(ranks, "")
