"""Graphs, sets and lookups: inputs or nodes picked, sent elsewhere and pooled."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


def _units_second(x):
    return x.movedim(-1, 1)


def test_point_net(planted):
    class PointNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.bn, self.c2 = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.Conv1d(6, 8, 1)
            self.fc = nn.Linear(8 + 6, 5)

        def forward(self, x):  # [B, points, 3]
            local = F.relu(self.bn(self.c1(x.transpose(2, 1))))
            g = torch.max(F.relu(self.c2(local)), 2, keepdim=True)[0]
            g = g.view(-1, 8, 1).repeat(1, 1, x.size(1))
            return F.relu(self.fc(torch.cat([g, local], 1).transpose(2, 1)))

    model = PointNet()
    planted.bury(model.bn, 0)
    planted.bury(model.c2, 7)
    planted.bury(model.fc, 4, lift=2.0)

    def oracle(x):
        a = model.bn(model.c1(x.transpose(1, 2)))
        b = model.c2(a.relu())
        g = b.relu().amax(2, keepdim=True).expand(-1, -1, x.shape[1])
        return {":relu": a, ":relu#1": b, ":relu#2": _units_second(model.fc(torch.cat([g, a.relu()], 1).mT))}

    planted(model, planted.batches(9, 3, inputs=256), oracle, {":relu": {0}, ":relu#1": {7}, ":relu#2": {4}})


@pytest.mark.parametrize("pool", ["sum", "mean", "max", "softmax"])
def test_deep_sets(planted, pool):
    class DeepSets(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi, self.score = nn.Linear(3, 8), nn.Linear(8, 1)
            self.rho = nn.Linear(8, 5)

        def pool(self, h):
            return {
                "sum": lambda: h.sum(1),
                "mean": lambda: h.mean(dim=1),
                "max": lambda: h.max(1).values,
                "softmax": lambda: (h * self.score(h).softmax(1)).sum(1),
            }[pool]()

        def forward(self, x):
            return F.relu(self.rho(self.pool(F.relu(self.phi(x)))))

    model = DeepSets()
    planted.bury(model.phi, 2)
    planted.bury(model.rho, 1, lift=3.0)

    def oracle(x):
        z = model.phi(x)
        return {":relu": _units_second(z), ":relu#1": model.rho(model.pool(z.relu()))}

    planted(model, planted.batches(7, 3), oracle, {":relu": {2}, ":relu#1": {1}})


@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")
@pytest.mark.parametrize("how", ["index_add", "scatter_add", "sparse", "dense", "loop", "assignment"])
def test_graph_convolution_counts_nodes(planted, how):
    """Nodes of one graph are axis 0 of the model's first tensor: its inputs."""

    class GCN(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 4)

        def spread(self, h, edges):
            source, target = edges
            n = h.shape[0]
            if how == "index_add":
                return torch.zeros_like(h).index_add(0, target, h[source])
            if how == "scatter_add":
                return h.new_zeros(h.shape).scatter_add_(0, target[:, None].expand(-1, h.shape[1]), h[source])
            if how == "loop":
                out = torch.zeros(n, h.shape[1])
                out.index_add_(0, target, h.index_select(0, source))
                return out
            if how == "assignment":
                out = torch.zeros(n, h.shape[1])
                a = torch.zeros(n, n).index_put_((target, source), torch.ones(source.numel()), accumulate=True)
                out[:] = a @ h
                return out
            a = torch.sparse_coo_tensor(torch.stack([target, source]), torch.ones(source.numel()), (n, n))
            return torch.sparse.mm(a, h) if how == "sparse" else a.to_dense() @ h

        def forward(self, x, edges):
            h = F.relu(self.spread(self.fc1(x), edges))
            return F.relu(self.spread(self.fc2(h), edges))

    model = GCN()
    planted.bury(model.fc1, 1)
    planted.bury(model.fc2, 3)

    def oracle(x, edges):
        a = torch.zeros(300, 300).index_put_((edges[1], edges[0]), torch.ones(edges.shape[1]), accumulate=True)
        z = a @ model.fc1(x)
        return {":relu": z, ":relu#1": a @ model.fc2(z.relu())}

    edges = torch.cat([torch.arange(300).repeat(2, 1), torch.randint(300, (2, 600))], 1)
    planted(model, [(torch.randn(300, 5), edges)], oracle, {":relu": {1}, ":relu#1": {3}})


