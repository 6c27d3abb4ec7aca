"""Language models and time series, written as their authors write them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def _units_second(x):
    return x.movedim(-1, 1)


def test_gpt2_conv1d_by_addmm_on_a_view(planted):
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.nf, self.weight, self.bias = nf, nn.Parameter(torch.randn(nx, nf) * 0.3), nn.Parameter(torch.zeros(nf))

        def forward(self, x):
            size_out = (*x.size()[:-1], self.nf)
            x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
            return x.view(size_out)

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.c_proj, self.act = Conv1D(12, 6), Conv1D(6, 12), nn.ReLU()

        def forward(self, x):
            return x + self.c_proj(self.act(self.c_fc(x)))

    model = nn.Sequential(MLP(), MLP())
    planted.bury(model[0].c_fc, 3, 11)
    planted.bury(model[1].c_fc, 0)

    def oracle(x):
        return {"0.act": _units_second(model[0].c_fc(x)), "1.act": _units_second(model[1].c_fc(model[0](x)))}

    census = planted(model, planted.batches(5, 6), oracle, {"0.act": {3, 11}, "1.act": {0}})
    assert census["0.act"].site.producers == ("0.c_fc",)


def test_t5_gated_feed_forward(planted):
    class T5(nn.Module):
        def __init__(self, d=6):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(d))
            self.wi_0, self.wi_1 = nn.Linear(d, 10), nn.Linear(d, 10, bias=False)
            self.wo, self.drop = nn.Linear(10, d, bias=False), nn.Dropout(0.1)

        def norm(self, x):
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

        def forward(self, x):
            h = self.norm(x)
            return x + self.wo(self.drop(F.relu(self.wi_0(h)) * self.wi_1(h)))

    model = T5()
    planted.bury(model.wi_0, 9)
    planted(model, planted.batches(5, 6), lambda x: {":relu": _units_second(model.wi_0(model.norm(x)))}, {":relu": {9}})


def test_feed_forward_in_chunks_of_the_sequence(planted):
    """BERT's apply_chunking_to_forward: each chunk is a use of its own."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.out = nn.Linear(6, 8), nn.Linear(8, 6)

        def feed(self, x):
            return self.out(F.relu(self.dense(x)))

        def forward(self, x):
            return torch.cat([self.feed(c) for c in x.chunk(2, dim=1)], dim=1)

    model = Model()
    planted.bury(model.dense, 1)

    def oracle(x):
        a, b = (_units_second(model.dense(c)) for c in x.chunk(2, 1))
        return {":relu": a, ":relu#1": b}

    planted(model, planted.batches(4, 6), oracle, {":relu": {1}, ":relu#1": {1}})


def test_an_encoder_of_token_ids_with_positions_and_a_mask(planted):
    class Encoder(nn.Module):
        def __init__(self, d=8):
            super().__init__()
            self.word, self.position, self.norm = (
                nn.Embedding(30, d, padding_idx=0),
                nn.Embedding(9, d),
                nn.LayerNorm(d),
            )
            self.attn = nn.MultiheadAttention(d, 2, batch_first=True)
            self.up, self.down, self.pool = nn.Linear(d, 12), nn.Linear(12, d), nn.Linear(d, 4)

        def embed(self, ids):
            return self.norm(self.word(ids) + self.position(torch.arange(ids.shape[1])))

        def attend(self, x, ids):
            return x + self.attn(x, x, x, key_padding_mask=ids == 0, need_weights=False)[0]

        def mean(self, x, ids):
            m = (ids != 0).unsqueeze(-1).float()
            return (x * m).sum(1) / m.sum(1).clamp(min=1e-9)

        def forward(self, input_ids, labels=None):
            x = self.attend(self.embed(input_ids), input_ids)
            x = x + self.down(torch.relu(self.up(x)))
            return {"logits": F.relu(self.pool(self.mean(x, input_ids))), "loss": None}

    model = Encoder()
    planted.bury(model.up, 1)
    planted.bury(model.pool, 3)

    def oracle(input_ids):
        x = model.attend(model.embed(input_ids), input_ids)
        z = model.up(x)
        return {":relu": _units_second(z), ":relu#1": model.pool(model.mean(x + model.down(z.relu()), input_ids))}

    batches = [{"input_ids": torch.randint(0, 30, (64, 7)).clamp(max=29)} for _ in range(4)]
    for b in batches:
        b["input_ids"][:, 0] = 1
    planted(model, batches, oracle, {":relu": {1}, ":relu#1": {3}})


