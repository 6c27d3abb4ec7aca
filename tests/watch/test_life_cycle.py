"""From `watch(...)` to `close()`: what ends a watch, what may happen in between, and that nothing is left behind."""

# ruff: noqa: PT012, PT031 - a `with` that is tested holds a training, not a single statement

import copy
import gc
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import relume
from relume.errors import EmptyCensusError, RelumeError, RelumeWarning, RunFileError
from relume.sites import tracker
from relume.watch.calls import Hook

MODULE = sys.modules["relume.watch.watch"]  # the name itself is the function
HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class Net(nn.Module):
    """Three units that fire on any input, one that never does; does what `on_forward` says, in its middle."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(2, 4), nn.Linear(4, 1)
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.bias.copy_(torch.tensor([1.0, 1.0, -1.0, 1.0]))
        self.on_forward = lambda: None

    def forward(self, x):
        h = F.relu(self.fc(x))
        self.on_forward()
        return self.out(h)


def make(lr=0.0):
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def step(model, optimizer, n=1, batch=4):
    for _ in range(n):
        model(torch.randn(batch, 2)).sum().backward()
        optimizer.step()


def left_behind(*modules):
    """Everything of relume that is on the modules or on torch."""
    everywhere = [n for n in dir(nn_module) if n.startswith("_global") and isinstance(getattr(nn_module, n), dict)]
    return [
        *(h for m in modules for part in m.modules() for kind in HOOKS for h in getattr(part, kind).values()),
        *(h for name in everywhere for h in getattr(nn_module, name).values()),
        *_get_current_function_mode_stack(),
    ]


# What ends a watch


class Interrupt(BaseException):
    """Like KeyboardInterrupt, of which torch tells no hook."""


def in_forward(model, optimizer, error):
    def fail():
        raise error

    model.on_forward = fail
    step(model, optimizer)


def in_backward(model, optimizer, error):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise error

    Fails.apply(model(torch.randn(4, 2))).sum().backward()


def in_the_loop(model, optimizer, error):
    raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), Interrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", [in_forward, in_backward, in_the_loop])
def test_an_exception_leaves_nothing_behind_and_is_written_down(place, error, tmp_path):
    model, optimizer = make()
    with pytest.raises(type(error)), relume.watch(model, optimizer, every=1, window=2, save=tmp_path) as watch:
        step(model, optimizer, 3)
        place(model, optimizer, error)
    assert not left_behind(model)
    assert not optimizer._optimizer_step_post_hooks
    assert watch.about["status"] == f"failed: {type(error).__name__}"
    run = relume.load(tmp_path)
    assert run.status == f"failed: {type(error).__name__}"
    assert next((w.first_step, w.last_step, w.complete) for w in run.windows) == (0, 1, True)
    assert run.census("all")[":relu"].inputs >= 12, "the window in progress is kept too"


def test_training_goes_on_after_an_exception_that_the_user_catches():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=10) as watch:
        step(model, optimizer, 2)
        with pytest.raises(ValueError, match="no"):
            in_forward(model, optimizer, ValueError("no"))
        assert len(left_behind(model)) == 1  # the hook on the root alone
        model.on_forward = lambda: None
        step(model, optimizer, 3)
    assert watch.step == 5
    assert watch.windows[0].observed == 5
    assert watch.census()[":relu"].inputs == 6 * 4  # the failed pass came as far as the site


@pytest.mark.parametrize("then", ["forward", "step", "close"])
def test_an_interrupt_that_the_user_catches_is_noticed_at_the_next_occasion(then):
    model, optimizer = make()
    watch = relume.watch(model, optimizer, every=2)
    with pytest.raises(KeyboardInterrupt):
        in_forward(model, optimizer, KeyboardInterrupt())
    model.on_forward = lambda: None
    if then == "forward":
        with torch.no_grad():
            model(torch.randn(4, 2))
    elif then == "step":
        optimizer.step()
    else:
        watch.close()
    assert not _get_current_function_mode_stack()
    assert len(left_behind(model)) == (0 if then == "close" else 1)
    watch.close()
    assert watch.census()[":relu"].inputs == 4


def test_a_forward_that_raises_is_no_step_without_an_optimizer():
    model, _ = make()
    with relume.watch(model, every=1) as watch:
        model(torch.randn(4, 2))
        with pytest.raises(ValueError, match="no"):
            in_forward(model, None, ValueError("no"))
        assert watch.step == 1
        model.on_forward = lambda: None
        try:
            raise KeyError
        except KeyError:  # a pass within a handler has not failed
            model(torch.randn(4, 2))
    assert watch.step == 2


def test_closing_twice_is_closing_once(tmp_path):
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, save=tmp_path) as watch:
        step(model, optimizer)
        watch.close()
        watch.close()
        step(model, optimizer)
    assert relume.load(tmp_path).status == "finished"
    assert watch.step == 1
    assert len(watch.windows) == 1
    assert watch.state_bytes == 0


def test_a_watch_is_entered_once():
    model, optimizer = make()
    with relume.watch(model, optimizer) as watch:
        with pytest.raises(RelumeError, match="open already"), watch:
            pass
        assert not watch.closed
    with pytest.raises(RelumeError, match=r"closed.*relume\.watch"), watch:
        pass


def test_a_program_that_ends_without_closing_still_finishes_the_run_file(tmp_path):
    script = (
        "import relume, torch, sys\nfrom torch import nn\n"
        "m = nn.Sequential(nn.Linear(2, 4), nn.ReLU())\n"
        "watch = relume.watch(m, every=1, save=sys.argv[1])\n"
        "m(torch.randn(8, 2))\n"
        "if len(sys.argv) > 2: raise KeyError('lost')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=True)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "b"), "x"], check=False, stderr=subprocess.DEVNULL)
    for name, status in (("a", "finished"), ("b", "failed: KeyError")):
        run = relume.load(tmp_path / name)
        assert run.status == status
        assert run.census()["1"].inputs == 8


def test_a_watch_that_nobody_keeps_goes_with_its_model():
    model, optimizer = make()
    gone = weakref.ref(relume.watch(model, optimizer, every=1))
    step(model, optimizer)
    gc.collect()
    assert gone() is not None, "the model is still watched"
    model = optimizer = None
    gc.collect()
    assert gone() is None
    assert not left_behind()


def test_an_error_in_the_callback_is_raised_where_the_window_ends_and_watching_goes_on(tmp_path):
    def fail_once(watch, window):
        if window.index == 0:
            raise ValueError("in the callback")

    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=2, save=tmp_path, on_window=fail_once) as watch:
        with pytest.raises(ValueError, match="in the callback"):
            step(model, optimizer, 5)
        step(model, optimizer, 3)
    run = relume.load(tmp_path)
    assert [(w.first_step, w.last_step) for w in run.windows] == [(0, 1), (2, 3), (4, 4)]
    assert run.status == "finished"
    assert len(watch.windows) == 3


def test_an_error_in_the_callback_at_the_end_does_not_hide_the_error_of_the_training(tmp_path):
    def fail(watch, window):
        raise KeyError("in the callback")

    model, optimizer = make()
    with (
        pytest.warns(RelumeWarning, match="closing the watch raised KeyError"),
        pytest.raises(ValueError, match="training"),
        relume.watch(model, optimizer, every=1, save=tmp_path, on_window=fail),
    ):
        step(model, optimizer)
        raise ValueError("training")
    assert relume.load(tmp_path).status == "failed: ValueError"
    assert not left_behind(model)
    with pytest.raises(KeyError), relume.watch(model, optimizer, every=1, save=tmp_path / "b", on_window=fail):
        step(model, optimizer)
    assert relume.load(tmp_path / "b").status == "finished"


@pytest.mark.parametrize("what", ["collect", "Timeline", "arguments.settings"])
def test_an_error_inside_relume_does_not_end_the_training(monkeypatch, what):
    def fail(*args, **kwargs):
        raise RuntimeError("planted")

    monkeypatch.setattr(tracker, "STRICT", False)
    owner, _, name = what.rpartition(".")
    monkeypatch.setattr(getattr(MODULE, owner) if owner else MODULE, name, fail)
    model, optimizer = make()
    with (
        pytest.warns(RelumeWarning, match="RuntimeError: planted"),
        relume.watch(model, optimizer, every=1, window=2) as watch,
    ):
        step(model, optimizer, 5)
    assert watch.step == 5
    assert not left_behind(model)


# Several watches, several callers


def test_two_watches_of_one_model_count_the_same_and_leave_in_any_order():
    for first in (0, 1):
        model, optimizer = make()
        watches = [relume.watch(model, optimizer, every=1) for _ in range(2)]
        step(model, optimizer, 3)
        watches[first].close()
        step(model, optimizer, 2)
        watches[1 - first].close()
        assert [w.census()[":relu"].inputs for w in (watches[first], watches[1 - first])] == [12, 20]
        assert watches[0].census()[":relu"].dead.tolist() == [False, False, False, False]  # 12 inputs: unknown
        assert all(w.census()[":relu"].fired.tolist() == [n, n, 0, n] for w in watches for n in [w.census().inputs])
        assert not left_behind(model)
        assert not optimizer._optimizer_step_post_hooks


def test_two_watches_can_not_share_a_run_file(tmp_path):
    model, optimizer = make()
    with relume.watch(model, optimizer, save=tmp_path), pytest.raises(RunFileError, match="already holds a run"):
        relume.watch(model, optimizer, save=tmp_path)
    assert not left_behind(model)


def test_a_module_and_its_parent_are_watched_at_once():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), Net())
    model[2].fc = nn.Linear(4, 4)
    with relume.watch(model, every=1) as outer, relume.watch(model[2], every=1) as inner:
        for _ in range(3):
            model(torch.randn(4, 2))
    assert [m.name for m in outer.census().sites] == ["1", "2:relu"]
    assert [m.name for m in inner.census().sites] == [":relu"]
    assert inner.census()[":relu"].fired.tolist() == outer.census()["2:relu"].fired.tolist()
    assert outer.census()["2:relu"].inputs == 12
    assert not left_behind(model)


class Recursive(nn.Module):
    """Calls itself, `depth` times."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x, depth=0):
        x = self.fc(x).relu()
        if depth:
            x = self(x, depth - 1)
        return torch.sigmoid(x)