def test_message_passing_along_edges(planted):
    """Units of an edge network are right; its edges can't be traced to nodes, and relume says so."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.edge, self.node = nn.Linear(10, 6), nn.Linear(6, 4)

        def forward(self, x, edges):
            m = F.relu(self.edge(torch.cat([x[edges[0]], x[edges[1]]], -1)))
            return F.relu(self.node(torch.zeros(x.shape[0], 6).index_add_(0, edges[1], m)))

    model = Net()
    planted.bury(model.edge, 2)
    planted.bury(model.node, 1)
    census = relume.census(model, [(torch.randn(300, 5), torch.randint(300, (2, 900)))])
    assert census[":relu"].dead.tolist() == [i == 2 for i in range(6)]
    assert not census[":relu"].site.inputs_known
    assert (census[":relu"].inputs, census[":relu"].samples) == (300, 900)
    assert census[":relu#1"].dead.tolist() == [i == 1 for i in range(4)]
    assert (census[":relu#1"].inputs, census[":relu#1"].samples) == (300, 300)


def test_experts_that_take_the_tokens_routed_to_them():
    """Rows picked by a mask can't be traced to inputs: units are right, inputs at most what the pass was given."""

    class MoE(nn.Module):
        def __init__(self, d=6):
            super().__init__()
            self.gate = nn.Linear(d, 3)
            self.experts = nn.ModuleList([nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, d)) for _ in range(3)])

        def forward(self, x):
            out = torch.zeros_like(x)
            weight, chosen = self.gate(x).softmax(-1).topk(2, -1)
            for i, expert in enumerate(self.experts):
                rows, slot = torch.where(chosen == i)
                out[rows] = out[rows] + expert(x[rows]) * weight[rows, slot][:, None]
            return out

    model = MoE()
    with torch.no_grad():
        for i, expert in enumerate(model.experts):
            expert[0].bias[i] = -50
        model.gate.weight.zero_()
        model.gate.bias.copy_(torch.tensor([1.0, 0.5, -1.0]))  # the third expert gets nothing
    x = torch.randn(512, 6)
    census = relume.census(model, [x])
    for i in (0, 1):
        site = census[f"experts.{i}.1"]
        assert site.dead.tolist() == [u == i for u in range(8)]
        assert site.fired.tolist() == (model.experts[i][0](x) > 0).sum(0).tolist()
        assert site.inputs == 512
    assert "experts.2.1" not in census or not census["experts.2.1"].dead.any()


def test_perceiver_queries_are_samples(planted):
    class Perceiver(nn.Module):
        def __init__(self, d=6):
            super().__init__()
            self.latents = nn.Parameter(torch.randn(4, d))
            self.attn, self.fc = nn.MultiheadAttention(d, 2, batch_first=True), nn.Linear(d, 8)

        def attend(self, x):
            q = self.latents.unsqueeze(0).expand(x.shape[0], -1, -1)
            return q + self.attn(q, x, x, need_weights=False)[0]

        def forward(self, x):
            return F.relu(self.fc(self.attend(x)))

    model = Perceiver()
    planted.bury(model.fc, 3)
    planted(
        model,
        planted.batches(5, 6),
        lambda x: {":relu": _units_second(model.fc(model.attend(x)))},
        {":relu": {3}},
    )


