"""`relume.certify`: what it returns, what it leaves as it was, and what it refuses."""

import copy
import importlib
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.errors import BatchError, EmptyCensusError, NoSitesError, RelumeError, UnsupportedOperationError
from relume.prove import box
from relume.prove.certify.propagate import propagate


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:2] = -20.0
        model[4].bias[0] = -20.0
    return model


LOW, HIGH = -torch.ones(3), torch.ones(3)


def test_a_witness_is_in_the_box_and_makes_its_unit_fire():
    model = small().eval()
    certificate = relume.certify(model, LOW, HIGH)
    assert certificate.fires >= 8
    for site in certificate.sites:
        for unit in range(site.units):
            x = site.witness(unit)
            assert (x is not None) == bool(site.fires[unit])
            if x is not None:
                assert bool(((x >= LOW) & (x <= HIGH)).all())
                assert not bool(relume.census(model, x[None], min_inputs=1)[site.name].dead[unit])
    assert certificate["1"].witness(-1) is certificate["1"].witness(7) or certificate["1"].fires[7]
    with pytest.raises(IndexError, match="8 units, no unit 8"):
        certificate["1"].witness(8)


def test_gradient_ascent_finds_what_sampling_misses():
    """Fires only where all of 40 inputs are above 0.5 by a little: a corner that 64 samples do not hit."""
    model = nn.Sequential(nn.Linear(40, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-39.0)
    certificate = relume.certify(model, torch.zeros(40), torch.ones(40), samples=64)
    assert bool(certificate["1"].fires)
    assert float(certificate["1"].witness(0).sum()) > 39
    assert not bool(relume.certify(model, torch.zeros(40), torch.ones(40), witnesses=False)["1"].fires)


def test_states_and_values_of_flat_and_linear_units():
    model = nn.Sequential(nn.Linear(1, 4), nn.Hardtanh(-2.0, 3.0))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -9.0, 9.0, 2.5]))
    site = relume.certify(model, torch.zeros(1), torch.ones(1))["1"]
    assert site.state == ["linear", "dead", "dead", "open"]
    assert site.value[1:3].tolist() == [-2.0, 3.0]
    assert bool(site.value[[0, 3]].isnan().all())
    assert site.open.tolist() == [False, False, False, True]


def test_a_unit_flat_above_here_and_below_there_is_dead_without_one_value():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU6())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
    site = relume.certify(model, torch.tensor([[-2.0, 7.0]]), torch.tensor([[-1.0, 8.0]]))["1"]
    assert site.dead.tolist() == [True]
    assert bool(site.value.isnan().all())


