"""Tasks: data honestly split and the same each time, models as asked for, metrics with a known answer."""

import importlib.util
import inspect
import math
import re
import statistics
import sys

import pytest
import torch

from relume.errors import MissingExtraError, UnknownActivationError
from relume.lab import tasks
from relume.lab.tasks import digits, text

ALL = tuple(n for n in tasks.names() if not isinstance(tasks.get(n), tasks.real.Brought))


def rows(part):
    return [tuple(r) for r in part.x.flatten(1).tolist()]


@pytest.mark.parametrize("name", ALL)
def test_no_input_is_in_two_parts_of_the_split(name):
    split = tasks.get(name).data(0)
    train, validation, test = (set(rows(p)) for p in (split.train, split.validation, split.test))
    assert min(map(len, (train, validation, test))) > 100
    if name.startswith("docstring"):
        # Texts of rare words alone look alike once those are unknown: none but these may be shared.
        for row in (train & validation) | (train & test) | (validation & test):
            assert 1 in row
    else:
        assert not train & validation
        assert not train & test
        assert not validation & test


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_data_and_another_seed_another_split(name):
    task = tasks.get(name)
    first, again, other = task.data(1), task.data(1), task.data(2)
    assert torch.equal(first.test.x, again.test.x)
    assert torch.equal(first.test.y, again.test.y)
    assert first.test.x.shape == other.test.x.shape
    assert not torch.equal(first.test.x, other.test.x)


@pytest.mark.parametrize("name", ALL)
def test_a_model_takes_the_data_and_leaves_the_random_state_alone(name):
    task = tasks.get(name)
    state = torch.get_rng_state()
    model = task.model("leaky_relu(0.2)", width=8, depth=3, norm="layer", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    x, y = task.data(0).validation
    assert model(task.at(x[:7], 0)).shape == (7, task.outputs)
    assert sum(type(m).__name__ == "LeakyReLU" for m in model.modules()) == 3
    same, other = (task.model("leaky_relu(0.2)", width=8, depth=3, norm="layer", seed=s) for s in (5, 6))
    for a, b in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert task.losses(model(x[:7]), y[:7]).shape == (7,)


@pytest.mark.parametrize("init", tasks.INITS)
def test_every_initialization_of_the_list_reaches_the_weights(init):
    model = tasks.get("digits").model(init=init, width=16)
    plain = tasks.get("digits").model(init="torch", width=16)
    assert torch.equal(model.hidden2.weight, plain.hidden2.weight) == (init == "torch")


def test_he_weights_have_the_gain_of_the_activation():
    for name, gain in (("relu", math.sqrt(2)), ("identity", 1.0)):
        model = tasks.get("digits").model(name, width=400)
        assert float(model.hidden2.weight.detach().std()) == pytest.approx(gain / 20, rel=0.02)


def test_lsuv_looks_at_the_first_256_inputs():
    task = tasks.get("digits")
    x = task.data(0).train.x[:256]
    z = task.model(init="lsuv", width=64).hidden1(x).detach()
    assert float(z.var(0, unbiased=False).mean() + z.mean(0).var(unbiased=False)) == pytest.approx(1, abs=0.1)


def test_losses_of_few_and_of_many_inputs_are_the_same():
    task = tasks.get("digits")
    output, y = torch.randn(600, 10, dtype=torch.float64), torch.arange(600) % 10
    each = torch.cat([task.losses(output[i : i + 200], y[i : i + 200]) for i in (0, 200, 400)])
    assert torch.allclose(task.losses(output, y), each, atol=1e-12)
    by_hand = torch.log(output.exp().sum(1)) - output[torch.arange(600), y]
    assert torch.allclose(each, by_hand, atol=1e-12)


def test_scores_with_a_known_answer():
    accuracy, rmse = tasks.get("digits").score, tasks.get("sine").score
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75
    assert rmse(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [5.0]])) == pytest.approx(3 / math.sqrt(2))
    assert math.isnan(accuracy(torch.full((2, 3), torch.nan), torch.tensor([0, 1])))


