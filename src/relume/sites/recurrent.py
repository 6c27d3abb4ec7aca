"""Activations inside torch's fused recurrent kernels (`nn.RNN`, `nn.RNNCell`), which apply them where nothing is seen.

The hidden states are the activations' outputs, so each step's pre-activation is recomputed from the states the kernel
returned: W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, in one batched product per layer. LSTM and GRU gates are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from relume.activations import Activation
from relume.activations import catalogue as of

FUSED: dict[Any, Activation] = {
    torch.rnn_relu: of.relu(),
    torch.rnn_tanh: of.tanh(),
}
CELLS: dict[Any, Activation] = {
    torch.rnn_relu_cell: of.relu(),
    torch.rnn_tanh_cell: of.tanh(),
}
GATED = {torch.lstm: "LSTM", torch.gru: "GRU", torch.lstm_cell: "LSTM", torch.gru_cell: "GRU"}


class Inner(NamedTuple):
    """One layer and direction: its pre-activations and outputs, shape [T, B, units] or [B, T, units]."""

    activation: Activation
    label: str
    x: Tensor
    y: Tensor


def cell(func: Any, args: tuple[Any, ...], out: Tensor) -> Inner:
    """`nn.RNNCell`: one step, pre-activation of shape [B, units] or [units]."""
    x, h, w_ih, w_hh = args[:4]
    b_ih, b_hh = (*args[4:6], None, None)[:2]
    pre = _agreeing(func, F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh), out)
    return Inner(CELLS[func], "", pre, out)


def _agreeing(func: Any, pre: Tensor, y: Tensor) -> Tensor:
    """The kernel may round otherwise than the recomputation: where ReLU fired is read off its own output."""
    if func in (torch.rnn_relu, torch.rnn_relu_cell):
        return torch.where(y > 0, y, pre.clamp(max=0))
    return pre


def layers(func: Any, args: tuple[Any, ...], out: Any) -> Iterator[Inner] | None:
    """Every layer and direction of an `nn.RNN` call, or None when they can't be told apart from outside.

    That is so for packed sequences and, in training, for dropout between layers: its mask is drawn inside the kernel.
    """
    if isinstance(args[3], bool) is False:  # packed: (data, batch_sizes, hx, params, ...)
        return None
    x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first = args
    if train and dropout and num_layers > 1:
        return None
    return _layers(func, x, hx, params, has_biases, num_layers, bidirectional, batch_first, out)


def _layers(
    func: Any,
    x: Tensor,
    hx: Tensor,
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    out: Any,
) -> Iterator[Inner]:
    directions = 2 if bidirectional else 1
    each = 4 if has_biases else 2
    time = 1 if batch_first else 0
    for layer in range(num_layers):
        outputs: list[Tensor] = []
        block = params[layer * directions * each : (layer + 1) * directions * each]
        start = hx[layer * directions : (layer + 1) * directions]
        y = (
            out[0]
            if num_layers == 1
            else func(x, start, block, has_biases, 1, 0.0, False, bidirectional, batch_first)[0]
        )
        for d, states in enumerate(y.chunk(directions, -1)):
            w_ih, w_hh, *biases = block[d * each : (d + 1) * each]
            b_ih, b_hh = biases or (None, None)
            first = start[d].unsqueeze(time)
            length = states.shape[time]
            before = (
                torch.cat([first, states.narrow(time, 0, length - 1)], time)
                if d == 0
                else torch.cat([states.narrow(time, 1, length - 1), first], time)
            )
            pre = _agreeing(func, F.linear(x, w_ih, b_ih) + F.linear(before, w_hh, b_hh), states)
            label = f"l{layer}{'_reverse' if d else ''}"
            yield Inner(FUSED[func], label, pre, states)
            outputs.append(states)
        x = torch.cat(outputs, -1)
