"""A compiled model has the census of the eager one, trains bit for bit as without a watch, and compiles no more."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.errors import RelumeWarning

FULL = {"backend": "aot_eager", "fullgraph": True}


def wrapped_and_given(model, optimizer, watch):
    compiled = torch.compile(model, **FULL)
    return compiled, watch(compiled, optimizer)


def wrapped_before(model, optimizer, watch):
    compiled = torch.compile(model, **FULL)
    return compiled, watch(model, optimizer)


def wrapped_after(model, optimizer, watch):
    opened = watch(model, optimizer)
    return torch.compile(model, **FULL), opened


def in_place_before(model, optimizer, watch):
    model.compile(**FULL)
    return model, watch(model, optimizer)


def in_place_after(model, optimizer, watch):
    opened = watch(model, optimizer)
    model.compile(**FULL)
    return model, opened


def blocks_wrapped(model, optimizer, watch):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, **FULL)
    return model, watch(model, optimizer)


def blocks_in_place(model, optimizer, watch):
    for block in model.blocks:
        block.compile(**FULL)
    return model, watch(model, optimizer)


def blocks_after(model, optimizer, watch):
    opened = watch(model, optimizer)
    for block in model.blocks:
        block.compile(**FULL)
    return model, opened


def a_function(model, optimizer, watch):
    model.activation = torch.compile(lambda x: F.relu(x), **FULL)
    return model, watch(model, optimizer)


def its_forward(model, optimizer, watch):
    model.forward = torch.compile(model.forward, **FULL)
    return model, watch(model, optimizer)


class Outer(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return 2 * self.body(x)


def within_another_before(model, optimizer, watch):
    compiled = torch.compile(Outer(model), **FULL)
    return compiled, watch(model, optimizer)


def within_another_after(model, optimizer, watch):
    opened = watch(model, optimizer)
    return torch.compile(Outer(model), **FULL), opened


WHOLE = [wrapped_and_given, wrapped_before, wrapped_after, in_place_before, in_place_after]
PARTS = [blocks_wrapped, blocks_in_place, blocks_after, a_function, its_forward]
ANOTHER = [within_another_before, within_another_after]
CASES = [("Net", how) for how in (*WHOLE, *PARTS, *ANOTHER)] + [("chain", how) for how in WHOLE[:3]]


class Unwatched:
    """In the place of a watch."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def trained(lab, name, how, watch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = lab.make(name)
    optimizer = lab.adam(model)
    call, opened = how(model, optimizer, watch)
    with opened:
        outcome = lab.train(model, call, optimizer)
    return outcome, lab.compiles(), opened


def watched(model, optimizer):
    return relume.watch(model, optimizer, every=2)


@pytest.mark.parametrize(("name", "how"), CASES, ids=[f"{name}-{how.__name__}" for name, how in CASES])
def test_census_as_eager_training_as_compiled_and_nothing_compiled_anew(lab, name, how):
    expected = lab.eager(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RelumeWarning)
        warnings.filterwarnings("error", message="Using `torch.compile")
        bare, compiled_bare, _ = trained(lab, name, how, lambda model, optimizer: Unwatched())
        got, compiled, watch = trained(lab, name, how, watched)
    assert lab.same(bare, got)
    assert lab.counted(watch) == expected
    assert compiled == compiled_bare
    assert compiled_bare[0] > 0
    assert watch.step == 5
    assert not watch.notes


@pytest.mark.parametrize("how", [wrapped_and_given, wrapped_after, in_place_after, blocks_in_place])
def test_a_model_compiled_by_inductor_trains_bit_for_bit_the_same(lab, how, monkeypatch):
    monkeypatch.setitem(FULL, "backend", "inductor")
    bare, compiled_bare, _ = trained(lab, "chain" if how in WHOLE[:3] else "Net", how, lambda *_: Unwatched())
    got, compiled, watch = trained(lab, "chain" if how in WHOLE[:3] else "Net", how, watched)
    assert lab.same(bare, got)
    assert compiled == compiled_bare
    assert watch.census("all").dead_fraction >= 0.0
    assert watch.census("all", phase="eval")