def test_the_curves_are_those_of_lu_et_al():
    for name, function in (
        ("abs", abs),
        ("sine", lambda v: v * math.sin(5 * v)),
        ("step", lambda v: (v > 0) + 0.2 * math.sin(5 * v)),
    ):
        data = tasks.get(name).data(0).train
        assert data.x.abs().max() <= math.sqrt(3)
        assert float(data.x.var()) == pytest.approx(1, abs=0.05)
        for i in range(0, 3000, 500):
            assert float(data.y[i]) == pytest.approx(function(float(data.x[i])), abs=1e-5)


def test_permuted_digits_permute_pixels_alike_for_all_inputs_and_anew_each_period():
    task = tasks.get("permuted-digits")
    x = task.data(0).train.x[:50]
    assert torch.equal(task.at(x, 199), x)
    once, again, later = task.at(x, 200), task.at(x, 399), task.at(x, 400)
    assert torch.equal(once, again)
    assert not torch.equal(once, x)
    assert not torch.equal(once, later)
    place = torch.arange(64.0).expand(50, 64)
    moved = task.at(place, 200)
    assert torch.equal(moved[0].sort().values, torch.arange(64.0))
    assert torch.equal(once, x[:, moved[0].long()])


def test_docstrings_are_those_that_python_shows():
    found = {d.words: d for d in text.docstrings()}
    for of, topic, is_class in ((statistics.mean, "numbers", False), (statistics.NormalDist, "numbers", True)):
        words = tuple(re.findall("[a-z]+", inspect.getdoc(of).lower()))[: text.LENGTH]
        assert found[words].of_class is is_class
        assert list(text.TOPICS)[found[words].topic] == topic


def test_words_of_the_training_part_alone_make_the_vocabulary():
    task = tasks.get("docstrings")
    split, texts = task.data(0), task.texts(0)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    n = len(split.train.x)
    in_training = {w for i in order[:n] for w in texts[i][0]}
    tested = order[n + len(split.validation.x) :]
    unseen = [(k, j) for k, i in enumerate(tested) for j, w in enumerate(texts[i][0]) if w not in in_training]
    assert len(unseen) > 20
    assert all(int(split.test.x[k, j]) == 1 for k, j in unseen)
    assert int(split.train.x.max()) < text.VOCABULARY


def test_kinds_are_half_and_half():
    split = tasks.get("docstring-kinds").data(3)
    y = torch.cat([split.train.y, split.validation.y, split.test.y])
    assert float(y.double().mean()) == 0.5


def test_a_transformer_does_not_see_what_fills_up_a_text():
    model = tasks.get("docstrings-transformer").model(width=8, depth=1).eval()
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0]])
    before = model.embedding(tokens)
    assert torch.equal(before[0, 3:], torch.zeros(3, 8))
    padded = torch.zeros(1, text.LENGTH, dtype=torch.int64)
    padded[:, :6] = tokens
    plain = model(padded)
    with torch.no_grad():
        model.position[3:] = 100.0
    assert torch.allclose(model(padded), plain, atol=1e-6)
    with torch.no_grad():
        model.position[2] = 100.0
    assert not torch.allclose(model(padded), plain, atol=1e-3)


def test_a_transformer_reads_the_mean_of_its_words():
    model = tasks.get("docstrings-transformer").model(width=8, depth=1).eval()
    model.blocks = torch.nn.ModuleList()
    tokens = torch.zeros(1, text.LENGTH, dtype=torch.int64)
    tokens[0, :3] = torch.tensor([5, 6, 7])
    words = model.embedding(tokens)[0, :3] + model.position[:3]
    assert torch.allclose(model(tokens)[0], model.out(words.mean(0)), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: tasks.get("digit"), ValueError, "close to it: digits"),
        (lambda: tasks.get("digits").model(norm="group"), ValueError, "none, batch, layer"),
        (lambda: tasks.get("digits").model(init="kaiming"), ValueError, "orthogonal"),
        (lambda: tasks.get("digits").model("rleu"), UnknownActivationError, "relu"),
        (lambda: tasks.get("digits").model(depth=0), ValueError, "at least 1"),
        (lambda: tasks.get("docstrings-transformer").model(norm="batch"), ValueError, "none or layer"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_accepted(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    assert importlib.util.find_spec("sklearn") is not None
    digits._images.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"relume\[demo\]"):
        tasks.get("digits").data(0)