def test_a_certificate_goes_through_json_pickle_and_pandas(tmp_path):
    certificate = relume.certify(small(), LOW, HIGH, method="crown")
    certificate.save(tmp_path / "c.json")
    for other in (
        relume.Certificate.load(tmp_path / "c.json"),
        pickle.loads(pickle.dumps(certificate)),
        relume.Certificate.from_dict(json.loads(json.dumps(certificate.to_dict(), allow_nan=False))),
    ):
        assert str(other) == str(certificate)
        assert (other.method, other.model, other.notes) == (certificate.method, certificate.model, certificate.notes)
        assert torch.equal(other.lower, LOW)
        assert torch.equal(other.upper, HIGH)
        for a, b in zip(other.sites, certificate.sites, strict=True):
            assert a.site == b.site
            for name in ("lower", "upper", "dead", "linear", "which", "witnesses"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name
            assert torch.equal(a.value.nan_to_num(-7), b.value.nan_to_num(-7))
    frame = certificate.to_pandas()
    assert len(frame) == certificate.units == 12
    assert int((frame.state == "dead").sum()) == certificate.dead
    (tmp_path / "other.json").write_text('{"format": 99}')
    with pytest.raises(RelumeError, match="format"):
        relume.Certificate.load(tmp_path / "other.json")
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(RelumeError, match="no certificate"):
        relume.Certificate.load(tmp_path / "damaged.json")


def test_a_certificate_is_a_table_of_80_columns_and_a_mapping_of_names():
    certificate = relume.certify(small(), LOW, HIGH)
    text = str(certificate)
    assert max(map(len, text.splitlines())) <= 80
    assert "of 12 units certified dead" in text
    assert list(certificate) == ["1", "5"]
    assert certificate.dead + certificate.linear + certificate.open == certificate.units
    with pytest.raises(relume.RelumeError, match="there is no site 'nine'"):
        certificate["nine"]


def test_the_model_is_bitwise_as_it_was():
    model = small().train()
    model[3].eval()  # a part kept frozen
    model(torch.randn(5, 3)).sum().backward()
    seen = []
    model[1].register_forward_hook(lambda *a: seen.append(1))
    state = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    hooks = [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    certificate = relume.certify(model, LOW, HIGH, method="crown")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert certificate.notes == ("the model is in training mode; certified is what it computes in evaluation",)
    # An error on the way leaves it as well.
    with pytest.raises(BatchError):
        relume.certify(model, torch.zeros(4), torch.ones(4))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("low", "high", "shape", "message"),
    [
        (torch.ones(3), torch.zeros(3), None, r"lower > upper at 3 of 3 elements, first at \(0,\)"),
        (torch.tensor([0, float("nan"), 0]), torch.ones(3), None, "lower holds 1 values that are NaN"),
        (torch.zeros(3), torch.full((3,), float("inf")), None, "upper holds 3 values"),
        (torch.zeros(3), torch.ones(4), None, "do not broadcast"),
        (0.0, 1.0, None, "must have the shape of one input"),
        (torch.zeros(0), torch.ones(0), None, "must have the shape of one input"),
        (torch.zeros(2, 3), torch.ones(3), (3,), "more than one input's"),
        (torch.tensor(-1e300, dtype=torch.float64), 0.0, (3,), "beyond what float32 holds"),
    ],
)
def test_a_box_that_is_none_is_refused(low, high, shape, message):
    with pytest.raises(ValueError, match=message):
        relume.certify(small(), low, high, shape=shape)


def test_numbers_broadcast_to_the_given_shape():
    found = relume.certify(small(), -1, 1.0, shape=(3,))
    assert torch.equal(found.lower, LOW)
    assert torch.equal(found["1"].upper, relume.certify(small(), LOW, HIGH)["1"].upper)


def test_an_input_of_another_shape_is_refused_with_the_shape():
    with pytest.raises(BatchError, match=r"2 inputs of shape \(4,\).*without the batch axis"):
        relume.certify(small(), torch.zeros(4), torch.ones(4))


def test_weights_of_which_nothing_can_be_certified_are_refused():
    model = small()
    model[4].weight.data[0, 0] = float("nan")
    with pytest.raises(RelumeError, match=r"4\.weight: NaN or infinite weights"):
        relume.certify(model, LOW, HIGH)
    with pytest.raises(RelumeError, match="lazy"):
        relume.certify(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), LOW, HIGH)
    with pytest.raises(RelumeError, match="meta"):
        relume.certify(small().to("meta"), LOW, HIGH)
    with pytest.raises(UnsupportedOperationError, match="bfloat16"):
        relume.certify(small().bfloat16(), LOW, HIGH)
    with pytest.raises(NoSitesError, match="Linear"):
        relume.certify(nn.Sequential(nn.Linear(3, 3)), LOW, HIGH)
    with pytest.raises(TypeError, match="Module"):
        relume.certify(torch.relu, LOW, HIGH)
    with pytest.raises(ValueError, match="'ibp' or 'crown'"):
        relume.certify(small(), LOW, HIGH, method="exact")


class Does(nn.Module):
    """A layer around some doing, before the one site."""

    def __init__(self, what):
        super().__init__()
        self.layer, self.what = nn.Linear(3, 3), what
        self.kept = torch.zeros(1, 3)

    def forward(self, x):
        return F.relu(self.what(self, self.layer(x)))


def branch(self, x):
    return x if x.sum() > 0 else -x


def keeps(self, x):
    self.kept[:] = x[:1]
    return x + self.kept


def around(self, x):
    return x + torch.from_numpy(x.detach().numpy()).relu()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda self, x: torch.fft.rfft(x).real, "complex64"),
        (lambda self, x: torch.cumprod(x, -1), "the model applies cumprod, for which certify has no bounds"),
        (branch, "looks at values of its tensors"),
        (lambda self, x: x + torch.randn(3), "draws random numbers"),
        (lambda self, x: F.dropout(x, 0.5, training=True), "draws random numbers|bernoulli"),
        (keeps, "tensor that was there before"),
        (around, "around torch's operations"),
        (lambda self, x: F.batch_norm(x, None, None, training=True), "batch norm without running statistics"),
        (lambda self, x: x.half().float(), "computes in float16"),
        (lambda self, x: x - x.mean(0, keepdim=True), None),
    ],
)
def test_what_can_t_be_bounded_is_named(what, message):
    if message is None:  # the same operations with one input and with many, but not the same for each
        with pytest.raises(RelumeError, match="depends on the others of its batch"):
            relume.certify(Does(what), LOW, HIGH)
        return
    with pytest.raises(UnsupportedOperationError, match=message):
        relume.certify(Does(what), LOW, HIGH)


