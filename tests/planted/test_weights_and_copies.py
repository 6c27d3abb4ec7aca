"""Weights shared, generated, stacked or tied, and inputs copied or folded: axes wander, units stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


def _units_second(x):
    return x.movedim(-1, 1)


@pytest.mark.parametrize("tied", [False, True])
def test_sparse_autoencoder(planted, tied):
    class SAE(nn.Module):
        def __init__(self, d=6, latents=20):
            super().__init__()
            self.w_enc = nn.Parameter(torch.randn(d, latents))
            self.w_dec = nn.Parameter(torch.randn(latents, d))
            self.bias, self.b_dec = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.randn(d))

        def pre(self, x):
            w = self.w_dec.T if tied else self.w_enc
            return (x - self.b_dec) @ w + self.bias

        def forward(self, x):
            f = F.relu(self.pre(x))
            return f @ self.w_dec + self.b_dec

    model = planted.bury(SAE(), 0, 13, 19)
    census = planted(model, planted.batches(6), lambda x: {":relu": model.pre(x)}, {":relu": {0, 13, 19}})
    assert census[":relu"].site.producers == (("w_dec",) if tied else ("w_enc",))
    planted(model, planted.batches(4, 6), lambda x: {":relu": _units_second(model.pre(x))}, {":relu": {0, 13, 19}})


def test_top_k_after_relu(planted):
    class TopK(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(6, 20), nn.Linear(20, 6)

        def forward(self, x):
            values, index = F.relu(self.enc(x)).topk(4, -1)
            return self.dec(torch.zeros(x.shape[0], 20).scatter_(-1, index, values))

    model = TopK()
    planted.bury(model.enc, 4, 5)
    planted(model, planted.batches(6), lambda x: {":relu": model.enc(x)}, {":relu": {4, 5}})


def test_nerf_rays_and_samples_are_folded(planted):
    class NeRF(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3 * 5, 8), nn.Linear(8 + 15, 7)
            self.register_buffer("freqs", 2.0 ** torch.arange(2))

        def encode(self, x):
            angles = (x[..., None] * self.freqs).flatten(-2)
            return torch.cat([x, angles.sin(), angles.cos()], -1)

        def forward(self, rays):  # [R, S, 3]
            e = self.encode(rays.reshape(-1, 3))
            h = F.relu(self.fc1(e))
            h = F.relu(self.fc2(torch.cat([h, e], -1)))
            return h.view(*rays.shape[:2], -1)

    model = NeRF()
    planted.bury(model.fc1, 1)
    planted.bury(model.fc2, 6)

    def oracle(rays):
        e = model.encode(rays)
        z = model.fc1(e)
        return {
            ":relu": _units_second(z),
            ":relu#1": _units_second(model.fc2(torch.cat([z.relu(), e], -1))),
        }

    planted(model, planted.batches(4, 3), oracle, {":relu": {1}, ":relu#1": {6}})


def test_random_fourier_features_with_a_parameter(planted):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.zeros(8))

        def forward(self, t):  # [B]
            return F.relu(t[:, None] * self.w + self.bias)

    model = planted.bury(Net(), 3)
    planted(model, planted.batches(), lambda t: {":relu": t[:, None] * model.w + model.bias}, {":relu": {3}})


def test_weights_made_by_another_network(planted):
    """HyperNetwork: each input has a weight matrix of its own."""

    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.bias = nn.Linear(3, 6 * 5), nn.Parameter(torch.zeros(5))

        def forward(self, x, z):
            w = self.make(z).view(-1, 6, 5)
            return F.relu(torch.bmm(x.unsqueeze(1), w).squeeze(1) + self.bias)

    model = planted.bury(Hyper(), 2)

    def oracle(x, z):
        return {":relu": (x[:, None] @ model.make(z).view(-1, 6, 5))[:, 0] + model.bias}

    pairs = list(zip(planted.batches(6), planted.batches(3), strict=True))
    planted(model, pairs, oracle, {":relu": {2}})


def test_weights_made_from_a_learnt_code(planted):
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.code, self.make = nn.Parameter(torch.randn(3)), nn.Linear(3, 6 * 5)
            self.bias = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return F.relu(F.linear(x, self.make(self.code).view(5, 6), self.bias))

    model = planted.bury(Hyper(), 2)
    planted(
        model,
        planted.batches(6),
        lambda x: {":relu": F.linear(x, model.make(model.code).view(5, 6), model.bias)},
        {":relu": {2}},
    )


def test_ensemble_of_members_in_one_tensor(planted):
    """[members, in, out] weights: each member's features are units of their own."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(3, 6, 4)), nn.Parameter(torch.zeros(3, 1, 4))

        def forward(self, x):  # [B, in] -> [members, B, out]
            return F.relu(torch.baddbmm(self.b, x.expand(3, -1, -1), self.w))

    model = Ensemble()
    with torch.no_grad():
        model.b[1, 0, 2] = -50.0
        model.b[2, 0, 0] = -50.0

    def oracle(x):
        return {":relu": (x[None] @ model.w + model.b).transpose(0, 1).flatten(1)}

    planted(model, planted.batches(6), oracle, {":relu": {6, 8}})


