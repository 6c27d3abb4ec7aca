"""relume.convert on functions called in a forward pass: each call becomes a child module, however it is written."""

import copy
import functools
import inspect
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import relume

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python tells places of calls from 3.11 on")

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def halved(x):
    """A drop-in that can't be taken for any ReLU: what is converted shows in the output."""
    return torch.where(x > 0, x, 0.5 * x)


class Halved(nn.Module):
    def forward(self, x):
        return torch.lerp(0.5 * x, x, (x > 0).to(x.dtype))


def _assign(x):
    x[x < 0] = 0
    return x


class Base(nn.Module):
    """Two layers; a subclass says how the ReLU between them is written."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, 2)


class Statement(Base):
    def forward(self, x):
        h = self.fc1(x)
        h.relu_()
        return self.fc2(h)


class InPlace(Base):
    def forward(self, x):
        h = self.fc1(x)
        alias = h
        F.relu(h, inplace=True)
        return self.fc2(alias)


class Assigned(Base):
    def forward(self, x):
        h = self.fc1(x)
        h[h < 0] = 0
        return self.fc2(h)


class Product(Base):
    def forward(self, x):
        h = self.fc1(x)
        h *= h > 0
        return self.fc2(h)


class Keyword(Base):
    def forward(self, x):
        return self.fc2(F.relu(inplace=False, input=self.fc1(x)))


class Chained(Base):
    def forward(self, x):
        return self.fc2(self.fc1(x).mul(1.0).relu().mul(1.0))


class Branch(Base):
    def forward(self, x, twice=False):
        """Says
        what it does, in several lines."""
        return self.fc2(F.relu(self.fc1(x)) if not twice else self.fc1(x))


class Nested(Base):
    def forward(self, x):
        def act(t):
            return t.clamp(min=0)

        return self.fc2(act(self.fc1(x)))


class Lambda(Base):
    def __init__(self):
        super().__init__()
        self.act = lambda t: F.relu(t)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Partial(Base):
    def __init__(self):
        super().__init__()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.0)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class OnTheFly(Base):
    def forward(self, x):
        return self.fc2(nn.ReLU()(self.fc1(x)))


class Decorated(Base):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class Mangled(Base):
    def __act(self, x):
        return F.relu(x)

    def forward(self, x):
        return self.fc2(self.__act(self.fc1(x)))


class Super(Base):
    def forward(self, x):
        assert __class__ is Super
        super().extra_repr()
        return self.fc2(torch.relu(self.fc1(x)))


class Local(Base):
    def forward(self, x):
        relu = F.relu
        return self.fc2(relu(self.fc1(x)))


STYLES = [
    Statement, InPlace, Assigned, Product, Keyword, Chained, Branch, Nested, Lambda, Partial, OnTheFly, Decorated,
    Mangled, Super, Local,
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_a_call_is_converted_however_it_is_written(style):
    model = style()
    conversion = relume.convert(model, Halved, batches=X)
    assert [s.outcome for s in conversion] == ["converted"], conversion
    assert torch.equal(model(X), model.fc2(halved(model.fc1(X))))
    model(X).sum().backward()
    assert model.fc1.weight.grad.abs().sum() > 0
    conversion.undo()
    assert type(model) is style
    assert torch.equal(model(X), model.fc2(model.fc1(X).clamp(min=0)))


def test_the_rewritten_method_reads_as_if_it_had_been_written_so():
    model = Keyword()
    relume.convert(model, "drelu", batches=X)
    assert "return self.fc2(self.activation(self.fc1(x)))" in inspect.getsource(type(model).forward)
    assert isinstance(model, Keyword)
    assert type(model).__name__ == "Keyword"
    assert "forward" in vars(Keyword)  # the class itself, and every other instance of it, is as it was
    assert type(Keyword()) is Keyword


def test_each_call_has_a_module_with_its_own_units():
    class Model(Base):
        def forward(self, x):
            return F.relu(self.fc2(F.relu(self.fc1(x)))) + torch.relu(self.fc2(self.fc1(x)))

    model = Model()
    conversion = relume.convert(model, "drelu", batches=X)
    assert [s.units for s in conversion] == [10, 2, 2]
    assert sorted(m.channels for m in model.modules() if isinstance(m, relume.nn.DReLU)) == [2, 2, 10]


def test_only_the_chosen_one_of_two_calls_in_a_line_is_converted():
    class Model(Base):
        def forward(self, x):
            return F.relu(self.fc2(F.relu(self.fc1(x))))

    model = Model()
    relume.convert(model, Halved, ":relu#1", batches=X)
    assert torch.equal(model(X), halved(model.fc2(model.fc1(X).clamp(min=0))))


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4)])

    def forward(self, x, upto=3):
        for layer in self.layers[:upto]:
            x = F.relu(layer(x))
        return x


def test_in_a_loop_each_turn_has_its_own_module():
    model = Loop()
    conversion = relume.convert(model, "drelu", batches=X)
    assert [m.channels for m in model.activation] == [8, 5, 4]
    assert [s.after for s in conversion] == ["activation.0", "activation.1", "activation.2"]
    model.eval()
    a, b = model.activation[0], model.activation[1]
    assert torch.equal(model(X, 2), b(model.layers[1](a(model.layers[0](X)))))


def test_in_a_loop_one_turn_is_converted():
    model = Loop()
    relume.convert(model, Halved, ":relu#1", batches=X)
    h = halved(model.layers[1](model.layers[0](X).relu()))
    assert torch.equal(model(X), model.layers[2](h).relu())


def test_in_a_comprehension_too():
    class Model(Base):
        def forward(self, x):
            return torch.cat([F.relu(layer(x)) for layer in (self.fc1, self.fc1)], 1)

    model = Model()
    relume.convert(model, "drelu", batches=X)
    assert [m.channels for m in model.activation] == [10, 10]


def test_a_module_run_twice_shares_its_activation():
    block = Keyword()
    block.fc2 = nn.Linear(10, 6)
    model = nn.Sequential(block, block)
    conversion = relume.convert(model, "drelu", batches=X)
    assert block.activation.channels == 1
    assert "one module for 2 uses" in conversion[0].reason


def test_a_call_that_no_method_makes_is_refused_with_the_place():
    class Model(Base):
        def forward(self, x):
            return self.fc2(_assign(self.fc1(x)))

    model = Model()
    conversion = relume.convert(model, "drelu", batches=X)
    assert conversion[0].outcome == "can't"
    assert "_assign() (test_convert_functions.py:" in conversion[0].reason
    assert type(model) is Model


def test_a_method_called_by_super_is_refused():
    class Child(Keyword):
        def forward(self, x):
            return super().forward(x) + 1

    conversion = relume.convert(Child(), "drelu", batches=X)
    assert "called through super()" in conversion[0].reason


def test_recurrent_kernels_and_gates_are_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.RNN(6, 5, nonlinearity="relu", batch_first=True), nn.Linear(5, 4)

        def forward(self, x):
            return F.glu(self.fc(self.rnn(x)[0]))

    conversion = relume.convert(Model(), "drelu", where="*", batches=torch.randn(4, 3, 6))
    assert {s.outcome for s in conversion} == {"can't"}
    assert "fused kernel of RNN" in conversion[0].reason
    assert "two inputs" in conversion[-1].reason


def test_a_second_conversion_takes_up_what_the_first_left():
    class Model(Base):
        def forward(self, x):
            return torch.sigmoid(self.fc2(F.relu(self.fc1(x))))

    model = Model()
    first = relume.convert(model, Halved, ":relu", batches=X)
    second = relume.convert(model, lambda: nn.Softsign(), ":sigmoid", batches=X)
    assert second[":sigmoid"].outcome == "converted"
    assert torch.equal(model(X), F.softsign(model.fc2(halved(model.fc1(X)))))
    with pytest.raises(relume.RelumeError, match="undo the later conversion first"):
        first.undo()
    second.undo()
    assert torch.equal(model(X), torch.sigmoid(model.fc2(halved(model.fc1(X)))))
    first.undo()
    assert type(model) is Model


def test_copies_and_pickles_compute_the_same_and_stand_alone():
    model = Loop()
    relume.convert(model, "prelu", batches=X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X))
        assert list(twin.state_dict()) == list(model.state_dict())
        with torch.no_grad():
            twin.activation[0].weight.fill_(3.0)
        assert not torch.equal(twin(X), model(X))


def test_a_pickle_of_code_that_has_changed_says_so(monkeypatch):
    model = Loop()
    relume.convert(model, "prelu", batches=X)
    kept = pickle.dumps(model)

    def forward(self, x):
        return F.relu(x)

    monkeypatch.setattr(Loop, "forward", forward)
    from relume.treat.convert import rewrite

    rewrite._CLASSES.clear()
    with pytest.raises(Exception, match=r"Loop.forward is not written as it was"):
        pickle.loads(kept)


def test_source_that_was_changed_after_it_was_imported_is_not_trusted(tmp_path):
    import importlib.util
    import linecache

    file = tmp_path / "changing.py"
    text = (
        "import torch.nn.functional as F\nfrom torch import nn\n\n\nclass M(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(6, 3)\n\n"
        "    def forward(self, x):\n        return F.relu(self.fc(x)) * 2\n"
    )
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("changing", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file.write_text(text.replace("* 2", "* 3"))
    linecache.checkcache()
    conversion = relume.convert(module.M(), "gelu", batches=X)
    assert "changed since it was imported" in conversion[0].reason
    file.write_text(text)
    linecache.clearcache()
    assert relume.convert(module.M(), "gelu", batches=X)[0].outcome == "converted"


def test_checkpointing_runs_the_method_again():
    model = Loop()
    relume.convert(model, "prelu", batches=X)
    model(X).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint(model, X, use_reentrant=False).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


def test_compiled_and_exported_models_apply_the_new_activation():
    model = Loop().eval()
    relume.convert(model, "prelu", batches=X)
    with torch.no_grad():
        for use in model.activation:
            use.weight.fill_(0.7)
    torch._dynamo.reset()
    seen = torch.compile(model, backend="eager", fullgraph=True)(X)
    torch.testing.assert_close(seen, model(X))
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), model(X))
    torch._dynamo.reset()


def test_a_model_that_has_been_compiled_is_compiled_anew():
    torch._dynamo.reset()
    model = Keyword().eval()
    fast = torch.compile(model, backend="eager")
    before = fast(X)
    conversion = relume.convert(fast, Halved, batches=X)
    assert any("compiled anew" in note for note in conversion.notes)
    torch.testing.assert_close(fast(X), model.fc2(halved(model.fc1(X))))
    conversion.undo()
    torch.testing.assert_close(fast(X), before)
    torch._dynamo.reset()


def test_torchscript_and_fx_see_the_new_activation():
    model = Keyword().eval()
    relume.convert(model, "leaky_relu(0.5)", batches=X)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(X), model(X))
    torch.testing.assert_close(torch.jit.script(model)(X), model(X))


def test_a_watch_that_is_open_sees_the_new_sites():
    model = Keyword()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with relume.watch(model, optimizer, every=1, window=2) as watch:
        for step in range(6):
            if step == 2:
                relume.convert(model, "drelu", batches=X, optimizer=optimizer)
            optimizer.zero_grad()
            model(X).sum().backward()
            optimizer.step()
        first, last = watch.census(0), watch.census()
    assert first[":relu"].reached
    assert not last[":relu"].reached
    assert last["activation"].reached
    assert last["activation"].site.activation == "drelu"


def test_huggingface_models_by_config_string():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=50,
        hidden_act="gelu",
    )
    model = transformers.BertModel(config).eval()
    batch = [{"input_ids": torch.randint(0, 50, (2, 7))}]
    conversion = relume.convert(model, "drelu", batches=batch)
    made = [m for m in model.modules() if isinstance(m, relume.nn.DReLU)]
    assert [(m.channels, m.axis) for m in made] == [(24, -1), (24, -1)], conversion
    assert conversion.change > 0
    conversion.undo()
    assert not [m for m in model.modules() if isinstance(m, relume.nn.DReLU)]
