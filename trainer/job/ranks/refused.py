"""Settings that several ranks cannot have, each with its reason, and those that get in each other's way."""

from __future__ import annotations

from trainer.config import Config, ConfigError

ELEMENTWISE = (
    *("nadamw", "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd"),
    *("schedulefree_adamw", "schedulefree_radam", "schedulefree_sgd"),
)
"""Optimizers that move each number by what is known of it alone, so that a table may lie on several ranks."""


def refuse_on_ranks(config: Config, ranks: int) -> None:
    """Raises ConfigError, in one line, for what `ranks` ranks cannot have together."""
    if ranks == 1:
        return
    name = config.optimizer.name.lower()
    refusals = (
        (
            config.optimizer.factory is not None,
            f"optimizer.factory = {config.optimizer.factory!r} may need norms of the whole model, of which each rank "
            f"has a part; take one of {', '.join(ELEMENTWISE)}",
        ),
        (
            config.optimizer.factory is None and name not in ELEMENTWISE,
            f"optimizer.name = {config.optimizer.name!r} needs norms or products of whole parameters, of which each "
            f"rank has a part; take one of {', '.join(ELEMENTWISE)}",
        ),
        (
            config.model.own,
            f"model.factory = {config.model.factory!r} makes its tables whole, and each rank holds some rows of "
            "every table; take dlrm, dcn_v2 or deepfm",
        ),
        (config.data.follow, "data.follow waits for rows, which each rank would do for a time of its own"),
        (
            config.eval.progressive is True,
            "eval.progressive scores batches of which each rank has a share; leave it out",
        ),
        (
            config.stepsize.measuring.diagnostics != "none",
            f"stepsize.measuring.diagnostics = {config.stepsize.measuring.diagnostics!r} takes gradients of the whole "
            "batch, of which each rank has a share; leave it out",
        ),
        (
            config.stepsize.measuring.curvature != "ggn",
            f"stepsize.measuring.curvature = {config.stepsize.measuring.curvature!r} is a product with a matrix of "
            "the whole model, of which each rank has a part; take 'ggn'",
        ),
    )
    for refused, reason in refusals:
        if refused:
            raise ConfigError(f"on {ranks} ranks: {reason}, or train on one rank")


def timeout_warning(config: Config, ranks: int) -> str | None:
    """A warning if a rank would be given up while it still tries to read; None if it is not."""
    if ranks == 1 or config.data.retry_seconds < config.ranks.timeout_seconds:
        return None
    return (
        f"a rank whose read fails tries it again for data.retry_seconds ({config.data.retry_seconds:g}), and others "
        f"wait for it for ranks.timeout_seconds ({config.ranks.timeout_seconds:g}): make these the longer, or all are "
        "given up while it tries"
    )