def test_the_module_of_an_unsupported_operation_is_named_and_what_follows_the_last_site_is_no_matter():
    model = nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(-1), nn.ReLU())
    with pytest.raises(UnsupportedOperationError, match="'1' applies _log_softmax"):
        relume.certify(model, LOW, HIGH)
    assert relume.certify(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LogSoftmax(-1)), LOW, HIGH).units == 3


def test_a_bound_that_a_sample_contradicts_ends_in_an_error(monkeypatch):
    """As when a model does something else than in the traced pass: here, bounds are cut behind certify's back."""

    def cut(graph, lower, upper, method):
        bounds = propagate(graph, lower, upper, method)
        for use in graph.uses:
            bounds[use.value].upper = torch.minimum(bounds[use.value].upper, bounds[use.value].middle)
        return bounds

    monkeypatch.setattr(importlib.import_module("relume.prove.certify.certify"), "propagate", cut)
    with pytest.raises(RelumeError, match="site '1', unit"):
        relume.certify(small(), LOW, HIGH, witnesses=False)


def test_a_user_s_activation_is_certified_by_its_operations_and_its_declared_zone():
    @relume.register_activation(flat=[(-float("inf"), 0.0)])
    def cubed_relu(x):
        return torch.relu(x) ** 3

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return F.relu(cubed_relu(self.layer(x)) - 0.1)

    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.layer.bias[0] = -9.0
    found = relume.certify(model, LOW, HIGH)
    assert found.sites[0].dead.tolist() == [True, False, False, False]
    assert found.sites[0].value[0] == 0.0


def test_sequences_first_models_are_certified_along_their_batch_axis():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(3, 4, nonlinearity="relu"), nn.Linear(4, 2)

        def forward(self, x):
            return F.relu(self.head(self.rnn(x)[0][-1]))

    model = Sequence().eval()
    found = relume.certify(model, -1.0, 1.0, shape=(5, 3), input_axis=1)
    counted = relume.census(model, [torch.rand(5, 300, 3) * 2 - 1], input_axis=1)
    assert list(found) == list(counted)
    for site, m in zip(found.sites, counted.sites, strict=True):
        assert bool((m.min >= site.lower).all() and (m.max <= site.upper).all())


def test_a_compiled_model_is_certified_as_the_one_it_was_made_from():
    model = small()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(relume.certify(compiled, LOW, HIGH)["1"].upper, relume.certify(model, LOW, HIGH)["1"].upper)


def test_the_box_of_data_holds_every_input_and_no_more():
    data = [torch.tensor([[0.0, 1.0], [2.0, -1.0]]), (torch.tensor([[5.0, 0.0]]), torch.tensor([1]))]
    lower, upper = box(data)
    assert (lower.tolist(), upper.tolist()) == ([0.0, -1.0], [5.0, 1.0])
    lower, upper = box(data, 0.25, each=False)
    assert (lower.tolist(), upper.tolist()) == ([-1.25, -1.25], [5.25, 5.25])
    with pytest.raises(EmptyCensusError):
        box([])
    with pytest.raises(BatchError, match=r"batch 1 has inputs of shape \(3,\), those before \(2,\)"):
        box([torch.zeros(1, 2), torch.zeros(1, 3)])
    with pytest.raises(BatchError, match="NaN"):
        box([torch.full((1, 2), float("nan"))])
    with pytest.raises(BatchError, match="no floating-point tensor"):
        box([torch.zeros(1, 2, dtype=torch.long)])


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("no derivative")


def test_where_no_gradient_can_be_had_samples_are_all_and_a_note_says_so():
    model = Does(lambda self, x: NoWayBack.apply(x) - x.flip(-1).flip(-1) - 0.1)  # never fires; intervals do not see it
    found = relume.certify(model, LOW, HIGH, samples=16)
    assert int(found.sites[0].fires.sum()) == 0
    assert any("sampled only" in note for note in found.notes)
