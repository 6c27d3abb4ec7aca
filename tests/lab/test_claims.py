"""Claims get the verdict that planted runs deserve, from the members they need and no others; the page in docs is made
from the stored runs."""

import dataclasses
import gzip
import math
import random
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from relume.errors import RelumeError
from relume.lab import Member, run_batched
from relume.lab.claims import (
    QUESTIONS,
    MissingRunsError,
    Run,
    Runs,
    carry_out,
    contest,
    effects,
    judge,
    measures,
    training,
)
from relume.lab.claims.members import CONTEST_TASKS, FRESH_SEEDS, RATES, RIVALS, TUNING_SEEDS
from relume.lab.claims.page import page, plots
from relume.lab.claims.question import Question
from relume.lab.claims.standings import OURS, on_tasks, standings
from relume.lab.runners.work import failed
from relume.lab.stats import Interval
from relume.lab.verdicts import Claim

BY_ID = {question.claim.id: question for question in QUESTIONS}
TINY = {"steps": 10, "window": 5, "every": 5, "optimizer": "adam"}


def noise(member, of, spread):
    return spread * random.Random(f"{member.key}/{of}").uniform(-1, 1)


def planted(member, *, test=80.0, validation=80.0, loss=0.5, dead=20.0, born=10.0, train=90.0, spread=0.2):
    """A run with these values, points and percent, up to a little noise."""

    def shaken(name, value):
        return value + noise(member, name, spread)

    scores = shaken("train", train), validation, shaken("test", test)
    loss *= math.exp(noise(member, "loss", spread / 99))
    return Run(member, *scores, loss, 1000, round(10 * shaken("dead", dead)), round(10 * shaken("born", born)), False)


def filled(question, values):
    """Runs of all that a question needs, by the values of each member; asked again until nothing is missing."""
    runs = Runs()
    while missing := [m for m in question.needs(runs) if m not in runs]:
        runs.add(planted(m, **values(m)) for m in missing)
    return runs


def outcome(id, values):
    return judge(BY_ID[id], filled(BY_ID[id], values)).verdict.outcome


def test_a_trend_along_a_setting_is_found_in_size_and_sign():
    def values(slope):
        return lambda m: {"dead": 20 + slope * math.log2(m.depth)}

    assert outcome("depth", values(3)) == "supported"
    assert outcome("depth", values(-3)) == "contradicted"
    assert outcome("depth", values(0.2)) == "contradicted"  # there, and too small to matter
    assert outcome("depth", lambda m: {"dead": 30 + math.log2(m.depth), "spread": 25}) == "undecided"
    runs = filled(BY_ID["depth"], values(3))
    assert judge(BY_ID["depth"], runs).effect.overall.estimate == pytest.approx(3, abs=0.1)


def test_a_trend_in_deaths_is_none_in_born_deaths():
    def values(m):
        return {"dead": 20 + 3 * math.log2(m.depth)}

    assert outcome("depth", values) == "supported"
    assert outcome("depth-born", values) == "contradicted"
    assert outcome("depth-born", lambda m: {"born": 5 + 3 * math.log2(m.depth)}) == "supported"
    assert outcome("rate", lambda m: {"dead": 40 + 9 * math.log10(m.lr)}) == "supported"


@pytest.mark.parametrize(
    ("id", "values"),
    [
        ("init-born", lambda m, by: {"born": 20 + by * (m.init == "torch")}),
        ("init-dead", lambda m, by: {"dead": 20 + by * (m.init == "torch")}),
        ("init-narrow", lambda m, by: {"born": 20 + by * (m.init == "he")}),
        ("revival, lr 0.03", lambda m, by: {"dead": 20 - by * (m.treatment == "guard")}),
        ("accuracy, lr 0.1", lambda m, by: {"test": 50 + by * (m.treatment == "guard")}),
        ("convergence, lr 0.03", lambda m, by: {"loss": 0.5 * math.exp(-by / 100 * (m.treatment == "guard"))}),
        ("generalization, lr 0.03", lambda m, by: {"test": 50 + by * (m.treatment == "guard")}),
        ("accuracy, sloped, lr 0.03", lambda m, by: {"test": 50 + by * (m.activation == "leaky_relu")}),
        ("elu, dead", lambda m, by: {"dead": 20 - by * (m.activation == "elu")}),
        ("rrelu, score", lambda m, by: {"test": 60 + by * (m.activation == "rrelu")}),
        ("prelu, tuned", lambda m, by: {"test": 60 + by * (m.activation == "prelu")}),
        ("batch norm, dead", lambda m, by: {"dead": 20 - by * (m.norm == "batch")}),
        ("layer norm, score", lambda m, by: {"test": 60 + by * (m.norm == "layer")}),
        ("lsuv, score", lambda m, by: {"test": 60 + by * (m.init == "lsuv")}),
        ("he, dead", lambda m, by: {"dead": 20 - by * (m.init == "he")}),
    ],
)  # fmt: skip
def test_a_planted_difference_is_supported_its_opposite_and_its_absence_contradicted(id, values):
    assert outcome(id, lambda m: values(m, 8)) == "supported"
    assert outcome(id, lambda m: values(m, -8)) == "contradicted"
    assert outcome(id, lambda m: values(m, 0)) == "contradicted"


