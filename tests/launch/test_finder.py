"""Which models of a script are watched, under which names, and how their steps are counted.

PYTEST_DONT_REWRITE: rewritten assertions read `locals()`, and names are not looked for in functions that do.
"""

import copy
import gc
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from relume.launch.finder import Finder, Root


class Found:
    """A finder, and what it told."""

    def __init__(self, **settings) -> None:
        self.roots: list[Root] = []
        self.troubles: list[tuple[str, Exception]] = []
        settings = {"every": 1, "window": 4, **settings}
        self.finder = Finder(settings, self.roots.append, lambda doing, error: self.troubles.append((doing, error)))

    def close(self) -> dict[str, tuple[int, list[tuple[str, int]]]]:
        """By name: steps, and sites with their units."""
        self.finder.close()
        for root in self.roots:
            root.watch.close()
        assert not self.troubles, self.troubles
        return {r.name: (r.watch.step, [(s.name, s.units) for s in r.watch.sites]) for r in self.roots}


@pytest.fixture
def found():
    made: list[Found] = []

    def make(**settings) -> Found:
        made.append(Found(**settings))
        return made[-1]

    yield make
    for one in made:
        one.finder.close()
        for root in one.roots:
            root.watch.close()
    assert not torch_modules._global_forward_pre_hooks
    assert not _global_optimizer_post_hooks
    assert not _global_optimizer_pre_hooks


def mlp(units: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, 4))


def sgd(*models: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for m in models for p in m.parameters()], lr=0.01)


def step(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.square().mean().backward()
    optimizer.step()


X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))


def test_a_trained_model_is_watched_from_step_0_under_its_variables_name(found) -> None:
    f = found()
    network = mlp()
    optimizer = sgd(network)
    for _ in range(6):
        step(network(X), optimizer)
    assert f.close() == {"network": (6, [("1", 8)])}
    windows = f.roots[0].watch.windows
    assert [(w.first_step, w.last_step, w.observed) for w in windows] == [(0, 3, 4), (4, 5, 2)]
    assert f.roots[0].watch.about["optimizer"] == "SGD"


def test_the_call_of_step_0_is_counted_with_its_keyword_arguments(found) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, *, x):
            return F.relu(self.linear(x))

    f = found(window=1)
    net = Net()
    optimizer = sgd(net)
    for _ in range(2):
        step(net(x=X), optimizer)
    assert f.close() == {"net": (2, [(":relu", 8)])}
    first = f.roots[0].watch.census(0)[":relu"]
    assert first.inputs == 300  # keywords reached the watch: axis 0 of x counts inputs
    assert first.units == 8


def test_gradient_accumulation_counts_optimizer_steps(found) -> None:
    f = found()
    model = mlp()
    optimizer = sgd(model)
    for i in range(12):
        model(X).square().mean().backward()
        if i % 3 == 2:
            optimizer.step()
    f.close()
    assert f.roots[0].watch.step == 4
    assert f.roots[0].watch.census("all")["1"].inputs == 12 * 300


def test_two_networks_with_two_optimizers_keep_their_own_steps(found) -> None:
    class Gan:
        def __init__(self) -> None:
            self.generator, self.critic = mlp(8), mlp(6)

        def train(self) -> None:
            g, c = sgd(self.generator), sgd(self.critic)
            for i in range(9):
                step(self.critic(self.generator(X).detach()), c)
                if i % 3 == 2:
                    step(self.critic(self.generator(X)), g)

    f = found()
    Gan().train()
    assert f.close() == {"critic": (9, [("1", 6)]), "generator": (3, [("1", 8)])}


def test_teachers_averages_and_models_that_are_only_evaluated_are_not_watched(found) -> None:
    f = found()
    student, teacher, judge = mlp(), mlp().requires_grad_(False), mlp()
    optimizer = sgd(student)
    step(student(X), optimizer)
    average = copy.deepcopy(student)
    for _ in range(20):
        step(student(X) - teacher(X), optimizer)
        with torch.no_grad():
            average(X)
        judge.eval()(X)
    assert f.close() == {"student": (21, [("1", 8)])}


def test_the_copy_of_a_watched_model_counts_only_when_it_is_trained_itself(found) -> None:
    f = found()
    model = mlp()
    step(model(X), sgd(model))
    twin = copy.deepcopy(model)
    optimizer = sgd(twin)
    for _ in range(3):
        step(twin(X), optimizer)
    assert f.close() == {"model": (1, [("1", 8)]), "twin": (3, [("1", 8)])}


def test_a_model_that_no_optimizer_steps_is_dropped_and_named_in_the_end(found) -> None:
    f = found()
    model = mlp()
    model(X).mean().backward()
    assert f.close() == {}
    assert list(f.finder.seen.idle) == ["model (Sequential)"]
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_model_without_sites_is_dropped_without_a_warning(found) -> None:
    f = found()
    linear = nn.Linear(4, 4)
    optimizer = sgd(linear)
    for _ in range(20):
        step(linear(X), optimizer)
    assert f.close() == {}
    assert list(f.finder.seen.without_sites) == ["linear (Linear)"]