def test_dueling_heads_and_a_shared_trunk(planted):
    class Dueling(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
            self.v = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 1))
            self.a = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))

        def forward(self, x):
            h = self.trunk(x)
            a = self.a(h)
            return self.v(h) + a - a.mean(-1, keepdim=True)

    model = Dueling()
    planted.bury(model.trunk[0], 7)
    planted.bury(model.v[0], 1, lift=1.0)
    planted.bury(model.a[0], 2, lift=1.0)

    def oracle(x):
        z = model.trunk[0](x)
        return {"trunk.1": z, "a.1": model.a[0](z.relu()), "v.1": model.v[0](z.relu())}

    planted(model, planted.batches(6), oracle, {"trunk.1": {7}, "a.1": {2}, "v.1": {1}})


@pytest.mark.parametrize("how", ["unsqueeze", "repeat_interleave", "repeat", "expand and fold"])
def test_quantile_network_with_copies_of_each_input(planted, how):
    class IQN(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi, self.out = nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, x):
            b, n = x.shape[0], 3
            tau = torch.linspace(0.1, 0.9, 3)
            cos = torch.cos(tau[:, None] * torch.arange(4) * torch.pi)
            if how == "unsqueeze":
                h = x.unsqueeze(1) * F.relu(self.phi(cos)).unsqueeze(0)
            elif how == "repeat_interleave":
                h = x.repeat_interleave(n, 0) * F.relu(self.phi(cos)).repeat(b, 1)
            elif how == "repeat":
                h = x.repeat(n, 1) * F.relu(self.phi(cos)).repeat_interleave(b, 0)
            else:
                h = x[:, None].expand(b, n, 6).reshape(b * n, 6) * F.relu(self.phi(cos)).repeat(b, 1)
            return F.relu(self.out(h))

    model = IQN()
    planted.bury(model.out, 1)

    def pre(x):
        cos = torch.cos(torch.linspace(0.1, 0.9, 3)[:, None] * torch.arange(4) * torch.pi)
        return model.out(x[:, None] * model.phi(cos).relu()), model.phi(cos)

    x = torch.randn(320, 6)
    census = relume.census(model, [x])
    site = census[":relu#1"]
    z = pre(x)[0]
    assert site.dead.tolist() == [i == 1 for i in range(5)]
    assert (site.inputs, site.samples) == (320, 960)
    assert site.fired.tolist() == (z > 0).any(1).sum(0).tolist()
    # What the network makes of the constants alone has seen no input, whatever their number.
    assert census[":relu"].units == 6


