"""Sequences: units are features, tokens are samples, and inputs are what the batch axis says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.tensor.*:UserWarning")


def _units_second(x):
    return x.movedim(-1, 1)


def test_tokens_are_samples(planted):
    """[B, T, D]: as many tokens as features, so that the shape says nothing."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())
    planted.bury(model[0], 3)
    planted.bury(model[2], 0)

    def oracle(x):
        h = model[0](x)
        return {"1": _units_second(h), "3": _units_second(model[2](h.clamp(min=0)))}

    census = planted(model, planted.batches(8, 8), oracle, {"1": {3}, "3": {0}})
    assert census["1"].site.axis == -1


def test_features_first_n_d_t(planted):
    """[N, D, T], as after a 1d convolution; a linear layer over time makes time the units."""
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    planted.bury(model[0], 3)
    planted.bury(model[2], 0)

    def oracle(x):
        h = model[0](x)
        return {"1": h, "3": _units_second(model[2](h.clamp(min=0)))}

    planted(model, planted.batches(6, 6), oracle, {"1": {3}, "3": {0}})


class SequenceFirst(nn.Module):
    """[T, B, D]: the recurrent module's `batch_first=False` says so, after a site that comes before it."""

    def __init__(self):
        super().__init__()
        self.fc1, self.rnn, self.fc2 = nn.Linear(6, 6), nn.GRU(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        h, _ = self.rnn(F.relu(self.fc1(x)))
        return F.relu(self.fc2(h))


def test_batch_second(planted):
    model = SequenceFirst()
    planted.bury(model.fc1, 2)
    planted.bury(model.fc2, 1, lift=1.0)

    def oracle(x):
        z = model.fc1(x)
        return {
            ":relu": z.permute(1, 2, 0),
            ":relu#1": model.fc2(model.rnn(z.clamp(min=0))[0]).permute(1, 2, 0),
        }

    data = planted.batches(9, 6, axis=1, batch=64)
    planted(model, data, oracle, {":relu": {2}, ":relu#1": {1}}, input_axis=1)


def test_batch_second_is_understood_from_the_module_that_is_handed_the_input(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(6, 5), nn.Linear(5, 4)

        def forward(self, x):
            return F.relu(self.fc(self.rnn(x)[0]))

    model = Model()
    planted.bury(model.fc, 1, lift=1.0)
    data = planted.batches(9, 6, axis=1, batch=64)
    planted(model, data, lambda x: {":relu": model.fc(model.rnn(x)[0]).permute(1, 2, 0)}, {":relu": {1}})


def _layer(norm_first, activation, d=8, hidden=12, dropout=0.0):
    return nn.TransformerEncoderLayer(
        d, 2, hidden, dropout=dropout, activation=activation, norm_first=norm_first, batch_first=True
    )


def _encoder_steps(layer, x, mask=None):
    """The pre-activation and the output of one encoder layer, written out."""

    def attend(x):
        return layer.dropout1(layer.self_attn(x, x, x, need_weights=False, key_padding_mask=mask)[0])

    if layer.norm_first:
        x = x + attend(layer.norm1(x))
        z = layer.linear1(layer.norm2(x))
        return z, x + layer.dropout2(layer.linear2(layer.dropout(z.relu())))
    x = layer.norm1(x + attend(x))
    z = layer.linear1(x)
    return z, layer.norm2(x + layer.dropout2(layer.linear2(layer.dropout(z.relu()))))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", F.relu, nn.ReLU()], ids=["string", "function", "module"])
def test_a_transformer_layer_in_train_and_on_its_fast_path(planted, norm_first, activation):
    layer = _layer(norm_first, activation)
    planted.bury(layer.linear1, 0, 7, 11)
    name = "0.activation" if isinstance(activation, nn.Module) else "0:relu"
    data = planted.batches(5, 8, inputs=256)
    planted(
        nn.Sequential(layer), data, lambda x: {name: _units_second(_encoder_steps(layer, x)[0])}, {name: {0, 7, 11}}
    )


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_transformer_encoder(planted, norm_first, nested):
    encoder = nn.TransformerEncoder(_layer(norm_first, "relu", dropout=0.1), 2, enable_nested_tensor=False)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(encoder) if nested else encoder
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return F.relu(self.head(self.inner(x)))

    model = Model()
    planted.bury(encoder.layers[0].linear1, 2)
    planted.bury(encoder.layers[1].linear1, 5)
    planted.bury(model.head, 1)
    where = "inner.0.layers" if nested else "inner.layers"

    def oracle(x):
        one, x = _encoder_steps(encoder.layers[0], x)
        two, x = _encoder_steps(encoder.layers[1], x)
        return {
            f"{where}.0:relu": _units_second(one),
            f"{where}.1:relu": _units_second(two),
            ":relu": _units_second(model.head(x)),
        }

    data = planted.batches(5, 8, inputs=256)
    planted(model, data, oracle, {f"{where}.0:relu": {2}, f"{where}.1:relu": {5}, ":relu": {1}})


def test_a_transformer_encoder_with_a_padding_mask(planted):
    """On the fast path padded tokens are cut out (nested tensors); what is counted is all tokens, as in training."""
    encoder = nn.TransformerEncoder(_layer(False, "relu"), 2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x, mask):
            return self.encoder(x, src_key_padding_mask=mask)

    planted.bury(encoder.layers[0].linear1, 2)
    planted.bury(encoder.layers[1].linear1, 5)

    def oracle(x, mask):
        one, x = _encoder_steps(encoder.layers[0], x, mask)
        two, x = _encoder_steps(encoder.layers[1], x, mask)
        return {"encoder.layers.0:relu": _units_second(one), "encoder.layers.1:relu": _units_second(two)}

    mask = torch.arange(6)[None] >= torch.randint(2, 7, (64, 1))
    data = [(x, mask) for x in planted.batches(6, 8, inputs=256, batch=64)]
    planted(Model(), data, oracle, {"encoder.layers.0:relu": {2}, "encoder.layers.1:relu": {5}})


def test_a_whole_transformer_with_batch_second(planted):
    model = nn.Transformer(8, 2, 1, 1, 12, dropout=0.0)
    layer, decoder = model.encoder.layers[0], model.decoder.layers[0]
    planted.bury(layer.linear1, 3)
    planted.bury(decoder.linear1, 4)

    def oracle(src, tgt):
        z, memory = _encoder_steps(layer, src)
        memory = model.encoder.norm(memory)
        x = decoder.norm1(tgt + decoder.self_attn(tgt, tgt, tgt, need_weights=False)[0])
        x = decoder.norm2(x + decoder.multihead_attn(x, memory, memory, need_weights=False)[0])
        return {
            "encoder.layers.0:relu": z.permute(1, 2, 0),
            "decoder.layers.0:relu": decoder.linear1(x).permute(1, 2, 0),
        }

    data = list(zip(planted.batches(5, 8, axis=1), planted.batches(4, 8, axis=1), strict=True))
    planted(model, data, oracle, {"encoder.layers.0:relu": {3}, "decoder.layers.0:relu": {4}})


@pytest.mark.parametrize("fold", ["view", "flatten", "reshape", "unbind and stack", "rearrange"])
def test_tokens_folded_into_the_batch_are_no_inputs(planted, fold):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, x):
            b, t, d = x.shape
            folded = {
                "view": lambda: x.view(b * t, d),
                "flatten": lambda: x.flatten(0, 1),
                "reshape": lambda: x.reshape(-1, d),
                "unbind and stack": lambda: torch.stack(x.unbind(1), 1).view(-1, d),
                "rearrange": lambda: x.transpose(0, 1).reshape(t * b, d),
            }[fold]()
            return F.relu(self.fc(folded))

    model = Model()
    planted.bury(model.fc, 1)
    planted(model, planted.batches(4, 6, batch=96), lambda x: {":relu": _units_second(model.fc(x))}, {":relu": {1}})


class Attention(nn.Module):
    """Attention and MLP as GPT-like code writes them: views, transposes, masked softmax."""

    def __init__(self, d=8, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def attend(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).split(d, dim=2)
        q, k, v = (z.view(b, t, self.heads, d // self.heads).transpose(1, 2) for z in (q, k, v))
        weights = (q @ k.transpose(-2, -1)) * (1.0 / (d // self.heads) ** 0.5)
        weights = weights.masked_fill(torch.ones(t, t).tril() == 0, float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(b, t, d))

    def forward(self, x):
        x = x + self.attend(self.norm(x))
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


def test_attention_written_by_hand(planted):
    model = nn.Sequential(Attention(), Attention())
    planted.bury(model[0].fc1, 3, 31)
    planted.bury(model[1].fc1, 4)

    def pre(block, x):
        x = x + block.attend(block.norm(x))
        return block.fc1(block.norm(x))

    def oracle(x):
        return {"0:relu": _units_second(pre(model[0], x)), "1:relu": _units_second(pre(model[1], model[0](x)))}

    planted(model, planted.batches(5, 8, inputs=256), oracle, {"0:relu": {3, 31}, "1:relu": {4}})


def test_relu_linear_attention_has_heads_and_features_for_units(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x):
            b, t, _ = x.shape
            q = F.relu(self.q(x).view(b, t, 2, 4).transpose(1, 2))
            k = F.relu(self.k(x)).view(b, t, 2, 4).transpose(1, 2)
            v = self.v(x).view(b, t, 2, 4).transpose(1, 2)
            return F.relu(torch.einsum("bhtd,bhde->bhte", q, torch.einsum("bhtd,bhte->bhde", k, v)) - 1.0)

    model = Model()
    planted.bury(model.q, 6)
    planted.bury(model.k, 1)
    with torch.no_grad():
        model.v.weight[5] = 0.0
        model.v.bias[5] = -1.0

    def heads(x):
        return x.unflatten(-1, (2, 4)).transpose(1, 2)

    def oracle(x):
        q, k, v = model.q(x), model.k(x), heads(model.v(x))
        out = heads(q.relu()) @ (heads(k.relu()).transpose(-1, -2) @ v) - 1.0
        # The product's columns are the values' features of each head.
        return {
            ":relu": _units_second(q),
            ":relu#1": _units_second(k),
            ":relu#2": out.transpose(2, 3).flatten(1, 2),
        }

    planted(model, planted.batches(5, 6, inputs=256), oracle, {":relu": {6}, ":relu#1": {1}, ":relu#2": {5}})