def test_parts_are_watched_when_their_owner_is_never_called(found) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extractor = nn.ModuleList([mlp(8), mlp(6)])
            self.value = mlp(7)

        def evaluate(self, x):
            return self.extractor[0](x) + self.extractor[1](x) + self.value(x)

    f = found()
    agent = Policy()
    optimizer = sgd(agent)
    for _ in range(3):
        step(agent.evaluate(X), optimizer)
    assert f.close() == {
        "extractor.0": (3, [("1", 8)]),
        "extractor.1": (3, [("1", 6)]),
        "value": (3, [("1", 7)]),
    }


def test_the_outer_model_is_kept_when_both_it_and_a_part_are_called(found) -> None:
    f = found()
    encoder = mlp()
    model = nn.Sequential(encoder, nn.ReLU())
    optimizer = sgd(model)
    for _ in range(3):
        step(encoder(X) + model(X), optimizer)
    assert f.close() == {"model": (3, [("0.1", 8), ("1", 4)])}


def test_a_part_trained_first_is_followed_by_the_whole(found) -> None:
    f = found()
    encoder = mlp()
    optimizer = sgd(encoder)
    for _ in range(30):
        step(encoder(X), optimizer)
    classifier = nn.Sequential(encoder, nn.ReLU())
    second = sgd(classifier)
    for _ in range(5):
        step(classifier(X), second)
    told = f.close()
    assert told == {"encoder": (31, [("1", 8)]), "classifier": (5, [("0.1", 8), ("1", 4)])}


def test_the_search_ends_and_comes_back_for_an_optimizer_that_is_not_known(found) -> None:
    f = found()
    first, late = mlp(), mlp(6)
    optimizer = sgd(first)
    for _ in range(20):
        step(first(X), optimizer)
    assert not torch_modules._global_forward_pre_hooks
    assert len(first._forward_pre_hooks) == 1  # the watch's own
    assert not first._forward_hooks
    second = sgd(late)
    for _ in range(7):
        step(late(X), second)
    assert torch_modules._global_forward_pre_hooks
    assert f.close() == {"first": (20, [("1", 8)]), "late": (7, [("1", 6)])}
    # The search began with step 1 of the second optimizer.
    assert [(w.first_step, w.observed) for w in f.roots[1].watch.windows] == [(1, 4), (5, 2)]


def test_inner_modules_carry_no_hook_and_no_global_hook_while_the_model_runs(found, monkeypatch) -> None:
    # Where there are other threads, which earlier tests may have left, the search goes on during calls.
    monkeypatch.setattr(threading, "active_count", lambda: 1)

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(len(torch_modules._global_forward_pre_hooks))
            return x

    seen: list[int] = []
    f = found(every=100)
    model = nn.Sequential(Spy(), mlp())
    optimizer = sgd(model)
    for _ in range(3):
        step(model(X), optimizer)
    assert seen[-2:] == [0, 0]  # the first is an observed step: there the tracker has its own
    assert f.close() == {"model": (3, [("1.1", 8)])}


def test_a_closure_within_the_step_is_of_that_step(found) -> None:
    f = found(window=1)
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert f.close() == {"model": (3, [("1", 8)])}
    assert f.roots[0].watch.windows[0].first_step == 0


