"""Bad input: each gets a clear error or warning, nothing is lost, and the model is left as it was."""

# ruff: noqa: PT031 - a `with` that is tested holds a training, not a single statement

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.errors import (
    AxisError,
    BatchError,
    CensusMismatchError,
    EmptyCensusError,
    NoSitesError,
    RelumeError,
    RelumeWarning,
)


def net():
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))


# Numbers that are none


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.Tanh], ids=lambda k: k.__name__)
def test_non_finite_pre_activations_are_counted_and_named_not_dead(bad, kind):
    model = nn.Sequential(nn.Linear(2, 3), kind())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, bad, -1.0]))
    with relume.watch(model, every=1, window=3, min_inputs=1) as watch:
        for _ in range(3):
            model(torch.randn(4, 2))
    for census in (watch.census(), relume.census(model, [torch.randn(12, 2)], min_inputs=1)):
        site = census["1"]
        assert site.state[1] == "non-finite"
        assert site.nonfinite.tolist() == [0, 12, 0]
        assert not site.dead[1]
        assert site.mean[[0, 2]].tolist() == [1.0, -1.0]
    assert watch.history()[0]["nonfinite"] == 1


def test_a_unit_that_turns_non_finite_is_not_dated_as_a_death():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    with relume.watch(model, every=1, window=2, min_inputs=1) as watch:
        for bias in (1.0, 1.0, torch.nan, torch.nan):
            with torch.no_grad():
                model[0].weight.zero_()
                model[0].bias.fill_(bias)
            model(torch.randn(4, 2))
    assert watch.census(0)["1"].state == ["linear"]
    assert watch.census(1)["1"].state == ["non-finite"]
    assert watch.timeline("1").describe(0) == "alive throughout"


# Batches


@pytest.mark.parametrize(
    "batches", [[], iter([]), DataLoader([]), (x for x in ())], ids=["list", "iter", "loader", "gen"]
)
def test_an_empty_loader_is_an_error(batches):
    with pytest.raises(EmptyCensusError, match="the batches yielded nothing"):
        relume.census(net(), batches)


def test_batches_without_rows_are_an_error_but_among_others_count_nothing():
    with pytest.raises(EmptyCensusError, match="only empty tensors"):
        relume.census(net(), [torch.empty(0, 2), torch.empty(0, 2)])
    census = relume.census(net(), [torch.empty(0, 2), torch.randn(5, 2), torch.empty(0, 2)])
    assert census["1"].inputs == 5
    model = net()
    with relume.watch(model, every=1) as watch:
        for rows in (0, 5, 0):
            model(torch.randn(rows, 2))
    assert watch.census()["1"].inputs == 5
    assert watch.step == 3


def test_a_census_of_a_generator_takes_each_batch_once():
    census = relume.census(net(), (torch.randn(n, 2) for n in (3, 4, 5)))
    assert census["1"].inputs == 12


def test_a_single_tensor_is_one_batch():
    assert relume.census(net(), torch.randn(7, 2))["1"].inputs == 7


@pytest.mark.parametrize("batches", [None, 5, nn.ReLU()], ids=["None", "number", "module"])
def test_what_is_no_iterable_of_batches_is_an_error(batches):
    with pytest.raises(BatchError, match="iterable of batches or a DataLoader"):
        relume.census(net(), batches)


@pytest.mark.parametrize("batch", ["text", 1.5, None, np.zeros((3, 2))], ids=["str", "float", "None", "array"])
def test_a_batch_of_a_type_that_can_not_be_passed_is_an_error(batch):
    with pytest.raises(BatchError, match=f"type {type(batch).__name__} can't be passed to Sequential"):
        relume.census(net(), [batch])