def test_a_model_that_calls_itself_is_one_pass_and_one_step():
    model = Recursive()
    with relume.watch(model, every=2, window=10) as watch:
        for _ in range(4):
            model(torch.randn(5, 3), 2)
    assert watch.step == 4
    assert watch.windows[0].observed == 2
    census = watch.census()
    assert [(m.name, m.inputs) for m in census.sites] == [
        *((f":relu{n}", 10) for n in ("", "#1", "#2")),
        *((f":sigmoid{n}", 10) for n in ("", "#1", "#2")),
    ]


def test_a_model_trained_in_another_thread_is_watched():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1) as watch:
        thread = threading.Thread(target=step, args=(model, optimizer, 3))
        thread.start()
        thread.join()
    assert watch.census()[":relu"].inputs == 12


def test_forward_passes_in_several_threads_leave_no_mode_and_count_whole_passes():
    model = Net()
    left = []

    def work():
        for _ in range(40):
            model(torch.randn(4, 2))
        left.extend(_get_current_function_mode_stack())

    with relume.watch(model, every=1, window=7) as watch:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not left
    assert not left_behind(model)
    census = watch.census("all")[":relu"]
    assert 0 < census.inputs <= 640
    assert census.inputs % 4 == 0
    assert census.fired.tolist() == [census.inputs, census.inputs, 0, census.inputs]


