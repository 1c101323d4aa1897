"""Recurrent layers and cells in operations that have a forward-mode formula on every device.

The fused kernels of whole layers (oneDNN, cuDNN) have none; torch's own layers, which run with those switched off, have
one on the CPU. On CUDA they and the cells call fused cells (`_thnn_fused_lstm_cell`, `_thnn_fused_gru_cell`), which
have none either, so there LSTM and GRU are written out (torch's own decompositions leave out the dropout between
layers).

On CUDA a layer also moves weights that it meets for the first time into one buffer for cuDNN. A dual tensor would lose
the layout that it shares with its tangent (on an H200 torch then failed at an assertion of its own), so in a pass
weights stay where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
"""Layers that run as fused kernels."""


def without_fused_kernels(func: Any, args: Any, kwargs: Any) -> Any:
    """The recurrent layer `func` by torch's own loop over time; its dropout masks are those of torch's generator."""
    with _fused_layers_off():
        return func(*args, **kwargs)


def in_forward_mode(func: Any, args: Any, kwargs: Any) -> Any:
    """What has a formula in place of `func`, as a function of no arguments; None for what needs nothing."""
    if func in RECURRENT:
        written_out = _LAYERS.get(func) if has_fused_cells(args[0]) else None
        return lambda: without_fused_kernels(written_out or func, args, kwargs)
    if func in _CELLS and has_fused_cells(args[0]):
        return lambda: _CELLS[func](*args, **kwargs)
    return None


def has_fused_cells(x: Tensor) -> bool:
    """Whether torch computes LSTM and GRU cells on `x`'s device in one kernel, which has no forward-mode formula."""
    return x.device.type != "cpu"


@contextmanager
def weights_left_in_place(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
    """Within it no recurrent layer among `modules` moves its weights into one buffer, also not on the caller's word."""
    held = [vars(module) for _, module in modules if isinstance(module, nn.RNNBase)]
    own = [attributes.get("flatten_parameters") for attributes in held]
    for attributes in held:
        attributes["flatten_parameters"] = _nothing
    try:
        yield
    finally:
        for attributes, before in zip(held, own, strict=True):
            if before is None:
                del attributes["flatten_parameters"]
            else:
                attributes["flatten_parameters"] = before


def _nothing() -> None:
    """In place of `flatten_parameters`."""


@contextmanager
def _fused_layers_off() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
        yield


def _lstm(inputs: Tensor, second: Any, third: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.lstm` of padded rows (inputs, states, weights, ...) or packed ones (inputs, rows a time, states, ...)."""
    packed = isinstance(second, Tensor)
    states, weights, *options = (third, *rest) if packed else (second, third, *rest)
    h, c = states
    output, ended = _layers(
        inputs, second if packed else None, list(zip(h, c, strict=True)), weights, *options, cell=_lstm_cell_projected
    )
    return output, torch.stack([h for h, _ in ended]), torch.stack([c for _, c in ended])


def _gru(inputs: Tensor, second: Any, third: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    """`torch.gru`, likewise."""
    packed = isinstance(third, Tensor)
    states, weights, *options = (third, *rest) if packed else (second, third, *rest)

    def cell(x: Tensor, state: tuple[Tensor, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        return (_gru_cell(x, state[0], *weights),)

    begun = [(h,) for h in states]
    output, ended = _layers(inputs, second if packed else None, begun, weights, *options, cell=cell)
    return output, torch.stack([h for (h,) in ended])


def _layers(  # noqa: PLR0917 (the order of torch's own arguments)
    inputs: Tensor,
    packed_rows: Tensor | None,
    states: list[tuple[Tensor, ...]],
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
    *,
    cell: Callable[..., tuple[Tensor, ...]],
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Outputs in the inputs' form, and the last state of each direction of each layer.

    `states` and the list returned have one state a layer and direction, layers first.
    """
    padded = packed_rows is None
    # torch keeps the rows of each time on the host
    times = list(inputs.unbind(1 if batch_first else 0) if padded else inputs.split(packed_rows.tolist()))
    each, directions = len(weights) // len(states), 2 if bidirectional else 1
    ended = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = weights[index * each : (index + 1) * each]
            own = own if has_biases else (*own[:2], None, None, *own[2:])
            found, last = _over_time(times, states[index], own, cell=cell, backwards=direction == 1)
            outputs.append(found)
            ended.append(last)
        joined = [torch.cat(parts, 1) for parts in zip(*outputs, strict=True)]
        together = torch.stack(joined) if padded else torch.cat(joined)
        if dropout and train and layer < num_layers - 1:
            together = torch.dropout(together, dropout, train=True)
            joined = together.unbind(0) if padded else together.split([len(rows) for rows in times])
        times = list(joined)
    return (together.transpose(0, 1) if padded and batch_first else together), ended


def _over_time(
    times: Sequence[Tensor],
    state: tuple[Tensor, ...],
    weights: Sequence[Tensor | None],
    *,
    cell: Callable[..., tuple[Tensor, ...]],
    backwards: bool,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """One layer in one direction; of packed rows, those that are not there at a time keep their state."""
    outputs = []
    for x in reversed(times) if backwards else times:
        rows = len(x)
        moved = cell(x, tuple(part[:rows] for part in state), *weights)
        state = tuple(
            new if rows == len(old) else torch.cat([new, old[rows:]]) for new, old in zip(moved, state, strict=True)
        )
        outputs.append(moved[0])
    return (outputs[::-1] if backwards else outputs), state


def _lstm_cell_projected(
    x: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor, projection: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if len(weights) > 4:
        *weights, projection = weights  # pyright: ignore[reportAssignmentType]
    h, c = _lstm_cell(x, state, *weights)
    return (h if projection is None else functional.linear(h, projection)), c


def _lstm_cell(  # noqa: PLR0917 (the signature of torch.lstm_cell)
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    h, c = hx
    i, f, g, o = (functional.linear(x, w_ih, b_ih) + functional.linear(h, w_hh, b_hh)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(  # noqa: PLR0917 (the signature of torch.gru_cell)
    x: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    r_x, z_x, n_x = functional.linear(x, w_ih, b_ih).chunk(3, 1)
    r_h, z_h, n_h = functional.linear(hx, w_hh, b_hh).chunk(3, 1)
    new = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return new + (z_x + z_h).sigmoid() * (hx - new)


_LAYERS = {torch.lstm: _lstm, torch.gru: _gru}
_CELLS = {torch.lstm_cell: _lstm_cell, torch.gru_cell: _gru_cell}
