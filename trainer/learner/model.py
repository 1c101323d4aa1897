"""The click model of a configuration: one that comes with the trainer, or what the user's factory makes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stepsize import BCEWithLogits, MeasurementError, StepSizeWorker
from trainer.learner.config import ModelConfig
from trainer.learner.factory import made
from trainer.learner.models import DLRM, SHIPPED
from trainer.ranks import ALONE, Ranks

__all__ = ["DLRM", "build_model", "check_model", "count_parameters", "rows_of_tables", "table_moduli"]

CHECKED_ROWS = 7
"""Of the batch that a model is checked with: not a number that a model has for anything else."""

_UNMEASURED = 'set stepsize.measuring.method = "secant" or stepsize.policy = "none"'


def table_moduli(config: ModelConfig) -> int | tuple[int, ...]:
    """What buckets are reduced by to be rows of a table, `mod`: one number, or each feature's own.

    `config` is as `ModelConfig.of_columns` gives it.
    """
    resolved = config.resolved()
    assert resolved.table_rows is not None
    if resolved.feature_rows is None:
        return resolved.table_rows
    assert not isinstance(resolved.feature_rows, dict), "the columns' names are not looked up"
    return resolved.feature_rows


def rows_of_tables(config: ModelConfig, bucket_sizes: Sequence[int] | None) -> int | tuple[int, ...]:
    """Rows of the shared table, or of each feature's own: above the largest of its ids, which are
    int32(float32(bucket)) mod `table_moduli`.

    Raises: ValueError if bucket sizes are needed and not given, or the tables together have 2³¹ rows or more.
    """
    moduli = table_moduli(config)
    if config.tables == "shared":
        return moduli
    if bucket_sizes is None:
        raise ValueError('model.tables is "per_feature", which needs the bucket sizes of the features')
    moduli = (moduli,) * len(bucket_sizes) if isinstance(moduli, int) else moduli
    sizes = tuple(min(rows, int(np.float32(size - 1)) + 1) for rows, size in zip(moduli, bucket_sizes, strict=True))
    if sum(sizes) >= 2**31:
        raise ValueError(
            f"model.tables: together they have {sum(sizes):,} rows; lower model.table_rows or model.feature_rows"
        )
    return sizes


def build_model(
    config: ModelConfig,
    *,
    dense_features: int,
    sparse_features: int,
    seed: int,
    bucket_sizes: Sequence[int] | None = None,
    ranks: Ranks = ALONE,
) -> Any:
    """The initialized model on the CPU; equal seeds give equal weights, whatever the global generator's state.

    Of several `ranks` each has the rows of its tables that are its own, with the values that one rank would have given
    them.

    Raises: ValueError for a configuration that `ModelConfig.resolved` refuses, options that the model does not take,
    or a factory that cannot be used. A model of the user's own is made whole; several ranks have none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _sized(config, dense_features, sparse_features, bucket_sizes, device="cpu", ranks=ranks)
    if callable(initialize := getattr(model, "initialize", None)):
        initialize(torch.Generator().manual_seed(seed))
    return model


def count_parameters(
    config: ModelConfig, *, dense_features: int, sparse_features: int, bucket_sizes: Sequence[int] | None = None
) -> int:
    """Parameters of the model that `build_model` would make, without memory for it.

    0 for a model of the user's that cannot be made without.
    Raises: as `build_model`.
    """
    if not config.own:
        model = _sized(config, dense_features, sparse_features, bucket_sizes, device="meta")
    else:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                model = _sized(config, dense_features, sparse_features, bucket_sizes, device="meta")
        except ValueError:
            return 0
    return sum(parameter.numel() for parameter in model.parameters())


def _sized(
    config: ModelConfig,
    dense_features: int,
    sparse_features: int,
    bucket_sizes: Sequence[int] | None,
    *,
    device: str,
    ranks: Ranks = ALONE,
) -> nn.Module:
    sizes = config.resolved()
    arguments: dict[str, Any] = {
        "dense_features": dense_features,
        "sparse_features": sparse_features,
        "table_rows": rows_of_tables(sizes, bucket_sizes),
    }
    if sizes.own:
        assert sizes.factory_folder
        model = made("model.factory", sizes.factory, sizes.factory_folder, options=sizes.options, **arguments)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model.factory = {sizes.factory!r} returns a {type(model).__name__}; return a torch.nn.Module"
            )
        if lazy := [name for name, weight in model.named_parameters() if is_lazy(weight)]:
            raise ValueError(
                f"model.factory = {sizes.factory!r}: the size of {lazy[0]} is left open; give its layer the sizes"
            )
        return model
    make = SHIPPED[sizes.factory]
    known = set(inspect.signature(make).parameters)
    arguments |= {name: getattr(sizes, name) for name in ("embedding_dim", "bottom", "top", "dropout") if name in known}
    free = known - set(arguments) - {"device", "ranks"}
    for name in sizes.options:
        if name not in free:
            takes = f"it has {', '.join(sorted(free))}" if free else "it has none"
            raise ValueError(f"model.options.{name}: {sizes.factory} has no such setting; {takes}")
    try:
        return make(**arguments, **sizes.options, device=device, ranks=ranks)
    except ValueError as error:
        raise ValueError(f"model.options.{error}") from None


