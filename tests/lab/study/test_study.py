"""Studies run here: each member as by itself, nothing twice, failures recorded, tables tidy."""

import dataclasses
import math

import pandas as pd
import pytest

from relume.errors import MissingExtraError, RelumeWarning
from relume.lab import Member, Study, run_member, study
from relume.lab.runners import Local, Outcome, runner, work
from relume.lab.study import StoreError


class Counting(Local):
    """Runs here, and notes the members of each block."""

    def __init__(self):
        self.blocks = []
        super().__init__(work=self.work)

    def work(self, block):
        self.blocks.append(block.members)
        return work.work(block)

    @property
    def ran(self):
        return [member for block in self.blocks for member in block]


def run(config, out, **options):
    """Runs a study; gives it, open, and the members that were run."""
    counting = Counting()
    return Study(config, out=out).run(runner=counting, progress=False, **options), counting.ran


def test_each_member_comes_out_as_trained_by_itself(small, tmp_path):
    with study(small(), out=tmp_path, progress=False) as done:
        results = list(done.results())
        table = done.table()
    assert len(results) == len(table) == 12
    assert {(r.member.activation, r.member.lr, r.member.seed) for r in results} == {
        (a, lr, s) for a in ("relu", "elu") for lr in (0.05, 0.5) for s in range(3)
    }
    for result, row in zip(results, table, strict=True):
        alone = run_member(result.member, diagnose=False)
        assert result.scores == pytest.approx(alone.scores, abs=1e-6)
        assert result.curves.loss == pytest.approx(alone.curves.loss, rel=1e-4)
        assert result.curves.dead == alone.curves.dead
        assert result.sites == alone.sites
        assert (row["key"], row["score_test"]) == (result.member.key, result.scores["test"])
        assert (row["units"], row["dead"], row["dead_fraction"]) == (16, alone.dead, alone.dead / 16)
        assert row["best_validation"] == max(result.curves.validation)


def test_members_of_one_shape_are_trained_together_and_the_others_by_themselves(small, tmp_path):
    activations = ["relu", "rrelu", "elu"]
    counting = Counting()
    config = small(together=5, settings={"activation": activations, "treatment": ["none", "penalty"], "lr": 0.05})
    Study(config, out=tmp_path).run(runner=counting, progress=False).close()
    together = [block for block in counting.blocks if len(block) > 1]
    assert [len(block) for block in together] == [5]  # and the sixth is left over
    assert all(m.treatment == "none" and m.activation != "rrelu" for block in together for m in block)
    assert len(counting.ran) == 18
    assert len(set(counting.ran)) == 18


def test_nothing_is_run_twice_and_new_seeds_run_alone(small, tmp_path, without_seconds):
    first, ran = run(small(), tmp_path)
    before = {row["key"]: row for row in first.table()}
    first.close()
    assert len(ran) == 12
    again, ran = run(small(), tmp_path)
    again.close()
    assert ran == []
    more, ran = run(small(settings={"seed": [0, 1, 2, 3]}), tmp_path)
    assert {m.seed for m in ran} == {3}
    assert len(ran) == 4
    rows = more.table()
    assert len(rows) == 16
    assert all(before[row["key"]] == row for row in rows if row["key"] in before)  # to the second
    more.close()


def test_what_is_no_longer_in_the_config_stays_in_the_store_and_out_of_the_table(small, tmp_path):
    run(small(), tmp_path)[0].close()
    fewer, ran = run(small(settings={"activation": "relu"}), tmp_path)
    assert ran == []
    assert {row["activation"] for row in fewer.table()} == {"relu"}
    assert fewer.counts() == (6, 0, 6)
    fewer.close()
    again, ran = run(small(), tmp_path)
    assert ran == []
    again.close()


def test_a_member_that_fails_is_recorded_and_the_others_run(small, tmp_path):
    config = small(settings={"activation": ["relu", "glu"], "lr": 0.05, "seed": [0, 1]})
    done, ran = run(config, tmp_path)
    assert len(ran) == 4
    assert done.counts() == (2, 2, 4)
    for member, reason in done.failures():
        assert member.activation == "glu"
        assert reason.startswith("RelumeError: 'glu' can't take another activation's place")
    rows = done.table()
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    assert all(tuple(row) == rows.columns for row in rows)
    assert rows[3]["score_test"] is None
    assert rows[3]["error"] == reason
    assert sum(place.failed for place in done.best()) == 2
    assert len(list(done.results())) == 2
    done.close()
    again, ran = run(config, tmp_path)
    assert ran == []
    again.close()
    again, ran = run(config, tmp_path, again=True)
    assert {m.activation for m in ran} == {"glu"}
    assert again.counts() == (2, 2, 4)
    again.close()


def test_an_error_among_members_trained_together_is_that_members_alone(small, monkeypatch):
    whole = work.run_member
    members = [Member("spirals", seed=s, steps=4, window=4, every=2) for s in range(3)]

    def one_fails(member, **options):
        if member.seed == 1:
            raise FloatingPointError("as planted")
        return whole(member, **options)

    monkeypatch.setattr(work, "run_batched", lambda members: 1 / 0)
    monkeypatch.setattr(work, "run_member", one_fails)
    outcomes = work.work(work.Block(tuple(members), together=True))
    assert [o.error for o in outcomes] == ["", "FloatingPointError: as planted", ""]
    assert [o.result is not None for o in outcomes] == [True, False, True]