def test_variational_autoencoder(planted):
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.mu, self.var, self.dec = (
                nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(3, 8),
            )  # fmt: skip

        def sample(self, h):
            return self.mu(h) + torch.randn(h.shape[0], 3) * torch.exp(0.5 * self.var(h))

        def forward(self, x):
            return F.relu(self.dec(self.sample(F.relu(self.enc(x)))))

    model = VAE()
    planted.bury(model.enc, 0)
    planted.bury(model.dec, 1)

    def oracle(x):
        z = model.enc(x)
        return {":relu": z, ":relu#1": model.dec(model.sample(z.relu()))}

    planted(model, planted.batches(6), oracle, {":relu": {0}, ":relu#1": {1}})


def test_capsules(planted):
    class Caps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.w = nn.Conv2d(1, 4, 3), nn.Parameter(torch.randn(4, 2, 9, 5) * 0.3)
            self.bias = nn.Parameter(torch.zeros(2, 5))

        def votes(self, h):  # [B, 4, 9] -> [B, 2, 5]
            return torch.einsum("bip,ijpo->bijo", h, self.w).sum(1) + self.bias

        def forward(self, x):
            return F.relu(self.votes(F.relu(self.conv(x)).flatten(2)))

    model = Caps()
    planted.bury(model.conv, 2)
    with torch.no_grad():
        model.bias[1, 3] = -50.0

    def oracle(x):
        z = model.conv(x)
        return {":relu": z, ":relu#1": model.votes(z.relu().flatten(2)).flatten(1)}

    planted(model, planted.batches(1, 5, 5), oracle, {":relu": {2}, ":relu#1": {8}})


def test_fixed_point_iteration_and_an_ode_loop(planted):
    class DEQ(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.w = nn.Linear(4, 6), nn.Linear(6, 6, bias=False)

        def forward(self, x):
            u, z = self.u(x), torch.zeros(x.shape[0], 6)
            with torch.no_grad():
                for _ in range(2):
                    z = F.relu(u + 0.1 * self.w(z))
            return z + 0.5 * F.relu(u + 0.1 * self.w(z))

    model = DEQ()
    planted.bury(model.u, 3)

    def oracle(x):
        u, z, sites = model.u(x), torch.zeros(x.shape[0], 6), {}
        for name in (":relu", ":relu#1", ":relu#2"):
            sites[name] = u + 0.1 * model.w(z)
            z = sites[name].relu()
        return sites

    planted(model, planted.batches(4), oracle, {":relu": {3}, ":relu#1": {3}, ":relu#2": {3}})


def test_neural_additive_model_of_one_network_per_feature(planted):
    """Grouped convolution over features written as [B, features, hidden]: units are (feature, hidden) pairs."""

    class NAM(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.full((4, 5), 0.3))
            self.out = nn.Parameter(torch.randn(4, 5))

        def forward(self, x):
            return (F.relu(x.unsqueeze(-1) * self.w + self.bias) * self.out).sum((1, 2))

    model = NAM()
    with torch.no_grad():
        model.bias[2, 4] = -50.0
    planted(
        model,
        planted.batches(4),
        lambda x: {":relu": (x[..., None] * model.w + model.bias).flatten(1)},
        {":relu": {14}},
    )


@pytest.mark.parametrize("mapped", ["inputs", "members"])
def test_under_vmap_the_whole_tensor_is_counted(planted, mapped):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.w = nn.Linear(6, 8), nn.Parameter(torch.randn(3, 6, 8))
            self.bias = nn.Parameter(torch.zeros(3, 8))

        def forward(self, x):
            if mapped == "inputs":
                return torch.vmap(lambda row: F.relu(self.fc(row)))(x)
            return torch.vmap(lambda w, b: F.relu(x @ w + b))(self.w, self.bias)

    model = Model()
    planted.bury(model.fc, 2)
    with torch.no_grad():
        model.bias[1, 3] = -50.0

    def oracle(x):
        if mapped == "inputs":
            return {":relu": model.fc(x)}
        return {":relu": torch.stack([x @ w + b for w, b in zip(model.w, model.bias, strict=True)], 1).flatten(1)}

    planted(model, planted.batches(6), oracle, {":relu": {2} if mapped == "inputs" else {11}})