def test_an_optimizer_around_another_makes_one_step_not_two(found) -> None:
    class Around(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            self.inner.step(closure)

    f = found()
    model = mlp()
    optimizer = Around(sgd(model))
    for _ in range(5):
        step(model(X), optimizer)
    assert f.close() == {"model": (5, [("1", 8)])}


def test_of_two_optimizers_for_two_halves_the_first_sets_the_pace(found) -> None:
    f = found()
    model = mlp()
    lower, upper = sgd(model[0]), torch.optim.Adam(model[2].parameters())
    for _ in range(15):
        model.zero_grad()
        model(X).square().mean().backward()
        lower.step()
        upper.step()
    assert f.close() == {"model": (15, [("1", 8)])}
    assert f.roots[0].watch.about["optimizer"] == "SGD, Adam"


def test_a_new_optimizer_for_the_same_parameters_goes_on_counting(found) -> None:
    f = found()
    model = mlp()
    for _ in range(3):
        optimizer = sgd(model)
        for _ in range(4):
            step(model(X), optimizer)
    assert f.close() == {"model": (12, [("1", 8)])}


def test_when_the_first_optimizer_is_done_with_its_half_the_second_takes_over(found) -> None:
    f = found()
    model = mlp()
    first = sgd(model[2])
    for _ in range(5):
        step(model(X), first)
    second = sgd(model[0])
    for _ in range(30):
        step(model(X), second)
    assert f.close() == {"model": (25, [("1", 8)])}  # ten steps pass until it is certain


def test_a_step_that_raised_does_not_hide_the_next_ones(found) -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if fail.pop():
                raise ZeroDivisionError
            return super().step(closure)

    fail = [False, False, True, False]
    f = found()
    model = mlp()
    optimizer = Fails(model.parameters(), lr=0.1)
    for _ in range(4):
        try:
            step(model(X), optimizer)
        except ZeroDivisionError:
            continue
    assert f.close() == {"model": (3, [("1", 8)])}


def test_an_interrupted_call_does_not_end_the_search(found) -> None:
    class Interrupted(nn.Module):
        def forward(self, x):
            if interrupts.pop():
                raise KeyboardInterrupt
            return x

    interrupts = [False] * 10 + [True]
    f = found()
    model, other = nn.Sequential(mlp(), Interrupted()), mlp(6)
    optimizer, second = sgd(model), sgd(other)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    step(model(X), optimizer)
    step(other(X), second)
    step(model(X), optimizer)
    step(other(X), second)
    assert f.close() == {"model": (2, [("0.1", 8)]), "other": (2, [("1", 6)])}


def test_models_trained_in_several_threads_are_found(found) -> None:
    f = found()

    def train(units: int) -> None:
        net = mlp(units)
        optimizer = sgd(net)
        for _ in range(10):
            step(net(X), optimizer)

    threads = [threading.Thread(target=train, args=(units,)) for units in (5, 6, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    f.close()
    assert sorted(r.watch.sites[0].units for r in f.roots) == [5, 6, 7]
    assert {r.watch.step for r in f.roots} == {10}


def test_training_is_bitwise_what_it_is_without(found) -> None:
    def train() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(20):
            step(model(X), optimizer)
        state = [*model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
        return [*state, torch.get_rng_state()]

    bare = train()
    f = found(every=2)
    watched = train()
    assert f.close() == {"model": (20, [("2", 16)])}
    for a, b in zip(bare, watched, strict=True):
        assert torch.equal(a, b)


def test_a_finder_that_fails_says_so_and_lets_the_training_go_on(found, monkeypatch) -> None:
    f = found()
    monkeypatch.setattr("relume.launch.finder.name_of", lambda *_: 1 / 0)
    model = mlp()
    optimizer = sgd(model)
    for _ in range(3):
        step(model(X), optimizer)
    (doing, error), *_ = f.troubles
    assert doing == "looking at a call of Sequential"
    assert isinstance(error, ZeroDivisionError)
    f.troubles.clear()
    assert f.close() == {}


def test_nothing_that_the_script_lets_go_is_kept_alive(found) -> None:
    f = found()
    spare = nn.Linear(2, 2)
    optimizer = sgd(spare)
    batch = X[:, :2].clone()
    step(spare(batch), optimizer)
    f.close()
    kept = [weakref.ref(x) for x in (spare, optimizer, batch)]
    del spare, optimizer, batch
    gc.collect()
    assert [ref() for ref in kept] == [None, None, None]


def test_what_the_script_has_from_locals_stays_as_it_is(found) -> None:
    f = found()

    def train(width: int) -> list[str]:
        settings = locals()
        before = sorted(settings)
        model = mlp(width)
        optimizer = sgd(model)
        step(model(X), optimizer)
        assert sorted(settings) == before
        return before

    assert train(8) == ["width"]
    assert f.close() == {"Sequential": (1, [("1", 8)])}


def test_a_script_may_turn_warnings_into_errors(found) -> None:
    f = found()
    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)  # a watch has something to say of it
    optimizer = sgd(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step(encoder(X.reshape(30, 10, 4)), optimizer)
        step(nn.Linear(4, 4)(X), sgd(nn.Linear(4, 4)))
    assert f.close() == {"encoder": (3, [(":relu", 8)])}
    assert f.roots[0].watch.notes


def test_a_watched_model_can_be_scripted_and_goes_on_being_watched(found) -> None:
    f = found()
    model = mlp()
    optimizer = sgd(model)
    step(model(X), optimizer)
    outer = torch.jit.script(nn.Sequential(model, nn.Tanh()))
    assert torch.equal(outer(X), model(X).tanh())
    step(model(X), optimizer)
    assert f.close() == {"model": (2, [("1", 8)])}
    assert f.roots[0].watch.census("all")["1"].inputs == 900


def test_a_model_saved_whole_carries_nothing_of_relume(found, tmp_path) -> None:
    f = found()
    model = mlp()
    step(model(X), sgd(model))
    torch.save(model, tmp_path / "model.pt")
    f.close()
    assert b"relume" not in (tmp_path / "model.pt").read_bytes()
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(X), model(X))


def test_a_compiled_model_runs_without_the_search_and_is_named(found) -> None:
    f = found()
    model = torch.compile(mlp(), backend="eager", fullgraph=True)
    optimizer = sgd(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile")
        for _ in range(3):
            step(model(X), optimizer)
    assert [(r.name, r.watch.step) for r in (f.close() and f.roots)] == [("model", 3)]