def test_what_is_not_installed_ends_the_study(small, tmp_path, monkeypatch):
    def missing(members):
        raise MissingExtraError("no data")

    monkeypatch.setattr(work, "run_batched", missing)
    with pytest.raises(MissingExtraError):
        study(small(), out=tmp_path, progress=False)
    monkeypatch.undo()
    done, ran = run(small(), tmp_path)
    assert len(ran) == 12
    done.close()


def test_ctrl_c_keeps_what_is_done(small, tmp_path, without_seconds):
    done = 0

    def stopped(block):
        nonlocal done
        if done == 2:
            raise KeyboardInterrupt
        done += 1
        return work.work(block)

    with Study(small(), out=tmp_path) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.run(runner=Local(work=stopped), progress=False)
        assert opened.counts() == (8, 0, 12)
    rest, ran = run(small(), tmp_path)
    assert len(ran) == 4
    whole, _ = run(small(), tmp_path / "whole")
    assert without_seconds(rest.table()) == without_seconds(whole.table())
    rest.close()
    whole.close()


def test_diagnosis_is_made_of_each_and_added_to_what_was_run_without(small, tmp_path):
    settings = {"activation": "relu", "lr": 3.0, "depth": 4, "steps": 30, "window": 10, "seed": [0, 1]}
    plain, _ = run(small(settings=settings), tmp_path)
    (first, _) = plain.table()
    assert not first["causes"]
    plain.close()
    diagnosed, ran = run(small(settings=settings, diagnose=True), tmp_path)
    assert len(ran) == 2
    table = diagnosed.table()
    assert all(row["causes"] for row in table)
    for row, result in zip(table, diagnosed.results(), strict=True):
        assert {c: row[f"cause:{c}"] for c in result.causes} == result.causes
    assert any(row["dead"] for row in table)
    assert sum(value for row in table for name, value in row.items() if name.startswith("cause:")) > 0
    diagnosed.close()
    again, ran = run(small(settings=settings), tmp_path)  # a diagnosed result is as good
    assert ran == []
    again.close()


def test_the_best_are_ranked_by_their_mean_over_seeds_and_what_diverged_comes_last(small, tmp_path):
    config = small(settings={"task": ["spirals", "sine"], "activation": "leaky_relu", "lr": [0.05, 1000.0, 0.2]})
    done, _ = run(config, tmp_path)
    best = done.best()
    assert [place.task for place in best] == ["spirals"] * 3 + ["sine"] * 3
    for task, better in (("spirals", max), ("sine", min)):
        rows = [row for row in done.table() if row["task"] == task]
        means = pd.DataFrame(rows).groupby("lr").score_validation.apply(lambda s: s.mean(skipna=False))
        first, _, last = [place for place in best if place.task == task]
        assert first.mean == pytest.approx(better(m for m in means if m == m))
        assert means[first.settings["lr"]] == pytest.approx(first.mean)
        if task == "sine":
            assert math.isnan(last.mean)
            assert last.settings == {"lr": 1000.0}
    done.close()


def test_a_table_goes_to_pandas_parquet_and_csv(small, tmp_path):
    pytest.importorskip("pyarrow")
    done, _ = run(small(), tmp_path)
    table = done.table()
    done.close()
    frame = table.to_pandas()
    assert list(frame.columns) == list(table.columns)
    pd.testing.assert_frame_equal(pd.read_parquet(table.to_parquet(tmp_path / "new" / "x.parquet")), frame)
    read = pd.read_csv(table.to_csv(tmp_path / "new" / "x.csv"), keep_default_na=False)
    assert read.score_test.tolist() == frame.score_test.tolist()
    assert list(read.columns) == list(frame.columns)


def test_a_study_is_opened_by_its_folder(small, tmp_path):
    done, _ = run(small(), tmp_path)
    table = done.table()
    done.close()
    with Study.open(tmp_path) as opened:
        assert opened.table() == table
        assert opened.config == done.config
    with pytest.raises(StoreError, match="no study"):
        Study.open(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="keeps the study 'small', not 'other'"):
        Study(small(name="other"), out=tmp_path)


def test_results_of_another_version_are_pointed_out(small, tmp_path):
    with Study(small(), out=tmp_path) as opened:
        opened._store.set_about({"versions": {"relume": "0.0.1", "torch": "2.4"}})
        with pytest.warns(RelumeWarning, match=r"results of relume 0\.0\.1, now"):
            opened.run(runner=Counting(), progress=False)


def test_a_runner_that_is_not_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="one of local, ray, not 'slurm'"):
        study(small(), out=tmp_path, runner="slurm")
    with pytest.raises(ValueError, match="jobs is a whole number not below 1"):
        runner("local", jobs=0)
    with pytest.raises(ValueError, match="runner ray"):
        runner("local", address="auto")


def test_an_outcome_without_a_result_survives_the_store(small, tmp_path):
    with Study(small(), out=tmp_path) as opened:
        member = next(iter(opened._plan.members().values()))
        opened._store.put([Outcome(member, None, "why")])
        assert opened.failures() == [(member, "why")]
        result = run_member(member, diagnose=False)
        opened._store.put([Outcome(member, result)])  # tried again
        opened._store.put([Outcome(member, None, "later")])  # too late
        assert opened.failures() == []
        (kept,) = opened.results()
        assert dataclasses.replace(kept, causes=None) == result