def test_a_mean_that_one_task_made_is_told_as_such(stored):
    runs, judged = stored
    question = BY_ID["prelu, score"]

    def values(m):
        return {"test": 60 + 30 * (m.activation == "prelu" and m.task == "digits")}

    one = judge(question, filled(question, values))
    assert one.verdict.outcome == "supported"
    assert [name for name, effect in one.effect.parts if effect.low > 0.5] == ["digits"]
    told = page([one if j.question is question else j for j in judged], runs)
    assert re.search(r"PReLU raises the test score\. \| \*\*supported\*\* \|[^|]*; by itself on 1 of 3 tasks \|", told)


def test_noise_is_undecided():
    assert outcome("accuracy, lr 0.03", lambda m: {"test": 50, "spread": 40}) == "undecided"
    assert outcome("elu, score", lambda m: {"test": 50, "spread": 40}) == "undecided"


def test_an_association_is_within_a_learning_rate_and_not_across():
    def within(m):
        dead = 40 + noise(m, "own", 20)
        return {"dead": dead, "test": 90 - 0.5 * dead}

    def across(m):  # both follow the rate, neither the other
        return {"dead": 50 + 20 * math.log10(m.lr), "test": 60 - 15 * math.log10(m.lr), "spread": 2}

    found = judge(BY_ID["accuracy, associated"], filled(BY_ID["accuracy, associated"], within))
    assert found.verdict.outcome == "supported"
    assert found.effect.overall.estimate == pytest.approx(-5, abs=0.1)  # points per 10 points of dead units
    naive = judge(BY_ID["accuracy, associated"], filled(BY_ID["accuracy, associated"], across))
    assert abs(naive.effect.overall.estimate) < 1.5


def test_an_association_has_the_slope_and_interval_of_a_regression():
    members = [Member("digits", lr=lr, seed=s) for lr in (0.1, 0.2) for s in range(10)]
    runs = Runs(planted(m, dead=20 + noise(m, "d", 10), test=50 + noise(m, "t", 10)) for m in members)
    levels = [{"digits": members[:10]}, {"digits": members[10:]}]
    found = effects.association(runs, levels, measures.DEAD, measures.TEST, 1.0).overall
    level = np.repeat(np.eye(2), 10, 0)
    design = np.column_stack([[runs[m].dead_share for m in members], level])
    y = np.array([runs[m].test for m in members])
    slope, *_ = np.linalg.lstsq(design, y, rcond=None)[0]
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    error = math.sqrt(rest @ rest / 17 * np.linalg.inv(design.T @ design)[0, 0])
    assert found.estimate == pytest.approx(slope)
    assert found.width / 2 == pytest.approx(2.1098 * error, rel=1e-3)  # t of 17 degrees of freedom


@pytest.mark.parametrize(("id", "better"), [("better", {"test": 85.0}), ("faster", {"loss": 0.4})])
def test_to_beat_all_is_to_beat_the_best(id, better):
    def winning(m):
        return better if m.activation == OURS else {}

    def beaten_by_one(m):
        return better if m.activation in (OURS, "mish") else {}

    def one_unsure(m):
        return {**(better if m.activation == OURS else {}), "spread": 60 if m.activation == "mish" else 0.2}

    assert outcome(id, winning) == "supported"
    found = judge(BY_ID[id], filled(BY_ID[id], beaten_by_one))
    assert found.verdict.outcome == "contradicted"
    assert "mish" in found.effect.note
    assert len(found.effect.parts) == len(RIVALS)
    assert outcome("better", one_unsure) == ("undecided" if id == "better" else "contradicted")


