"""Optuna as a sampler: it is told what is known, names nothing twice, and learns."""

import dataclasses
import json
import math

import pytest

from relume.lab import Member, Study, run_member
from relume.lab.runners import Local, Outcome, work

optuna = pytest.importorskip("optuna")


@pytest.fixture
def config(small):
    def make(**changed):
        settings = {"lr": {"low": 1e-4, "high": 10.0}, "activation": ["relu", "elu"], "seed": [0, 1]}
        settings.update(changed.pop("settings", {}))
        return small(**{"sampler": "optuna", "trials": 9, "at_once": 4, "settings": settings, **changed})

    return make


def run(config, out):
    ran = []

    def noted(block):
        ran.extend(block.members)
        return work.work(block)

    return Study(config, out=out).run(runner=Local(work=noted), progress=False), ran


def test_each_family_has_its_trials_and_each_trial_its_seeds(config, tmp_path):
    done, ran = run(config(each=["activation"]), tmp_path)
    assert done.counts() == (36, 0, 36)
    assert len(ran) == len(set(ran)) == 36
    rows = done.table()
    for activation in ("relu", "elu"):
        lrs = [row["lr"] for row in rows if row["activation"] == activation]
        assert len(set(lrs)) == 9
        assert all(lrs.count(lr) == 2 for lr in lrs)
        assert all(1e-4 <= lr <= 10 for lr in lrs)
    done.close()


def test_optunas_own_study_holds_the_means_over_seeds(config, tmp_path):
    done, _ = run(config(), tmp_path)
    ((family, found),) = done.optuna().items()
    assert json.loads(family) == {"task": "spirals"}
    assert found.direction == optuna.study.StudyDirection.MAXIMIZE
    rows = done.table()
    assert len(found.trials) == 9
    for trial in found.trials:
        same = [r for r in rows if (r["lr"], r["activation"]) == (trial.params["lr"], trial.params["activation"])]
        assert trial.value == pytest.approx(sum(r["score_validation"] for r in same) / len(same))
    assert found.best_value == pytest.approx(done.best(1)[0].mean)
    done.close()


def test_more_trials_go_on_from_those_that_are_known(config, tmp_path):
    done, _ = run(config(), tmp_path)
    first = [trial.params for trial in next(iter(done.optuna().values())).trials]
    done.close()
    again, ran = run(config(), tmp_path)
    assert ran == []
    again.close()
    more, ran = run(config(trials=12), tmp_path)
    assert len(ran) == 3 * 2
    now = [trial.params for trial in next(iter(more.optuna().values())).trials]
    assert now[:9] == first
    assert len(now) == 12
    more.close()


def test_a_narrower_space_keeps_the_points_that_lie_in_it(config, tmp_path):
    done, _ = run(config(), tmp_path)
    inside = {row["lr"] for row in done.table() if row["lr"] <= 0.1}
    done.close()
    assert 0 < len(inside) < 9
    narrow, ran = run(config(settings={"lr": {"low": 1e-4, "high": 0.1}}), tmp_path)
    assert len(ran) == (9 - len(inside)) * 2
    assert inside < {row["lr"] for row in narrow.table()}
    narrow.close()


def test_it_learns_from_what_it_is_told_and_shuns_what_failed_or_gave_no_number(config, tmp_path):
    """Of a score made up to be best at lr 0.01, with none above 0.3 and failures above 1."""
    result = run_member(Member("spirals", steps=4, window=4, every=2), diagnose=False)

    def made_up(member):
        if member.lr > 1:
            return Outcome(member, None, "as planted")
        score = math.nan if member.lr > 0.3 else 1 / (1 + abs(math.log10(member.lr) + 2))
        scores = {**result.scores, "validation": score}
        return Outcome(member, dataclasses.replace(result, member=member, scores=scores))

    settings = {"activation": "relu", "seed": [0], "lr": {"low": 1e-6, "high": 10.0}}
    with Study(config(trials=60, at_once=5, settings=settings), out=tmp_path) as done:
        done.run(runner=Local(work=lambda block: [made_up(m) for m in block.members]), progress=False)
        lrs = [trial.params["lr"] for trial in next(iter(done.optuna().values())).trials]
    near = [0.001 < lr < 0.1 for lr in lrs]
    assert sum(near[40:]) > 10  # of 20, where blind draws would be 6
    assert sum(lr > 0.3 for lr in lrs[40:]) < 3