@pytest.mark.parametrize("observed", [True, False])
def test_closing_while_another_thread_is_within_a_pass(observed):
    """The other thread's mode can be taken off in that thread only: it does so when its pass ends."""
    model = Net()
    inside, go_on, left = threading.Event(), threading.Event(), []

    def pause():
        inside.set()
        assert go_on.wait(10)

    def work():
        model(torch.randn(4, 2))
        left.extend(_get_current_function_mode_stack())

    watch = relume.watch(model, every=1 if observed else 2)
    if not observed:
        model(torch.randn(4, 2))
    model.on_forward = pause
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    watch.close()
    go_on.set()
    thread.join()
    assert not left
    assert not left_behind(model)
    assert watch.census()[":relu"].inputs == 4


def test_a_pass_in_one_thread_does_not_hide_the_end_of_one_in_another():
    model = Net()
    inside, go_on = threading.Event(), threading.Event()
    model.on_forward = lambda: (inside.set(), go_on.wait(10)) if threading.current_thread().name == "slow" else None
    with relume.watch(model, every=1) as watch:
        slow = threading.Thread(target=model, args=(torch.randn(4, 2),), name="slow")
        slow.start()
        assert inside.wait(10)
        model(torch.randn(4, 2))
        go_on.set()
        slow.join()
        assert watch.step == 2
        model(torch.randn(4, 2))
    assert watch.census()[":relu"].inputs == 8, "the first and the third pass were seen"
    assert any("several threads" in note for note in watch.notes)