class Named(nn.Module):
    """Takes two tensors by name."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 4)

    def forward(self, tokens, mask, scale=1.0):
        return F.relu(self.fc(tokens) * mask) * scale


def test_a_dict_of_one_batch_is_told_how_to_be_passed():
    batch = {"tokens": torch.randn(6, 2), "mask": torch.ones(6, 1)}
    with pytest.raises(BatchError, match=r"pass \[batch\]"):
        relume.census(Named(), batch)
    assert relume.census(Named(), [{**batch, "labels": torch.zeros(6)}])[":relu"].inputs == 6


def test_labels_are_left_out():
    x, y = torch.randn(10, 2), torch.zeros(10)
    for batch in ((x, y), [x, y]):
        assert relume.census(net(), [batch])["1"].inputs == 10
    assert relume.census(net(), DataLoader(TensorDataset(x, y), batch_size=4))["1"].inputs == 10
    assert relume.census(Named(), [(x, torch.ones(10, 1), 2.0, y)])[":relu"].inputs == 10


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (torch.randn(6, 2), r"it is one argument, and missing a required argument: 'mask'"),
        ((torch.randn(6, 2),), r"1 positional arguments, and missing a required argument: 'mask'"),
        ({"tokens": torch.randn(6, 2)}, r"a dict of tokens, and missing a required argument: 'mask'"),
        ({"x": torch.randn(6, 2)}, r"a dict of x, and missing a required argument: 'tokens'"),
        ({}, r"a dict of nothing, and missing"),
    ],
)
def test_a_batch_that_does_not_fit_says_why(batch, says):
    with pytest.raises(BatchError, match=says) as caught:
        relume.census(Named(), [batch])
    assert "Named.forward(tokens, mask, scale=1.0)" in str(caught.value)


@pytest.mark.parametrize("error", [TypeError("inside"), KeyError("inside"), RuntimeError("inside")])
def test_an_error_of_the_models_own_is_raised_as_it_is(error):
    class Fails(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(type(error), match="inside"):
        relume.census(Fails(), [torch.randn(3, 2)])


def test_a_model_that_takes_a_dict_as_its_one_argument_gets_it_whole():
    class TakesDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 4)

        def forward(self, batch):
            return F.relu(self.fc(batch["image"]))

    assert relume.census(TakesDict(), [{"image": torch.randn(3, 2), "label": torch.zeros(3)}])[":relu"].inputs == 3


class Bag:
    """A mapping-like batch with a `.to`, as other libraries have them."""

    def __init__(self, x, moved=False):
        self.x, self.moved = x, moved

    def keys(self):
        return ["x"]

    def __getitem__(self, key):
        return getattr(self, key)

    def to(self, device):
        return Bag(self.x.to(device), moved=True)


def test_a_batch_object_of_another_library_stays_what_it_is():
    class TakesBag(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 4)

        def forward(self, data):
            assert data.moved
            return F.relu(self.fc(data.x))

    assert relume.census(TakesBag(), [Bag(torch.randn(3, 2))], min_inputs=1)[":relu"].samples == 3


def test_packed_sequences_are_one_argument():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(2, 4), nn.Linear(4, 3)

        def forward(self, packed):
            return torch.relu(self.fc(self.rnn(packed)[1][0]))

    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    assert relume.census(Packed(), [packed])[":relu"].samples == 2


def test_whole_number_inputs_are_inputs():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 4), nn.ReLU())
    assert relume.census(model, [torch.randint(0, 5, (7, 2))])["3"].inputs == 7
    with relume.watch(model, every=1) as watch:
        model(torch.randint(0, 5, (7, 2)))
    assert watch.census()["3"].inputs == 7


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.fc, self.output = nn.Linear(2, 4), output

    def forward(self, x):
        F.relu(self.fc(x))
        return self.output


@pytest.mark.parametrize(
    "output", [None, 3, "text", {"a": [None, 1]}, [(), ({},)], object(), Bag(None)], ids=lambda o: type(o).__name__
)
def test_outputs_that_are_no_tensors_do_no_harm(output):
    model = Gives(output)
    assert relume.census(model, [torch.randn(6, 2)])[":relu"].inputs == 6
    with relume.watch(model, every=1) as watch:
        assert model(torch.randn(6, 2)) is output
    assert watch.step == 1
    assert watch.census()[":relu"].inputs == 6


# Models


def test_a_model_without_activations_says_what_it_is_made_of():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(NoSitesError, match=r"made of: LayerNorm, Linear.*register_activation"):
        relume.census(model, [torch.randn(3, 2)])
    with (
        pytest.warns(RelumeWarning, match="applied no activation that relume knows") as said,
        relume.watch(model, every=1) as watch,
    ):
        for _ in range(3):
            model(torch.randn(3, 2))
    assert len(said) == 1
    with pytest.raises(EmptyCensusError):
        watch.census()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_and_parts_are_refused_or_named():
    scripted = torch.jit.script(net())
    for use in (lambda: relume.watch(scripted), lambda: relume.census(scripted, [torch.randn(3, 2)])):
        with pytest.raises(RelumeError, match="can't see inside"):
            use()
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), torch.jit.script(net()))
    with pytest.warns(RelumeWarning, match="'2' is a torch.jit.ScriptModule"):
        census = relume.census(model, [torch.randn(3, 2)])
    assert list(census) == ["1"]
    assert any("ScriptModule" in note for note in census.notes)


def test_a_model_on_the_meta_device_is_refused_by_a_census_and_noted_by_a_watch():
    model = net().to("meta")
    with pytest.raises(RelumeError, match="on the meta device"):
        relume.census(model, [torch.randn(3, 2)])
    with pytest.warns(RelumeWarning, match="meta device"), relume.watch(model, every=1, window=1) as watch:
        model(torch.randn(3, 2, device="meta"))
        model(torch.randn(3, 2, device="meta"))
    assert watch.step == 2
    assert not watch.windows


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU())


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_census_does_not_draw_the_weights_of_lazy_layers():
    model = lazy()
    with pytest.raises(RelumeError, match="lazy layers"):
        relume.census(model, [torch.randn(3, 2)])
    assert nn.parameter.is_lazy(model[0].weight)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_watched_from_their_first_batch():
    model = lazy()
    with relume.watch(model, every=1) as watch:
        model(torch.randn(3, 2))
    assert watch.census()["2"].inputs == 3


def test_a_census_is_held_against_the_model_it_is_used_with():
    census = relume.census(net(), [torch.randn(3, 2)])
    census.check_matches(net())
    with pytest.raises(CensusMismatchError, match=r"of another model \(Sequential\): Linear has no module for 1"):
        census.check_matches(nn.Linear(2, 2))


# Arguments


@pytest.mark.parametrize("name", ["every", "window", "min_inputs"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3", None])
def test_whole_numbers_are_asked_for_by_name(name, value):
    model = net()
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1(| or 'auto'), not {value!r}"):
        relume.watch(model, **{name: value})
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    if name == "min_inputs":
        with pytest.raises(ValueError, match=name):
            relume.census(model, [torch.randn(3, 2)], min_inputs=value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"axis": "1"}, "axis is a number"),
        ({"axis": True}, "axis is a number"),
        ({"axis": {"1": None}}, "axis is a number"),
        ({"input_axis": 0.5}, "input_axis is the number"),
        ({"include": 5}, "include takes shell patterns"),
        ({"exclude": ["1", None]}, "exclude takes shell patterns"),
    ],
)
def test_wrong_types_are_named_before_anything_happens(given, says):
    model = net()
    for use in (lambda: relume.watch(model, **given), lambda: relume.census(model, [torch.randn(3, 2)], **given)):
        with pytest.raises(TypeError, match=says):
            use()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_what_is_no_module_optimizer_or_callback_is_refused():
    for wrong in ("model", lambda x: x, None, net):
        with pytest.raises(TypeError, match=r"relume\.watch takes a torch\.nn\.Module"):
            relume.watch(wrong)
        with pytest.raises(TypeError, match=r"relume\.census takes a torch\.nn\.Module"):
            relume.census(wrong, [])
    model = net()
    for wrong in ("sgd", 0.1, [0.1], model):
        with pytest.raises(TypeError, match=r"is no torch\.optim\.Optimizer"):
            relume.watch(model, wrong)
    with pytest.raises(TypeError, match="on_window is a function"):
        relume.watch(model, on_window=3)
    with pytest.raises(ValueError, match="phase is 'train' or 'eval', not 'test'"):
        relume.census(model, [torch.randn(3, 2)], phase="test")
    with relume.watch(model) as watch, pytest.raises(ValueError, match="phase is 'train' or 'eval'"):
        watch.census(phase="test")


def test_an_axis_that_is_none_is_an_error_naming_it():
    model = net()
    with pytest.raises(AxisError, match="axis=5"):
        relume.census(model, [torch.randn(3, 2)], axis=5)
    with relume.watch(model, every=1, axis={"1": 5}), pytest.raises(AxisError, match="axis=5"):
        model(torch.randn(3, 2))
    assert not _get_current_function_mode_stack()


def test_an_optimizer_of_another_model_is_warned_of():
    model, other = net(), net()
    with pytest.warns(RelumeWarning, match="the optimizer holds no parameter of Sequential"):
        relume.watch(model, torch.optim.SGD(other.parameters(), lr=0.1)).close()


# The model is left as it was


class Moody(nn.Module):
    """Changes all that a forward pass can change: buffers, random states; and may raise."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("grown", torch.zeros(2))
        self.register_buffer("unset", None)
        self.register_buffer("strange", torch.tensor([torch.nan, 1.0]))
        self.fails_at = -1

    def forward(self, x):
        self.count += 1
        self.replaced = torch.ones(3)
        self.grown.resize_(5).fill_(7)
        self.unset = torch.ones(1)
        self.strange *= 2
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(1))
        random.random(), np.random.rand()
        if self.count == self.fails_at:
            raise ValueError("as planted")
        return F.relu(self.drop(self.norm(self.fc(x))))