def test_causal_convolutions_with_chomp(planted):
    class Chomp(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.n = n

        def forward(self, x):
            return x[:, :, : -self.n].contiguous()

    class Block(nn.Module):
        def __init__(self, a, b, dilation):
            super().__init__()
            conv = nn.Conv1d(a, b, 2, padding=dilation, dilation=dilation)
            self.conv = nn.utils.parametrizations.weight_norm(conv)
            self.chomp, self.relu1, self.drop = Chomp(dilation), nn.ReLU(), nn.Dropout(0.1)
            self.down, self.relu = nn.Conv1d(a, b, 1), nn.ReLU()

        def forward(self, x):
            return self.relu(self.drop(self.relu1(self.chomp(self.conv(x)))) + self.down(x))

    model = nn.Sequential(Block(2, 4, 1), Block(4, 5, 2))
    planted.bury(model[0].conv, 1)
    planted.bury(model[1].conv, 3)
    planted.bury(model[1].down, 2, depth=200.0)

    def oracle(x):
        sites = {}
        for i, block in enumerate(model):
            z = block.chomp(block.conv(x))
            s = block.drop(z.relu()) + block.down(x)
            sites |= {f"{i}.relu1": z, f"{i}.relu": s}
            x = s.relu()
        return sites

    planted(model, planted.batches(2, 9), oracle, {"0.relu1": {1}, "1.relu1": {3}, "1.relu": {2}})


def test_wavenet_gates(planted):
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.skip = nn.Conv1d(3, 12, 2), nn.Conv1d(6, 5, 1)

        def forward(self, x):
            f, g = self.conv(x).chunk(2, dim=1)
            return F.relu(self.skip(torch.tanh(f) * torch.sigmoid(g)))

    model = Wave()
    planted.bury(model.skip, 4)

    def oracle(x):
        f, g = model.conv(x).chunk(2, 1)
        return {
            ":tanh": ("tanh", f),
            ":sigmoid": ("sigmoid", g),
            ":relu": model.skip(f.tanh() * g.sigmoid()),
        }

    planted(model, planted.batches(3, 7), oracle, {":relu": {4}})


def test_actor_and_critic_over_folded_time(planted):
    """[B, T, obs], flattened for the trunk, back for the GRU: as reinforcement learners do."""

    class AC(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.gru = nn.Linear(4, 6), nn.GRU(6, 5, batch_first=True)
            self.pi, self.v = nn.Sequential(nn.Linear(5, 8), nn.ReLU()), nn.Sequential(nn.Linear(5, 8), nn.ReLU())

        def forward(self, obs):
            b, t = obs.shape[:2]
            h = F.relu(self.trunk(obs.reshape(b * t, -1))).reshape(b, t, -1)
            h = self.gru(h)[0].reshape(b * t, -1)
            return self.pi(h), self.v(h).mean()

    model = AC()
    planted.bury(model.trunk, 1)
    planted.bury(model.pi[0], 2, lift=1.0)
    planted.bury(model.v[0], 3, lift=1.0)

    def oracle(obs):
        z = model.trunk(obs)
        h = model.gru(z.relu())[0]
        return {
            ":relu": _units_second(z),
            "pi.1": _units_second(model.pi[0](h)),
            "v.1": _units_second(model.v[0](h)),
        }

    planted(model, planted.batches(5, 4), oracle, {":relu": {1}, "pi.1": {2}, "v.1": {3}})


def test_a_forecaster_that_decomposes_and_transposes(planted):
    """[B, T, channels] -> linear over time per channel (DLinear), with reversible normalization."""

    class DLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.season, self.trend = nn.AvgPool1d(3, 1, 1), nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x):
            mean = x.mean(1, keepdim=True).detach()
            x = (x - mean).permute(0, 2, 1)
            trend = self.pool(x)
            y = F.relu(self.season(x - trend)) + F.relu(self.trend(trend))
            return y.permute(0, 2, 1) + mean

    model = DLinear()
    planted.bury(model.season, 0)
    planted.bury(model.trend, 4)

    def oracle(x):
        x = (x - x.mean(1, keepdim=True)).mT
        trend = model.pool(x)
        return {":relu": _units_second(model.season(x - trend)), ":relu#1": _units_second(model.trend(trend))}

    planted(model, planted.batches(8, 3), oracle, {":relu": {0}, ":relu#1": {4}})


def test_patches_by_unfold(planted):
    class PatchTST(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(4, 6), nn.Linear(6 * 3, 5)

        def forward(self, x):  # [B, channels, T]
            p = x.unfold(-1, 4, 2)
            h = F.relu(self.embed(p.reshape(-1, *p.shape[2:])))
            return F.relu(self.head(h.flatten(1))).view(*x.shape[:2], -1)

    model = PatchTST()
    planted.bury(model.embed, 3)
    planted.bury(model.head, 1, lift=1.0)

    def oracle(x):
        z = model.embed(x.unfold(-1, 4, 2))
        return {":relu": _units_second(z), ":relu#1": _units_second(model.head(z.relu().flatten(2)))}

    planted(model, planted.batches(2, 8), oracle, {":relu": {3}, ":relu#1": {1}})


def test_state_space_scan_over_time(planted):
    class SSM(nn.Module):
        def __init__(self, d=6, n=3):
            super().__init__()
            self.a, self.inp, self.out = nn.Parameter(torch.rand(d, n)), nn.Linear(d, d), nn.Linear(d, 5)
            self.b, self.c = nn.Linear(d, n), nn.Linear(d, n)

        def scan(self, u):
            h, ys = torch.zeros(u.shape[0], *self.a.shape), []
            b, c = self.b(u), self.c(u)
            for t in range(u.shape[1]):
                h = self.a * h + u[:, t, :, None] * b[:, t, None, :]
                ys.append((h * c[:, t, None, :]).sum(-1))
            return torch.stack(ys, 1)

        def forward(self, x):
            return F.relu(self.out(F.relu(self.scan(self.inp(x)))))

    model = SSM()
    planted.bury(model.out, 2, lift=1.0)
    with torch.no_grad():
        model.inp.weight[4] = 0
        model.inp.bias[4] = 0

    def oracle(x):
        z = model.scan(model.inp(x))
        return {":relu": _units_second(z), ":relu#1": _units_second(model.out(z.relu()))}

    planted(model, planted.batches(4, 6), oracle, {":relu": {4}, ":relu#1": {2}})


@pytest.mark.parametrize("heads", ["view", "reshape", "unflatten"])
def test_relu_on_the_scores_of_heads_has_the_heads_for_units(planted, heads):
    """ReLU in place of softmax: of [B, heads, T, T], only the heads are something learnt."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)

        def split(self, x):
            b, t, _ = x.shape
            return {
                "view": lambda: x.view(b, t, 2, 4).transpose(1, 2),
                "reshape": lambda: x.reshape(b, -1, 2, 4).permute(0, 2, 1, 3),
                "unflatten": lambda: x.unflatten(-1, (2, 4)).movedim(2, 1),
            }[heads]()

        def scores(self, x):
            return self.split(self.q(x)) @ self.split(self.k(x)).transpose(-1, -2) / 2

        def forward(self, x):
            return F.relu(self.scores(x))

    model = Model()
    with torch.no_grad():  # queries and keys of the second head point away from each other
        model.q.weight[4:] = model.k.weight[4:] = 0.0
        model.q.bias[4:], model.k.bias[4:] = 1.0, -1.0
    planted(model, planted.batches(5, 6), lambda x: {":relu": model.scores(x)}, {":relu": {1}})