# Copies


def test_copies_of_a_watched_model_are_unwatched_and_the_original_stays_watched(tmp_path):
    model, optimizer = nn.Sequential(nn.Linear(2, 4), nn.ReLU()), None
    with relume.watch(model, optimizer, every=1) as watch:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        copies = [
            copy.deepcopy(model),
            copy.deepcopy(copy.deepcopy(model)),
            pickle.loads(pickle.dumps(model)),
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=False),
        ]
        x = torch.randn(4, 2)
        y = model(x)
        for twin in copies:
            assert torch.equal(twin(x), y)
            with relume.watch(twin, every=1) as other:
                twin(x)
            assert other.census()["1"].inputs == 4
        assert watch.step == 1
        assert list(model.state_dict()) == ["0.weight", "0.bias"]
        model.load_state_dict(copies[0].state_dict())
        model(x)
    assert watch.census()["1"].inputs == 8


def test_a_model_saved_under_watch_is_loaded_where_there_is_no_relume(tmp_path):
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    with relume.watch(model):
        torch.save(model, tmp_path / "model.pt")
    script = (
        "import sys; sys.modules['relume'] = None\n"
        "import torch\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "print(tuple(model(torch.zeros(3, 2)).shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pt")], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(3, 4)"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_writes_nothing_into_its_parents_run(tmp_path):
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=1, save=tmp_path) as watch:
        step(model, optimizer)
        child = os.fork()
        if not child:
            step(model, optimizer, 2)
            watch.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert relume.load(tmp_path).status == "running"
        step(model, optimizer)
    assert len(relume.load(tmp_path).windows) == 2


# Steps and windows


def test_a_census_before_any_window_is_complete_shows_the_one_in_progress():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=3, min_inputs=4) as watch:
        with pytest.raises(EmptyCensusError, match="not called yet"):
            watch.census()
        assert not watch.history()
        step(model, optimizer, 2)
        now = watch.census()
        assert (now.first_step, now.last_step, now.complete, now.inputs) == (0, 1, False, 8)
        assert now[":relu"].dead.tolist() == [False, False, True, False]
        step(model, optimizer, 1)
        assert watch.census().inputs == 12
        assert watch.census().complete
        step(model, optimizer, 1)
        assert watch.census().inputs == 12, "the latest complete window"
    assert watch.census().inputs == 12
    assert watch.census(1).inputs == 4
    assert not watch.census(1).complete


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_every_k_observes_exactly_each_kth_step(every):
    model, optimizer = make()
    seen = []
    with relume.watch(model, optimizer, every=every, window=6) as watch:
        model.on_forward = lambda: seen.append(watch.step) if _get_current_function_mode_stack() else None
        step(model, optimizer, 20)
    assert seen == list(range(0, 20, every))
    assert watch.census("all")[":relu"].inputs == 4 * len(seen)
    assert sum(w.observed for w in watch.windows) == len(seen)


def test_windows_have_their_length_and_the_last_one_may_be_cut_short():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=2, window=6) as watch:
        step(model, optimizer, 15)
    assert [(w.index, w.first_step, w.last_step, w.observed, w.complete) for w in watch.windows] == [
        (0, 0, 5, 3, True),
        (1, 6, 11, 3, True),
        (2, 12, 14, 2, False),
    ]
    assert [watch.census(i).inputs for i in (0, 1, 2, -1, -2)] == [12, 12, 8, 12, 12]
    with pytest.raises(IndexError, match="2 complete windows"):
        watch.census(-3)
    with pytest.raises(IndexError, match="window 3"):
        watch.census(3)