def everything(model):
    hooks = [len(getattr(m, n)) for m in model.modules() for n in vars(m) if n.endswith("_hooks") and getattr(m, n)]
    return {
        "modes": {n: m.training for n, m in model.named_modules()},
        "buffers": {n: (id(b), repr(b)) for n, b in model.named_buffers()},
        "unset": model._buffers["unset"],
        "parameters": {n: (p.detach().clone().tolist(), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "hooks": hooks,
        "global hooks": [len(v) for n, v in vars(nn_module).items() if n.startswith("_global") and isinstance(v, dict)],
        "torch's modes": _get_current_function_mode_stack(),
        "gradients": torch.is_grad_enabled(),
        "chance": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
    }


@pytest.mark.parametrize("fails_at", [-1, 1, 2])
@pytest.mark.parametrize("phase", ["train", "eval"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_census_leaves_the_model_as_it_was(fails_at, phase, mixed):
    model = Moody()
    model.fails_at = fails_at
    if mixed:
        model.norm.eval()
        model.fc.weight.requires_grad_(False)
    view = model.norm.running_mean[:2]
    x = [torch.randn(6, 2) for _ in range(3)]
    before = everything(model)
    if fails_at > 0:
        with pytest.raises(ValueError, match="as planted"):
            relume.census(model, x, phase=phase)
    else:
        assert relume.census(model, x, phase=phase)[":relu"].inputs == 18
    assert everything(model) == before
    assert view.data_ptr() == model.norm.running_mean.data_ptr()
    assert view.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("gradients", [True, False])
def test_a_census_leaves_the_gradient_mode_and_batches_that_raise_leave_the_model(gradients):
    model = Moody()
    before = everything(model)

    def batches():
        yield torch.randn(3, 2)
        raise KeyError("in the loader")

    with torch.set_grad_enabled(gradients):
        with pytest.raises(KeyError, match="in the loader"):
            relume.census(model, batches())
        assert torch.is_grad_enabled() == gradients
    assert everything(model) == before


def test_a_mode_that_can_not_be_set_leaves_the_model():
    class Stubborn(Moody):
        def train(self, mode=True):
            super().train(mode)
            if not mode:
                raise RuntimeError("never")
            return self

    model, x = Stubborn(), [torch.randn(3, 2)]
    before = everything(model)
    with pytest.raises(RuntimeError, match="never"):
        relume.census(model, x)
    assert everything(model) == before


def test_a_model_that_changes_with_its_mode_is_asked_to_change_back():
    """Layers that fold their weights for evaluation undo it in `train(True)`: setting the flag alone would not do."""

    class Folds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.scale = nn.Linear(2, 4), 2.0

        def train(self, mode=True):
            if mode != self.training:
                self.fc.weight.data *= 1 / self.scale if mode else self.scale
            return super().train(mode)

        def forward(self, x):
            return F.relu(self.fc(x))

    model = Folds()
    before = model.fc.weight.detach().clone()
    relume.census(model, [torch.randn(3, 2)])
    assert torch.equal(model.fc.weight, before)
    assert model.training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::relume.errors.RelumeWarning")
def test_a_scripted_part_keeps_its_own_mode():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), torch.jit.script(net()))
    model[2].eval()
    relume.census(model, [torch.randn(3, 2)], phase="train")
    assert [m.training for m in model] == [True, True, False]


def test_a_logged_number_may_be_a_tensor_of_one_element_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with relume.watch(model) as watch:
        watch.log(loss=model(torch.ones(1, 2)).sum() * 0 + 1.5, accuracy=torch.tensor([1]))
        assert [row[1:] for row in watch.scalars] == [("loss", 1.5), ("accuracy", 1.0)]
        for wrong in (torch.ones(2), "a lot", None):
            with pytest.raises(TypeError, match="loss is a number, or a tensor of one element"):
                watch.log(loss=wrong)