def test_the_interval_of_the_least_effect_is_as_low_as_the_lowest_and_as_high_as_the_lowest_high():
    several = {name: effects.Effect(Interval(e, lo, hi)) for name, e, lo, hi in (("a", 2, 1, 3), ("b", 3, 0, 6))}
    least = effects.all_of(several).overall
    assert (least.estimate, least.low, least.high) == (2, 0, 3)


def test_the_rate_is_chosen_by_validation_whatever_the_test_says():
    def values(m):
        if m.seed in TUNING_SEEDS:
            return {"validation": 90.0 if m.lr == 0.01 else 70.0, "test": 10.0 if m.lr == 0.01 else 99.0}
        return {}

    runs = filled(BY_ID["better"], values)
    assert {contest.rate(runs, task, name) for task in CONTEST_TASKS for name in (OURS, *RIVALS)} == {0.01}
    assert all(m.lr == 0.01 for m in contest.fresh(runs, "digits", "drelu"))


def test_all_activations_have_the_same_budget_and_data_and_their_verdict_has_fresh_seeds():
    def budget(task, name):
        return [[(m.lr, m.seed, m.split, m.steps, m.depth, m.width) for m in of] for of in contest.tuning(task, name)]

    for task in CONTEST_TASKS:
        assert all(budget(task, name) == budget(task, OURS) for name in RIVALS)
        assert len(budget(task, OURS)) == len(RATES)
    assert len(FRESH_SEEDS) >= 20
    assert not set(FRESH_SEEDS) & set(TUNING_SEEDS)


def test_a_claim_is_not_judged_while_members_are_missing_and_says_which():
    question = BY_ID["batch norm, dead"]
    runs = filled(question, lambda m: {})
    lacking = Runs(run for run in runs if not (run.member.norm == "batch" and run.member.seed == 7))
    with pytest.raises(MissingRunsError, match=r"'batch norm, dead' can't be judged: 3 of .*norm='batch'.*seed=7"):
        judge(question, lacking)
    tuned = Runs(planted(m) for m in BY_ID["better"].needs(Runs()))
    with pytest.raises(MissingRunsError, match=r"2240 of its members .*--run"):
        judge(BY_ID["better"], tuned)


def test_every_claim_says_beforehand_what_would_support_it_and_what_does_not_matter():
    assert len(BY_ID) == len(QUESTIONS)
    assert {question.number for question in QUESTIONS} == set(range(1, 10))
    for question in QUESTIONS:
        assert question.claim.margin > 0
        assert f"more than {question.claim.margin:g}" in question.claim.support


@pytest.fixture(scope="module")
def results():
    calm = [Member("digits", lr=0.01, seed=seed, **TINY) for seed in (0, 1)]
    wild = [Member("sine", activation="leaky_relu", lr=lr, **{**TINY, "optimizer": "sgd"}) for lr in (0.01, 1e4)]
    return run_batched(calm) + run_batched(wild)


def test_a_run_keeps_points_loss_and_deaths_of_a_result(results):
    run, result = Run.of(results[0]), results[0]
    assert run.test == pytest.approx(100 * result.scores["test"], rel=1e-5)
    assert run.loss == pytest.approx(sum(min(x, math.log(10)) for x in result.curves.loss) / 2, rel=1e-5)
    assert (run.units, run.dead) == (result.units, result.dead)
    regression = Run.of(results[2])
    assert 0 < regression.test < 100
    assert regression.test == pytest.approx(100 * (1 - results[2].scores["test"] / 0.99), abs=40)


def test_a_run_that_diverged_has_the_points_and_loss_of_a_constant_answer_and_no_dead_units(results):
    run = Run.of(results[3])
    assert run.diverged
    assert (run.test, run.dead) == (0.0, 0)
    assert run.loss <= Run.of(dataclasses.replace(results[3], curves=dataclasses.replace(
        results[3].curves, loss=(math.nan, math.nan)))).loss  # fmt: skip
    failed = dataclasses.replace(results[0], scores=dict.fromkeys(results[0].scores, math.nan))
    assert Run.of(failed).test == 10.0