def test_a_census_of_a_compiled_model_is_that_of_the_eager_one(lab):
    batches = [torch.randn(64, 4) for _ in range(5)]
    expected = relume.census(lab.make(), batches)

    def as_dict(census):
        return {n: (census[n].fired.tolist(), census[n].site, census[n].inputs) for n in census}

    model = lab.make().eval()
    compiled = torch.compile(model, **FULL)
    compiled(batches[0])
    before = lab.compiles()
    for given in (compiled, model):
        assert as_dict(relume.census(given, batches)) == as_dict(expected)
        assert relume.census(given, batches).model == "Net"
    in_place = lab.make()
    in_place.compile(**FULL)
    assert as_dict(relume.census(in_place, batches)) == as_dict(expected)
    parts = lab.make()
    parts.blocks[0] = torch.compile(parts.blocks[0], **FULL)
    assert as_dict(relume.census(parts, batches)) == as_dict(expected)
    assert lab.compiles() == before
    compiled(batches[0])
    assert lab.compiles() == before
    assert expected["blocks.0.act"].dead.tolist() == [i == 2 for i in range(8)]


def test_a_graph_that_breaks_breaks_no_more_often_and_counts_the_same(lab):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = lab.make()

        def forward(self, x):
            y = self.body(x)
            torch._dynamo.graph_break()
            return F.relu(y)

    fresh = Broken()

    def run(compile_, watch):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = copy.deepcopy(fresh)
        optimizer = lab.adam(model)
        with watch(model, optimizer) as opened:
            call = torch.compile(model, backend="aot_eager") if compile_ else model
            return lab.train(model, call, optimizer), lab.compiles(), opened

    _, _, eager = run(False, watched)
    bare, compiled_bare, _ = run(True, lambda *_: Unwatched())
    got, compiled, watch = run(True, watched)
    assert lab.same(bare, got)
    assert compiled == compiled_bare
    assert compiled_bare[2]
    assert lab.counted(watch) == lab.counted(eager)


def test_without_an_optimizer_each_compiled_training_forward_is_a_step(lab):
    model = lab.make()
    with relume.watch(model, every=1) as watch:
        compiled = torch.compile(model, **FULL)
        for _ in range(4):
            compiled(torch.randn(8, 4))
        with torch.no_grad():
            compiled(torch.randn(8, 4))
    assert watch.step == 4
    assert watch.census("all")[":relu"].inputs == 32
    assert watch.census("all", phase="eval")[":relu"].inputs == 8


def test_the_eager_model_beside_the_compiled_one_is_seen_as_well(lab):
    model = lab.make()
    compiled = torch.compile(model, **FULL)
    with relume.watch(compiled, lab.adam(model), every=1) as watch:
        compiled(torch.randn(8, 4))
        model(torch.randn(8, 4))
        model.eval()
        model(torch.randn(5, 4))
    assert watch.census("all")[":relu"].inputs == 16
    assert watch.census("all", phase="eval")[":relu"].inputs == 5


def test_dropout_draws_the_same_in_the_look_aside_as_in_the_compiled_pass():
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.fc = nn.Dropout(0.5), nn.Linear(16, 16)

        def forward(self, x):
            x = F.relu(self.fc(self.drop(x)))
            return x

    model = Seen()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with relume.watch(compiled, every=1) as watch:
        fired = sum((compiled(torch.randn(32, 16)) > 0).sum(0) for _ in range(3))
    assert watch.census("all")[":relu"].fired.tolist() == fired.tolist()


def test_on_unobserved_steps_a_compiled_model_runs_once(lab):
    runs = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            runs.append(type(x))
            return F.relu(self.fc(x))

    model = Counting()
    model.forward = torch._dynamo.disable(model.forward)
    compiled = torch.compile(model, backend="eager")
    with relume.watch(compiled, lab.adam(model), every=3) as watch:
        for _ in range(6):
            compiled(torch.randn(8, 4)).sum().backward()
            watch._optimizers[0].step()
    assert len(runs) == 6 + 2


def test_a_compiled_function_that_the_model_calls_only_later_is_noticed_and_looked_at_aside(lab):
    def run(watching):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = lab.make()
        late = torch.compile(lambda x: F.relu(x), **FULL)
        calls = []

        def activation(x):
            calls.append(1)
            return F.relu(x) if model.early else late(x)

        model.early, model.activation = True, activation
        optimizer = lab.adam(model)
        watch = relume.watch(model, optimizer, every=1) if watching else Unwatched()
        with watch:
            first = lab.train(model, model, optimizer, steps=2, evaluate=False)
            model.early, late_from = False, len(calls)
            second = lab.train(model, model, optimizer, steps=3, evaluate=False)
        return (first, second), len(calls) - late_from, lab.compiles(), watch

    bare, bare_calls, compiled_bare, _ = run(False)
    got, calls, compiled, watch = run(True)
    assert all(map(lab.same, bare, got))
    assert (bare_calls, calls) == (3, 5)  # in sight at first, then twice aside
    assert compiled[0] == compiled_bare[0] + 1
    assert not compiled[2]
    assert watch.census("all")["blocks.0.act"].inputs == 16 + 9 + 16 + 16 + 9