@pytest.mark.parametrize("how", ["sdpa", "einsum", "bmm"])
def test_cross_attention_from_a_learnt_query_without_a_batch_axis(planted, how):
    class Pool(nn.Module):
        def __init__(self, d=6):
            super().__init__()
            self.q, self.k, self.v = nn.Parameter(torch.randn(3, d)), nn.Linear(d, d), nn.Linear(d, d)
            self.fc = nn.Linear(d, 8)

        def attend(self, x):
            k, v = self.k(x), self.v(x)
            if how == "sdpa":
                return F.scaled_dot_product_attention(self.q.expand(x.shape[0], -1, -1), k, v)
            if how == "einsum":
                weights = torch.einsum("qd,btd->bqt", self.q, k).softmax(-1)
                return torch.einsum("bqt,btd->bqd", weights, v)
            return torch.matmul(torch.matmul(self.q, k.transpose(1, 2)).softmax(-1), v)

        def forward(self, x):
            return F.relu(self.fc(self.attend(x)))

    model = Pool()
    planted.bury(model.fc, 3)
    planted(model, planted.batches(5, 6), lambda x: {":relu": _units_second(model.fc(model.attend(x)))}, {":relu": {3}})


def test_a_fixed_adjacency_mixes_nodes_and_makes_no_units(planted):
    class STGCN(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("a", torch.rand(7, 7))
            self.fc1, self.fc2 = nn.Linear(3, 6), nn.Linear(6, 5)

        def forward(self, x):  # [B, nodes, features]
            h = F.relu(self.a @ self.fc1(x))
            return F.relu(torch.einsum("nm,bmf->bnf", self.a, self.fc2(h)))

    model = STGCN()
    planted.bury(model.fc1, 2)
    planted.bury(model.fc2, 4)

    def oracle(x):
        z = model.a @ model.fc1(x)
        return {":relu": _units_second(z), ":relu#1": _units_second(model.a @ model.fc2(z.relu()))}

    census = planted(model, planted.batches(7, 3), oracle, {":relu": {2}, ":relu#1": {4}})
    assert census[":relu"].site.producers == ("fc1",)


def test_states_written_into_a_buffer_step_by_step(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.fc = nn.GRUCell(4, 6), nn.Linear(6, 5)

        def states(self, x):
            h, out = x.new_zeros(x.shape[0], 6), torch.zeros(x.shape[0], x.shape[1], 6)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
                out[:, t] = h
            return out

        def forward(self, x):
            return F.relu(self.fc(self.states(x)[:, [0, 2]]))

    model = Model()
    planted.bury(model.fc, 2)
    planted(
        model,
        planted.batches(3, 4),
        lambda x: {":relu": _units_second(model.fc(model.states(x)[:, [0, 2]]))},
        {":relu": {2}},
    )


@pytest.mark.parametrize("pick", ["last", "gather", "permuted", "chosen channels", "negatives", "pairs"])
def test_indexing_by_tensors_keeps_what_can_be_kept(planted, pick):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def pick(self, h):
            b = h.shape[0]
            return {
                "last": lambda: h[torch.arange(b), torch.arange(b) % 4],
                "gather": lambda: h.gather(1, (torch.arange(b) % 4).view(b, 1, 1).expand(b, 1, 8)).squeeze(1),
                "permuted": lambda: h[torch.arange(b).flip(0)],
                "chosen channels": lambda: h[..., torch.tensor([7, 1, 2, 0])],
                "pairs": lambda: h[torch.arange(b)[None], torch.arange(4)[:, None]].transpose(0, 1),
                "negatives": lambda: h[torch.arange(b)[:, None], torch.arange(2)[None]],
            }[pick]()

        def forward(self, x):
            return F.relu(self.pick(self.fc(x)))

    model = Model()
    planted.bury(model.fc, 2)
    data = planted.batches(4, 6, batch=4)  # as many tokens as inputs
    planted(model, data, lambda x: {":relu": _units_second(model.pick(model.fc(x)))}, {":relu": {2}})
