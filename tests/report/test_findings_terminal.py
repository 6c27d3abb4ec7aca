"""Findings in a terminal: everything a reader needs, at any width, without colour, however many sites there are."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from relume.diagnose import Confirmation, Finding, Remedy
from relume.report.findings_terminal import LISTED, READABLE, findings_text

STEP = Finding(
    "killed-by-step",
    "error",
    "body.1",
    (0, 1, 2, 5),
    (14, 35),
    {
        "units": 4, "of": 8, "share": 0.5, "max_before": 1.73, "max_after": -0.31, "update_ratio": 0.17,
        "usual_update_ratio": 0.045, "lr": 0.3, "usual_lr": 0.3, "by_weights": -1.72, "by_bias": -0.133,
        "by_upstream": 0.102, "by_gamma": 0.0,
    },
    "4 of 8 units of 'body.1' were killed by large steps.",
    (
        Remedy("lower the learning rate", gain="4 of 4 units lived in the replay"),
        Remedy("clip the gradient", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
    ),
)  # fmt: skip
CASCADE = Finding(
    "upstream-cascade", "warning", "body.3", (1, 2), (36, 40), {"units": 2, "of": 8, "by_upstream": -1.0},
    "2 of 8 units of 'body.3' followed.", (Remedy("mend the layer below first"),), root=("killed-by-step", "body.1"),
)  # fmt: skip
NOTE = Finding(
    "sparse", "note", "body.5", (3,), (-1, -1), {"units": 1, "of": 8, "share": 0.125}, "1 of 8 fires rarely."
)
YES = Confirmation(
    True, "lr 0.03 instead of 0.3", (0, 40), 4, 0, "confirmed: with lr 0.03 the same 40 batches kill none",
    (("lr 0.03 instead of 0.3", 0), ("clipping", 1)),
)  # fmt: skip


def shown(findings, columns=100, **options):
    out = io.StringIO()
    Console(file=out, width=columns, force_terminal=False, no_color=True, highlight=False).print(
        findings_text(findings, **options)
    )
    return out.getvalue()


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_finding_is_told_whole_and_stays_within_the_console(width):
    said = shown([replace(STEP, confirmation=YES)], width)
    assert max(map(len, said.splitlines())) <= min(width, READABLE)
    assert "\x1b" not in said
    for part in (
        "Killed by large steps",
        STEP.sentence,
        "1.73 before, −0.31 after",
        "its weights −1.72, its bias −0.133, what comes in +0.102",
        "17 % of the weights' norm, usually 4.5 %",
        "Confirmed by replay: with lr 0.03 the same 40 batches kill none.",
        "clipping: 1 of 4",
        "1. lower the learning rate (4 of 4 units lived in the replay)",
        "2. clip the gradient torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    ):
        assert part in words(said), part
    assert "γ" not in said  # a part that did nothing is not worth a word


def test_a_width_that_is_given_holds():
    assert max(map(len, shown([STEP], 200, width=60).splitlines())) <= 60


def test_a_call_stands_on_a_line_of_its_own():
    lines = [line.strip() for line in shown([STEP]).splitlines()]
    assert "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)" in lines


@pytest.mark.parametrize(("confirmed", "head"), [(False, "Not confirmed by replay:"), (None, "No replay:")])
def test_what_a_replay_did_not_show_is_said(confirmed, head):
    sentence = (
        "not confirmed: it dies all the same" if confirmed is False else "could not be replayed: no steps are kept"
    )
    said = words(shown([replace(STEP, confirmation=replace(YES, confirmed=confirmed, sentence=sentence))]))
    assert f"{head} {sentence.partition(': ')[2]}." in said


def test_a_cascade_names_its_root_and_the_root_what_followed():
    said = words(shown([STEP, CASCADE]))
    assert "What followed from it: -> 2 of 8 units of body.3, steps 36–40" in said
    assert "It follows from what happened to 'body.1': killed by large steps." in said


def test_fifty_sites_of_one_cause_are_told_as_one():
    many = [replace(STEP, site=f"layer.{i}", severity="error" if i < 9 else "warning") for i in range(50)]
    said = shown(many)
    assert said.count("Killed by large steps") == 1
    assert f"and {4 * (49 - LISTED)} units at {49 - LISTED} sites more" in words(said)
    assert len(said.splitlines()) < 40


def test_notes_are_named_in_short_and_do_not_hide_what_matters():
    said = words(shown([STEP, NOTE]))
    assert said.endswith("Not worth acting on: rarely firing, yet alive: 1 of 8 in body.5")


def test_a_sound_run_is_called_so_with_the_number_it_lost():
    few = replace(STEP, severity="note", units=(0,), evidence={**STEP.evidence, "of": 64})
    said = words(shown([few, NOTE]))
    assert said.startswith("Nothing is the matter. 1 dead unit, at most 1 of the 64 of one site, is ordinary.")
    assert words(shown([])) == "Nothing is the matter."


def test_names_that_look_like_markup_are_shown_as_they_are():
    said = shown([replace(STEP, site="[red]layer[/red]", sentence="[bold]4 of 8[/bold] units.")] * 2)
    assert "[bold]4 of 8[/bold] units." in said
    assert "[red]layer[/red]" in said


def test_a_silent_site_is_no_follower_of_what_killed_its_units():
    cut = replace(CASCADE, code="silent-site", site="body.1", sentence="Nothing passes 'body.1'.")
    said = words(shown([STEP, cut]))
    assert "What followed from it" not in said
    assert "2. Signal cut warning · silent-site Nothing passes 'body.1'." in said


def test_few_units_that_followed_are_not_made_a_cascade():
    few = replace(CASCADE, severity="note", evidence={**CASCADE.evidence, "share": 0.05})
    assert "What followed" not in shown([STEP, few])
    assert "What followed" in shown([STEP, replace(few, evidence={**CASCADE.evidence, "share": 0.12})])