def check_model(
    model: nn.Module,
    config: ModelConfig,
    *,
    dense_features: int,
    table_rows: int | tuple[int, ...],
    sparse_features: int,
    measured: bool,
    begins: bool,
) -> None:
    """Runs the user's own model on a small batch, in evaluation mode; afterwards it is what it was.

    Where its training `begins` its answers are compared with each other, and one gradient is taken; a run that was
    begun without that stays readable. With `measured` a copy makes one step, whose α* is measured by one JVP.
    Raises: ValueError for a model that fails; logits that are not (R,) floats or not finite; what α* cannot be measured
    of, such as an operation without a forward-mode derivative or a model that cannot be copied. Where training
    `begins` also for one that has nothing to train or sparse gradients, writes to its inputs or answers a row otherwise
    beside other rows.
    """
    what = f"model.factory = {config.factory!r}"
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand((CHECKED_ROWS, dense_features), generator=generator)
    sizes = (table_rows,) * sparse_features if isinstance(table_rows, int) else table_rows
    ids = torch.stack([torch.randint(n, (CHECKED_ROWS,), generator=generator, dtype=torch.int32) for n in sizes])
    with torch.random.fork_rng(devices=[]), _put_back(model):
        model.eval()
        with torch.no_grad():
            _check_answers(what, model, dense, ids, compared=begins)
        trained = _copied(what, model) if measured else model
        trained.train()
        if begins:
            _check_trained(what, trained, dense, ids)
        if measured:
            _check_measured(what, trained, dense, ids)


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Afterwards modes and buffers are what they were; buffers without the graph that a forward pass may give them."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, value, None if value is None else value.clone())
        for module in modes
        for name, value in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, name, value, kept in buffers:
            if value is not None and kept is not None:
                value.detach().copy_(kept)
            module._buffers[name] = kept if value is not None and value.grad_fn is not None else value


def _check_answers(what: str, model: nn.Module, dense: Tensor, ids: Tensor, *, compared: bool) -> None:
    """Of a batch, and `compared` with those of a row alone and of the same rows again."""
    given = dense.clone(), ids.clone()
    logits = _called(what, model, dense, ids)
    _check_logits(what, logits)
    if not compared:
        return
    if not torch.equal(dense, given[0]) or not torch.equal(ids, given[1]):
        raise ValueError(f"{what}: its model writes to its inputs, which batches share; let it make new tensors")
    scale = float(logits.abs().max())
    for rows in (1, CHECKED_ROWS):
        again = _called(what, model, dense[:rows], ids[:, :rows])
        _check_form(what, again, rows=rows)
        if not torch.allclose(logits[:rows].double(), again.double(), rtol=0.0, atol=1e-2 * scale):
            raise ValueError(
                f"{what}: in evaluation mode the logit of a row depends on the other rows, or on chance; let it depend "
                "on its row alone, or on self.training"
            )


def _called(what: str, model: nn.Module, dense: Tensor, ids: Tensor) -> Any:
    try:
        return model(dense, ids)
    except Exception as error:
        raise ValueError(
            f"{what}: its model fails on dense {tuple(dense.shape)} and ids {tuple(ids.shape)}: "
            f"{_first_line(error)}; let it take (R, D) float32 and (S, R) int32"
        ) from error


def _check_logits(what: str, logits: Any) -> None:
    _check_form(what, logits, rows=CHECKED_ROWS)
    if not logits.isfinite().all():
        raise ValueError(f"{what}: its logits are not finite at the start; initialize its weights otherwise")


def _check_form(what: str, logits: Any, *, rows: int) -> None:
    said = f"{rows} rows" if rows > 1 else "1 row"
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{what}: its model returns a {type(logits).__name__} for {said}; return a tensor of logits (R,)"
        )
    if logits.shape != (rows,):
        squeezed = logits.shape == (rows, 1) or (rows == 1 and not logits.shape)
        remedy = "end it with .squeeze(1)" if squeezed else "return one logit a row"
        raise ValueError(f"{what}: its logits are of shape {tuple(logits.shape)} for {said}; {remedy}")
    if not logits.is_floating_point():
        raise ValueError(f"{what}: its logits are {logits.dtype}; return floating-point numbers")


def _check_trained(what: str, model: nn.Module, dense: Tensor, ids: Tensor) -> None:
    """One gradient, in training mode; the weights and their own gradients are as they were."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not trained:
        raise ValueError(f"{what}: its model has no parameters to train; give it some")
    with torch.enable_grad():
        logits = _called(what, model, dense, ids)
        _check_logits(f"{what}, in training mode", logits)
        if not logits.requires_grad:
            raise ValueError(f"{what}: no gradient goes from its logits to its weights; do not detach them")
        try:
            loss = BCEWithLogits().per_sample(logits, _labels(dense)).mean()
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        except RuntimeError as error:
            raise ValueError(f"{what}: its gradient cannot be taken: {_first_line(error)}; correct it") from error
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is not None and gradient.is_sparse:
            raise ValueError(f"{what}: the gradient of {name} is a sparse tensor; make its table with sparse=False")


def _check_measured(what: str, model: nn.Module, dense: Tensor, ids: Tensor) -> None:
    """One step, in training mode, and its measurement."""
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=1e-3), BCEWithLogits()
    labels = _labels(dense)
    worker = StepSizeWorker(model, optimizer, loss)
    try:
        with torch.enable_grad():
            loss.per_sample(_called(what, model, dense, ids), labels).mean().backward()
            with worker.around_step((dense, ids), labels, step=0):
                optimizer.step()
        worker.poll(step=0)
    except (MeasurementError, RuntimeError) as error:
        raise ValueError(
            f"{what}: α* cannot be measured: {_first_line(error)}; write it in other operations, or {_UNMEASURED}"
        ) from error
    finally:
        worker.close()


def _copied(what: str, model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"{what}: α* is tried on a copy of its model, which cannot be made: {_first_line(error)}; let "
            f"copy.deepcopy copy it, or {_UNMEASURED}"
        ) from error


def _labels(dense: Tensor) -> Tensor:
    return (torch.arange(len(dense)) % 2).float()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
