"""Which members follow from a config, and which stay when it is changed."""

import math
from collections import Counter

from relume.lab.study.config import read
from relume.lab.study.plan import Fixed
from relume.lab.study.settings import Choices, Range


def members(**config):
    settings = {"task": "sine", **config.pop("settings")}
    return list(Fixed(read({"name": "x", **config, "settings": settings})).members().values())


def drawn(sampler="random", **config):
    return members(sampler=sampler, **config)


def test_a_grid_has_every_combination_once():
    found = members(settings={"lr": [0.1, 0.2, 0.1], "depth": {"low": 1, "high": 3}, "seed": [0, 5]})
    assert {(m.lr, m.depth, m.seed) for m in found} == {
        (lr, d, s) for lr in (0.1, 0.2) for d in (1, 2, 3) for s in (0, 5)
    }
    assert len(found) == 12
    assert all(m.task == "sine" for m in found)


def test_points_of_a_range_are_spread_evenly_by_logarithm_or_not():
    lr = members(settings={"lr": {"low": 0.001, "high": 1, "points": 4}})
    assert [m.lr for m in lr] == [0.001, 0.01, 0.1, 1.0]
    decay = members(settings={"weight_decay": {"low": 0, "high": 0.4, "points": 3, "log": False}})
    assert [m.weight_decay for m in decay] == [0.0, 0.2, 0.4]
    width = members(settings={"width": {"low": 4, "high": 64, "points": 5, "log": True}})
    assert [m.width for m in width] == [4, 8, 16, 32, 64]


def test_draws_spread_over_the_whole_range():
    of_lr, of_depth, of_norm = Range(1e-4, 1.0, True, False), Range(1, 5, False, True), Choices(("none", "batch"))
    lrs = [of_lr.draw(f"0/lr/{i}") for i in range(2000)]
    shares = [sum(10**k <= lr < 10 ** (k + 1) for lr in lrs) / 2000 for k in (-4, -3, -2, -1)]
    assert all(abs(share - 0.25) < 0.05 for share in shares)
    depths = Counter(of_depth.draw(f"0/depth/{i}") for i in range(2000))
    assert set(depths) == {1, 2, 3, 4, 5}
    assert all(abs(n / 2000 - 0.2) < 0.05 for n in depths.values())
    norms = Counter(of_norm.draw(f"0/norm/{i}") for i in range(2000))
    assert abs(norms["none"] / 2000 - 0.5) < 0.05
    assert all(of_lr.holds(lr) and math.isfinite(lr) for lr in lrs)


def test_more_trials_and_more_to_choose_from_leave_the_others_as_they_were():
    settings = {"lr": {"low": 0.01, "high": 1.0}, "norm": ["none", "batch"], "seed": [0, 1]}
    few = drawn(trials=20, settings=settings)
    more = drawn(trials=30, settings=settings)
    assert more[: len(few)] == few
    third = drawn(trials=20, settings={**settings, "norm": ["none", "batch", "layer"]})
    changed = [m for m, before in zip(third, few, strict=True) if m != before]
    assert 0 < len(changed) < len(few)
    assert all(m.norm == "layer" for m in changed)


def test_another_seed_of_the_sampler_draws_others():
    settings = {"lr": {"low": 0.01, "high": 1.0}}
    assert not set(drawn(settings=settings)) & set(drawn(settings=settings, sampler_seed=1))


def test_what_is_in_each_has_equal_budgets_and_the_same_draws():
    found = drawn(trials=7, each=["activation"], settings={"activation": ["relu", "drelu"], "task": ["sine", "abs"],
                                                           "lr": {"low": 0.01, "high": 1}, "seed": [0, 1]})  # fmt: skip
    budgets = Counter((m.task, m.activation, m.seed) for m in found)
    assert len(budgets) == 8
    assert set(budgets.values()) == {7}
    lrs = {of: {m.lr for m in found if (m.task, m.activation, m.seed) == of} for of in budgets}
    assert len({frozenset(lr) for lr in lrs.values()}) == 1