def test_runs_are_written_and_read_and_the_same_ones_give_the_same_bytes(results, tmp_path):
    runs = [Run.of(result) for result in results]
    Runs(runs).write(tmp_path / "a.csv.gz")
    Runs(reversed(runs)).write(tmp_path / "b.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    read = Runs.read(tmp_path / "a.csv.gz")
    assert [read[run.member] for run in runs] == runs
    assert len(Runs.read(tmp_path / "none.csv.gz")) == 0


@pytest.mark.parametrize("content", [b"nothing", gzip.compress(b"task,lr\ndigits,0.1\n"), gzip.compress(b"\xff\xfe")])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    path = tmp_path / "runs.csv.gz"
    path.write_bytes(content)
    with pytest.raises(RelumeError, match="does not hold stored runs"):
        Runs.read(path)
    assert path.read_bytes() == content


def tiny_question(members, fresh=()):
    def needs(runs):
        return [*members, *(fresh if all(m in runs for m in members) else ())]

    claim = Claim("tiny", "It learns.", "a test", "more than 0", "more", 0.0)
    return Question(1, claim, "points", needs, lambda runs: None, "tiny")


def test_what_is_missing_is_trained_once_and_what_is_known_only_then_follows(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv.gz"
    first = [Member("digits", seed=seed, **TINY) for seed in (0, 1)]
    then = [Member("digits", seed=2, **TINY), Member("digits", activation="rrelu", seed=3, **TINY)]
    trained = []
    work = training.work
    monkeypatch.setattr(training, "work", lambda block: trained.append(block.members) or work(block))
    carry_out((tiny_question(first[:1]),), path)
    runs = carry_out((tiny_question(first, then),), path)
    assert trained == [(first[0],), (first[1],), (then[1],), (then[0],)]
    assert all(member in Runs.read(path) for member in (*first, *then))
    assert runs[first[1]] == Run.of(run_batched(first[1:])[0])


def test_a_member_that_fails_ends_it_by_name_and_what_was_trained_before_is_kept(tmp_path, monkeypatch):
    good, bad = (Member("digits", activation=name, **TINY) for name in ("rrelu", "rrelu(0.2, 0.3)"))
    work = training.work

    def failing(block):
        return [failed(bad, "out of memory")] if bad in block.members else work(block)

    monkeypatch.setattr(training, "work", failing)
    with pytest.raises(RelumeError, match=r"activation='rrelu\(0.2, 0.3\)'.*out of memory"):
        carry_out((tiny_question([good, bad]),), tmp_path / "runs.csv.gz")
    assert good in Runs.read(tmp_path / "runs.csv.gz")


@pytest.fixture(scope="module")
def stored(pytestconfig):
    runs = Runs.read(pytestconfig.rootpath / "docs" / "verdicts.csv.gz")
    return runs, [judge(question, runs) for question in QUESTIONS]


def test_the_page_and_plots_in_docs_are_made_from_the_stored_runs(stored, pytestconfig):
    runs, judged = stored
    docs = pytestconfig.rootpath / "docs"
    drawn = plots(judged, runs)
    assert {path.name for path in (docs / "verdicts").glob("*.svg")} == set(drawn)
    for name, drawing in drawn.items():
        assert (docs / "verdicts" / name).read_text(encoding="utf-8") == drawing
        assert ET.fromstring(drawing).tag.endswith("svg")
        assert "prefers-color-scheme: dark" in drawing
    text = page(judged, runs)
    assert text == (docs / "verdicts.md").read_text(encoding="utf-8")
    for one in judged:
        assert f"{one.verdict.claim.text} | **{one.verdict.outcome}** |" in text
    assert "**not run**" in text
    assert (docs / "verdicts.csv.gz").stat().st_size < 500_000


def test_the_page_names_drelus_place_as_the_stored_scores_have_it(stored):
    runs, judged = stored
    order = [s.activation for s in standings(runs)]
    assert sorted(order) == sorted((OURS, *RIVALS))
    assert f"place {1 + order.index(OURS)} of {len(order)} by test score" in page(judged, runs)
    assert all(t.difference.low <= t.difference.estimate <= t.difference.high for t in on_tasks(runs))
