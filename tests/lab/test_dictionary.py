"""Sparse autoencoders: whose activations they read, what their loss is, and that latents die unless helped."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from relume.lab import Member, run_member, tasks
from relume.lab.alone import train_alone
from relume.lab.batched import train_together
from relume.lab.tasks import dictionary

SHORT = {"optimizer": "adam", "lr": 0.003, "depth": 1, "width": 64, "steps": 50, "window": 20, "every": 4}
DYING = {**SHORT, "width": 256, "steps": 300, "window": 100, "every": 10}


@pytest.fixture
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def plain():
    return train_alone(Member("sae", **DYING))


def test_activations_are_the_same_whoever_asks_first_and_the_transformer_has_learnt(in_float64, monkeypatch):
    texts, found = dictionary._activations()
    kept, train = [], dictionary._trained
    monkeypatch.setattr(dictionary, "_trained", lambda *args: kept.append(train(*args)) or kept[0])
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        again = dictionary._activations.__wrapped__()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float64
    assert torch.equal(again[0], texts)
    assert torch.equal(again[1], found)
    assert found.dtype == torch.float32
    task = tasks.get("docstrings-transformer")
    test = task.data(0).test
    with dictionary._settled():
        assert task.score(kept[0](test.x), test.y) > 0.55


def test_activations_are_those_of_texts_that_the_transformer_has_not_seen():
    split = tasks.get("docstrings-transformer").data(0)
    unseen = torch.unique(torch.cat([split.validation.x, split.test.x]), dim=0)
    assert torch.equal(torch.bincount(dictionary._activations()[0]), (unseen != 0).sum(1))


def test_a_text_is_in_one_part_alone():
    split = tasks.get("sae").data(3)
    texts, found = dictionary._activations()
    found = F.normalize(found.double())
    whose = []
    for part in (split.train, split.validation, split.test):
        nearness, row = (F.normalize(part.x[:200].double()) @ found.T).max(1)
        assert float(nearness.min()) > 1 - 1e-9  # scaled, and the very activations of some token
        whose.append(set(texts[row].tolist()))
    assert min(map(len, whose)) > 100
    assert not whose[0] & whose[1]
    assert not whose[0] & whose[2]
    assert not whose[1] & whose[2]


def test_scale_and_mean_are_those_of_the_training_part():
    plain, centred = (tasks.get(name).data(3) for name in ("sae", "sae-centred"))
    for x in (plain.train.x, centred.train.x):
        assert float((x - x.mean(0)).square().mean()) == pytest.approx(1, abs=1e-4)
    assert float(plain.train.x.min()) == 0  # as a ReLU gives them
    assert float(centred.train.x.mean(0).abs().max()) < 1e-4
    torch.testing.assert_close(plain.test.x - plain.train.x.mean(0), centred.test.x)


def test_the_mean_leaves_all_unexplained_and_the_input_nothing():
    task = tasks.get("sae")
    y = task.data(0).test.y
    assert task.score(y.mean(0).expand_as(y), y) == pytest.approx(1, abs=1e-5)
    assert task.score(y, y) == 0


def test_the_loss_is_the_squared_error_and_the_code_weighed_by_the_columns():
    task = tasks.get("sae")
    model, x = task.model(width=16, depth=1), task.data(0).train.x[:50]
    code = F.relu(F.linear(x, model.hidden1.weight, model.hidden1.bias))
    columns = model.out.weight.square().sum(0).sqrt()
    by_hand = (model.out(code) - x).square().mean(1) + 0.01 * (code * columns).sum(1)
    torch.testing.assert_close(task.batch_loss(model, x, x), by_hand.mean())
    assert not model.out._forward_pre_hooks


def test_a_latent_can_not_pass_for_small():
    task = tasks.get("sae")
    model, x = task.model(width=16, depth=1), task.data(0).train.x[:50]
    before = task.batch_loss(model, x, x)
    with torch.no_grad():
        model.hidden1.weight[3] /= 8
        model.hidden1.bias[3] /= 8
        model.out.weight[:, 3] *= 8
    torch.testing.assert_close(task.batch_loss(model, x, x), before)


def test_a_column_of_zeros_has_a_gradient():
    task = tasks.get("sae")
    model, x = task.model(width=16, depth=1), task.data(0).train.x[:50]
    with torch.no_grad():
        model.out.weight[:, 3] = 0  # as a unit has it that was revived
    task.batch_loss(model, x, x).backward()
    assert bool(model.out.weight.grad.isfinite().all())
    assert float(model.out.weight.grad[:, 3].abs().max()) > 0


@pytest.mark.parametrize("depth", [1, 2])
def test_dictionaries_trained_together_are_as_those_trained_alone(depth, in_float64):
    members = [Member("sae", **{**SHORT, "depth": depth, "lr": lr}, seed=s) for s, lr in enumerate((0.003, 0.03))]
    for (result, model), member in zip(train_together(members), members, strict=True):
        alone, its_model = train_alone(member, diagnose=False)
        for a, b in zip(model.parameters(), its_model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        assert result.scores == pytest.approx(alone.scores, abs=1e-9)
        assert result.curves.loss == pytest.approx(alone.curves.loss, rel=1e-9)
        assert result.sites == alone.sites


def test_the_code_is_sparser_for_its_burden(plain):
    _, model = plain
    task = tasks.get("sae")
    x = task.data(0).test.x[:600]
    free = dataclasses.replace(task, sparsity=0.0)
    other = task.model(width=256, depth=1)
    optimizer = torch.optim.Adam(other.parameters(), 0.003)
    for _ in range(100):
        optimizer.zero_grad()
        free.batch_loss(other, x, x).backward()
        optimizer.step()
    fire = [float((m[:2](x) > 0).float().sum(1).mean()) for m in (model, other)]
    assert fire[0] < 40 < fire[1]


def test_latents_die_unless_the_activations_are_centred_or_the_penalty_holds_them(plain):
    result, model = plain
    x = tasks.get("sae").data(0).train.x
    assert result.sites["act1"].dead == tuple(torch.nonzero((model.hidden1(x) <= 0).all(0)).flatten().tolist())
    assert result.dead > 60
    assert result.scores["test"] < 0.35
    assert sum(result.causes.values()) >= result.dead
    centred = run_member(Member("sae-centred", **DYING), diagnose=False)
    penalized = run_member(Member("sae", **DYING, treatment="penalty"), diagnose=False)
    assert max(centred.dead, penalized.dead) < 10
    assert max(centred.scores["test"], penalized.scores["test"]) < result.scores["test"]


def test_guard_revives_latents(plain):
    guarded = run_member(Member("sae", **DYING, treatment="guard"), diagnose=False)
    assert guarded.dead < plain[0].dead / 2
    assert guarded.scores["test"] < plain[0].scores["test"]
