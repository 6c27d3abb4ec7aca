"""Without a change, a replay does what the training did, to the bit; and the training does not notice."""

import random

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack

from relume.diagnose.replay.change import Change
from relume.diagnose.replay.player import Player


def _all_of(run):
    """Every bit that a training leaves: weights, buffers, gradients, optimizer state, random state, modes, hooks."""
    model = run.model
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    if isinstance(run.extra, torch.nn.Module):
        tensors += run.extra.parameters()
    for optimizer in run.optimizers:
        tensors += [v for own in optimizer.state.values() for v in own.values() if isinstance(v, torch.Tensor)]
    hooks = [len(getattr(m, n)) for m in model.modules() for n in ("_forward_hooks", "_forward_pre_hooks")]
    hooks += [len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in run.optimizers]
    return (
        [t.detach().clone() for t in tensors],
        [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))],
        [m.training for m in model.modules()],
        hooks,
        random.getstate(),
        run.extra if isinstance(run.extra, list) else None,
    )


def _same(a, b):
    return (
        len(a[0]) == len(b[0])
        and all(torch.equal(x, y) for x, y in zip((*a[0], *a[1]), (*b[0], *b[1]), strict=True))
        and a[2:] == b[2:]
    )


def test_training_is_unchanged_to_the_bit(loop_name, run_loop):
    random.seed(0)
    without = _all_of(run_loop(loop_name))
    random.seed(0)
    assert _same(_all_of(run_loop(loop_name, replay=True)), without)
    assert not _get_current_function_mode_stack()


def test_replay_ends_where_the_training_did_to_the_bit(loop_name, run_loop):
    run = run_loop(loop_name, replay=True)
    before = _all_of(run)
    replay = run.watch.replay
    assert not replay.refused
    segments = replay.recorder.reel.segments
    assert [(s.first, s.last) for s in segments] == [(0, 4), (4, 8), (8, 12)]
    assert not any(s.trouble for s in segments)
    for start in range(len(segments)):  # from each snapshot
        played = Player(run.watch, segments[start:], Change(), 8, replay._options()).play(segments[-1].end)
        assert played.apart == 0.0
        assert played.passes >= 12 - segments[start].first
    assert played.census is not None
    run.optimizers and _same_or_fail(_all_of(run), before)


def _same_or_fail(a, b):
    assert len(a[0]) == len(b[0])
    assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert a[2:] == b[2:]