def test_a_pass_without_its_step_belongs_to_the_window_in_progress():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=1) as watch:
        step(model, optimizer, 2)
        model(torch.randn(4, 2))
    assert [(w.first_step, w.last_step, w.complete) for w in watch.windows] == [
        (0, 0, True),
        (1, 1, True),
        (2, 2, False),
    ]


def test_the_last_step_of_a_window_cut_short_covers_what_was_observed():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=100) as watch:
        step(model, optimizer, 3)
        model(torch.randn(4, 2))
    (window,) = watch.windows
    assert (window.first_step, window.last_step) == (0, 3)
    assert watch.census()[":relu"].counts.last_fired.max() == window.last_step


def test_without_an_optimizer_each_training_forward_is_a_step():
    model, _ = make()
    with relume.watch(model, every=2, window=4) as watch:
        for _ in range(9):
            model(torch.randn(4, 2))
        with torch.no_grad():
            model(torch.randn(4, 2))
        model.eval()
        model(torch.randn(4, 2))
    assert watch.step == 9
    assert watch.census("all").inputs == 5 * 4
    assert watch.census("all", phase="eval").inputs == 4


def test_the_first_of_several_optimizers_sets_the_pace():
    model = Net()
    slow, fast = torch.optim.SGD(model.fc.parameters(), lr=0.0), torch.optim.SGD(model.out.parameters(), lr=0.0)
    with relume.watch(model, [slow, fast], every=1) as watch:
        for _ in range(3):
            step(model, fast, 2)
            slow.step()
    assert watch.step == 3
    assert watch.census()[":relu"].inputs == 24
    assert watch.windows[0].settings["groups"][1]["optimizer"] == "SGD"


def test_several_passes_of_one_step_add_up_and_are_one_observed_step():
    model, optimizer = make()
    with relume.watch(model, optimizer, every=2) as watch:
        for _ in range(4):
            for _ in range(3):
                model(torch.randn(4, 2)).sum().backward()
            optimizer.step()
    assert watch.census()[":relu"].inputs == 2 * 3 * 4
    assert watch.windows[0].observed == 2


def test_passes_that_always_miss_the_kth_step_are_seen_all_the_same():
    """Two optimizer steps per pass, out of step with every=2: the pass after a due step stands in for it."""
    model, optimizer = make()
    with relume.watch(model, optimizer, every=2) as watch:
        optimizer.step()
        for _ in range(5):
            step(model, optimizer)
            optimizer.step()
    assert watch.windows[0].observed == 5


