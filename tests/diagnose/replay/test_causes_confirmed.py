"""On planted trainings a replay confirms the cause that was planted, and refutes another."""

import functools
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import relume
from relume.diagnose.causes import diagnose
from relume.diagnose.replay import confirmed

_PLANTED = Path(__file__).parents[2] / "planted" / "causes" / "corpus.py"


@pytest.fixture(scope="module")
def run():
    """Run a planted training by its name, watched with replay; its grave findings."""
    spec = importlib.util.spec_from_file_location("planted_causes_of_replay", _PLANTED)
    corpus = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = corpus
    spec.loader.exec_module(corpus)

    @functools.cache
    def by_name(name):
        case = next(c for c in corpus.CASES if c.name == name)
        watch = relume.watch
        relume.watch = functools.partial(watch, replay=True)
        try:
            watched, record = case.run(0)
        finally:
            relume.watch = watch
        return watched, [f for f in diagnose(watched, record) if f.severity != "note"]

    return by_name


@pytest.mark.parametrize(
    ("name", "code", "change"),
    [
        ("biases started far below zero", "born-dead", "relume.init.lsuv_ before the first step"),
        ("deep and narrow", "deep-narrow", "relume.init."),
        ("learning rate too high from the start", "killed-by-step", "lr 0.06 instead of 0.6"),
        ("one batch whose loss is three thousandfold", "killed-by-step", "the gradient clipped to norm 1"),
        ("a term of the loss that pushes biases down", "bias-drift", "the bias of '0' held still"),
        ("weights without bias pushed down on inputs that are never negative", "weight-drift", "the inputs of"),
        ("weight decay that leaves only negative biases", "weight-decay", "weight decay 0 instead of 1"),
        ("β of batch norm pushed down", "norm-collapse", "γ and β of '1' held still"),
        ("inputs moved in the middle of training", "input-shift", "its input brought back"),
        ("tanh with weights thirty times too large", "saturation", "relume.init.lsuv_"),
    ],
)
def test_the_planted_cause_is_confirmed_by_its_own_change(run, name, code, change):
    watch, findings = run(name)
    first = confirmed(findings, watch.replay)[0]
    assert first.code == code
    said = first.confirmation
    assert said.confirmed is True, said.sentence
    assert said.change.startswith(change)
    assert said.dead < said.units / 2
    assert said.sentence.startswith(f"confirmed: with {said.change} the same ")


def test_a_cascade_is_confirmed_with_what_lies_below_held_still(run):
    watch, findings = run("only the first layer thrown by a step")
    cascade = next(f for f in findings if f.code == "upstream-cascade")
    said = watch.replay.confirm(cascade).confirmation
    assert said.confirmed is True
    assert said.change == "everything below held still"


def test_a_wrong_cause_is_refuted_and_the_sentence_names_what_saved(run):
    watch, findings = run("a term of the loss that pushes biases of a convolution down")
    true = next(f for f in findings if f.code == "bias-drift")
    said = watch.replay.confirm(replace(true, code="weight-drift"))
    tried = dict(said.confirmation.tried)
    assert tried["the weights of '0' held still"] > said.confirmation.units / 2
    assert tried["the bias of '0' held still"] == 0
    assert "the bias of '0' held still" in said.confirmation.sentence
    assert said.code == "bias-drift" or said.confirmation.confirmed is False


def test_a_cause_that_was_not_known_is_the_one_whose_change_alone_saves(run):
    watch, findings = run("a term of the loss that pushes biases of a convolution down")
    true = next(f for f in findings if f.code == "bias-drift")
    at = watch.timeline(true.site).died_at
    first = tuple(sorted(true.units, key=lambda u: int(at[u]))[:2])  # so early that no lower rate would have saved them
    steps = (int(at[list(first)].min()), int(at[list(first)].max()) + 1)
    said = watch.replay.confirm(replace(true, code="unknown-cause", units=first, steps=steps))
    assert said.code == "bias-drift"
    assert said.evidence["code_before_replay"] == "unknown-cause"
    assert "only the bias of '0' held still saved most of them" in said.sentence
    assert said.confirmation.confirmed is True


def test_sparse_units_are_no_illness_and_nothing_is_replayed(run):
    watch, findings = run("a term of the loss that pushes biases down")
    sparse = replace(findings[0], code="sparse", severity="note")
    assert watch.replay.confirm(sparse).confirmation is None
