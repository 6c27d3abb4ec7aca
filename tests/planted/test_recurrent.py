"""Recurrent networks: each step of a sequence is a sample, each layer and direction of a fused kernel a site."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def _unrolled(x, h, w_ih, w_hh, b_ih, b_hh):
    """Pre-activations [B, units, T] and states [B, T, units] of a ReLU recurrence over x of shape [B, T, D]."""
    pre, states = [], []
    for t in range(x.shape[1]):
        z = F.linear(x[:, t], w_ih, b_ih) + F.linear(h, w_hh, b_hh)
        h = z.relu()
        pre.append(z)
        states.append(h)
    return torch.stack(pre, 2), torch.stack(states, 1)


def _weights(rnn, layer, suffix=""):
    return [getattr(rnn, f"{n}_l{layer}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _bury(rnn, name, *units):
    with torch.no_grad():
        getattr(rnn, name).fill_(0.3)[list(units)] = -30


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_rnn_with_relu(planted, batch_first, layers):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(4, 6, layers, nonlinearity="relu", batch_first=batch_first)
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            return F.relu(self.head(self.rnn(x)[0]))

    model = Model()
    for layer in range(layers):
        _bury(model.rnn, f"bias_ih_l{layer}", layer, 5)
    planted.bury(model.head, 2, lift=2.0)

    def oracle(x):
        states = x if batch_first else x.transpose(0, 1)
        sites = {}
        for layer in range(layers):
            zero = torch.zeros(states.shape[0], 6)
            sites[f"rnn.l{layer}:relu"], states = _unrolled(states, zero, *_weights(model.rnn, layer))
        return {**sites, ":relu": model.head(states).movedim(-1, 1)}

    data = planted.batches(7, 4, axis=0 if batch_first else 1, inputs=256, batch=64)
    dead = {f"rnn.l{layer}:relu": {layer, 5} for layer in range(layers)}
    planted(model, data, oracle, {**dead, ":relu": {2}})


def test_a_bidirectional_rnn(planted):
    rnn = nn.RNN(4, 6, nonlinearity="relu", bidirectional=True, batch_first=True)
    _bury(rnn, "bias_ih_l0", 1)
    _bury(rnn, "bias_hh_l0_reverse", 2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            return self.rnn(x)[1]

    def oracle(x):
        zero = torch.zeros(x.shape[0], 6)
        back = _unrolled(x.flip(1), zero, *_weights(rnn, 0, "_reverse"))[0].flip(2)
        return {"rnn.l0:relu": _unrolled(x, zero, *_weights(rnn, 0))[0], "rnn.l0_reverse:relu": back}

    data = planted.batches(5, 4, inputs=256)
    planted(Model(), data, oracle, {"rnn.l0:relu": {1}, "rnn.l0_reverse:relu": {2}})


class Unrolled(nn.Module):
    """A cell in a loop over time; each turn is a use, and so a site."""

    def __init__(self, written):
        super().__init__()
        self.written = written
        self.cell = nn.RNNCell(4, 6, nonlinearity="relu")
        self.i, self.h = nn.Linear(4, 6), nn.Linear(6, 6)
        self.act = nn.ReLU()

    def step(self, x, h):
        if self.written == "cell":
            return self.cell(x, h)
        z = self.i(x) + self.h(h)
        return self.act(z) if self.written == "module" else F.relu(z)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 6)
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
        return h


@pytest.mark.parametrize("written", ["cell", "module", "function"])
def test_a_cell_in_a_loop_is_a_site_at_each_turn(planted, written):
    model = Unrolled(written)
    _bury(model.cell, "bias_ih", 3)
    planted.bury(model.i, 3)
    base = {"cell": "cell:relu", "module": "act", "function": ":relu"}[written]
    names = [base, f"{base}#1", f"{base}#2"]
    cell = model.cell

    def oracle(x):
        if written == "cell":
            weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        else:
            weights = (model.i.weight, model.h.weight, model.i.bias, model.h.bias)
        pre, _ = _unrolled(x, torch.zeros(x.shape[0], 6), *weights)
        return dict(zip(names, pre.unbind(2), strict=True))

    planted(model, planted.batches(3, 4), oracle, {name: {3} for name in names})


def test_an_lstm_below_a_relu(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 5)

        def forward(self, x):
            out, (h, c) = self.lstm(x)
            return F.relu(self.fc(out[:, -1])), F.relu(self.fc(h[-1] + c[0]))

    model = Model()
    planted.bury(model.fc, 1)

    def oracle(x):
        out, (h, c) = model.lstm(x)
        return {":relu": model.fc(out[:, -1]), ":relu#1": model.fc(h[-1] + c[0])}

    planted(model, planted.batches(5, 4), oracle, {":relu": {1}, ":relu#1": {1}})


def test_a_decoder_that_feeds_on_itself(planted):
    """Encoder, then a loop in which the output of a step is the input of the next."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.cell = nn.GRU(4, 6, batch_first=True), nn.GRUCell(5, 6)
            self.out, self.start = nn.Linear(6, 5), nn.Parameter(torch.zeros(5))

        def forward(self, x):
            h = self.encoder(x)[1][0]
            y = self.start.expand(x.shape[0], -1)
            outputs = []
            for _ in range(2):
                h = self.cell(y, h)
                y = F.relu(self.out(h))
                outputs.append(y)
            return torch.stack(outputs, 1)

    model = Model()
    planted.bury(model.out, 4, lift=1.0)

    def oracle(x):
        h = model.encoder(x)[1][0]
        y = model.start.expand(x.shape[0], -1)
        sites = {}
        for name in (":relu", ":relu#1"):
            h = model.cell(y, h)
            sites[name] = model.out(h)
            y = sites[name].relu()
        return sites

    planted(model, planted.batches(5, 4), oracle, {":relu": {4}, ":relu#1": {4}})