def test_a_closure_called_many_times_is_one_step():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.0, max_iter=5, tolerance_grad=0.0, tolerance_change=0.0)
    passes = []

    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(4, 2)).square().mean()
        passes.append(1)
        loss.backward()
        return loss

    with relume.watch(model, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.step(closure)
    assert watch.step == 3
    assert watch.census()[":relu"].inputs == 4 * len(passes)


def test_steps_skipped_by_a_grad_scaler_are_no_steps():
    model, optimizer = make()
    scaler = torch.amp.GradScaler("cpu")
    with relume.watch(model, optimizer, every=1) as watch:
        for i in range(4):
            loss = model(torch.randn(4, 2)).sum() * (torch.inf if i == 1 else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.step == 3
    assert watch.windows[0].observed == 3
    assert watch.census()[":relu"].inputs == 16


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("early_stop", [False, True])
def test_a_model_that_a_checkpoint_runs_anew_is_counted_once(reentrant, paced, early_stop):
    model, optimizer = make()
    with set_checkpoint_early_stop(early_stop), relume.watch(model, optimizer if paced else None, every=1) as watch:
        for _ in range(3):
            x = torch.randn(4, 2, requires_grad=True)
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
            optimizer.step()
    assert watch.step == 3
    assert watch.census()[":relu"].inputs == 12


def test_torch_func_transforms_are_left_alone():
    model, _ = make()
    parameters = dict(model.named_parameters())

    def loss(p, x):
        return torch.func.functional_call(model, p, (x,)).square().mean()

    x = torch.randn(3, 5, 2)
    bare = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    with relume.watch(model, every=1) as watch:
        with pytest.warns(RelumeWarning, match=r"inside torch\.vmap"):
            watched = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        model(torch.randn(4, 2))
    assert all(torch.equal(bare[n], watched[n]) for n in bare)
    assert watch.census("all")[":relu"].inputs == 4


# Train and eval


def test_a_unit_dead_in_evaluation_may_be_alive_in_training():
    """Batch norm centres each batch in training; its running mean, set by hand, buries the unit in evaluation."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=0.0), nn.ReLU())
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([0.0, 100.0]))
    with relume.watch(model, every=1, window=5) as watch:
        for _ in range(4):
            model(torch.randn(128, 2))
            model.eval()
            with torch.no_grad():
                model(torch.randn(100, 2))
            model.train()
    train, evaluation = watch.census()["2"], watch.census(phase="eval")["2"]
    assert train.dead.tolist() == [False, False]
    assert evaluation.dead.tolist() == [False, True]
    assert (train.inputs, evaluation.inputs) == (512, 400)
    assert {row["phase"] for row in watch.history()} == {"train", "eval"}
    assert watch.timeline("2").dead.tolist() == [False, False], "the timeline is of training"


def test_a_unit_alive_only_thanks_to_dropout():
    """The unit fires only where dropout took its input away."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        model[1].weight.fill_(-1.0)
        model[1].bias.fill_(0.5)
    with relume.watch(model, every=1) as watch:
        model(torch.ones(512, 1))
        model.eval()(torch.ones(512, 1))
    assert watch.census()["2"].state == ["alive"]
    assert watch.census(phase="eval")["2"].dead.tolist() == [True]


def test_a_model_that_is_only_evaluated_has_an_eval_census_and_says_so_of_training():
    model = Net().eval()
    with relume.watch(model, every=1, min_inputs=1) as watch, torch.no_grad():
        model(torch.randn(4, 2))
        assert watch.census(phase="eval").inputs == 4
    assert watch.census(phase="eval")[":relu"].dead.tolist() == [False, False, True, False]
    assert watch.timeline(":relu").born_dead.tolist() == [False, False, True, False]
    assert not watch.windows[0].complete
    with pytest.raises(EmptyCensusError, match="phase='eval'"):
        watch.census()


# What it says


def test_a_model_called_by_its_methods_only_is_warned_of():
    model, optimizer = make()
    with relume.watch(model, optimizer) as watch:
        with pytest.warns(RelumeWarning, match="not of its methods or submodules"):
            for _ in range(5):
                model.forward(torch.randn(4, 2)).sum().backward()
                optimizer.step()
        with pytest.raises(EmptyCensusError):
            watch.census()


def test_sites_that_were_not_asked_for_are_not_listed():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    with relume.watch(model, every=1, include="3") as watch:
        model(torch.randn(4, 2))
    assert list(watch.census()) == ["3"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with relume.watch(model, every=1, exclude=["1", "3"]):
            model(torch.randn(4, 2))  # an activation there is, only not wanted: no warning


def test_an_encoder_layer_watched_by_itself_is_said_to_leave_its_fused_path():
    with pytest.warns(RelumeWarning, match="ordinary path"):
        relume.watch(nn.TransformerEncoderLayer(8, 2)).close()


def test_history_in_memory_is_bounded_and_no_count_is_lost(monkeypatch):
    monkeypatch.setattr(MODULE, "WINDOWS_LIMIT", 8)
    model, optimizer = make()
    with relume.watch(model, optimizer, every=1, window=2) as watch:
        step(model, optimizer, 101)
    assert len(watch.windows) <= 9
    assert watch.census("all")[":relu"].inputs == 404
    assert watch.census("all")[":relu"].fired.tolist() == [404, 404, 0, 404]
    spans = [(w.first_step, w.last_step) for w in watch.windows]
    assert spans[0][0] == 0
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(spans))
    assert watch.windows[-1].last_step == 100


def test_relumes_hooks_are_told_apart():
    """The helper above looks for the right thing."""
    model, optimizer = make()
    with relume.watch(model, optimizer):
        assert [type(h) for h in left_behind(model)] == [Hook]
        seen = []
        model.on_forward = lambda: seen.extend(type(h) for h in left_behind(model) if isinstance(h, Hook))
        model(torch.randn(4, 2))  # observed: the end of the pass is heard of too, as long as it lasts
        assert seen == [Hook, Hook]
        model.on_forward = lambda: None
        assert [type(h) for h in left_behind(model)] == [Hook]
