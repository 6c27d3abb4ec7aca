"""The page's findings: each with its evidence, drawn where it can be, linked to its sites; many sites are one entry."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from torch import nn

import relume
from relume.diagnose import Confirmation, Remedy
from relume.report import findings_charts as charts
from relume.report.evidence import key_rows, rows
from relume.report.html import render
from relume.report.view import view


@pytest.fixture
def run(make_run):
    return make_run(kill=[(6, 0, range(5), -100.0), (11, 2, range(8), -100.0)])


def articles(page):
    return re.findall(r"<article class=\"finding.*?</article>", page, re.DOTALL)


def test_each_cause_has_one_entry_with_its_sentence_evidence_and_remedies(run):
    findings = [f for f in run.diagnose() if f.severity != "note"]
    page = render(run)
    told = articles(page)
    assert len(told) == len({f.code for f in findings})
    assert {re.search(r'data-code="([^"]+)"', article)[1] for article in told} == {f.code for f in findings}
    first = next(a for a in told if f'data-code="{findings[0].code}"' in a)
    text = re.sub(r"<[^>]+>", "", first).replace("&#39;", "'")
    assert findings[0].sentence in text
    for row in rows(findings[0]):
        assert row.name in text.replace("&#x27;", "'")
    for remedy in findings[0].remedies:
        assert remedy.text in text


def test_a_confirmation_is_shown_with_all_that_was_tried(run):
    findings = run.diagnose()
    said = Confirmation(
        True, "lr / 10", (0, 9), 5, 1, "confirmed: with lr / 10 the same 9 batches kill 1 of 8 units instead of 5",
        (("lr / 10", 1), ("clipping", 4)),
    )  # fmt: skip
    remedy = Remedy("lower it", "x.lr /= 10", gain="4 of 5 lived")
    page = render(run, findings=[replace(findings[0], confirmation=said, remedies=(remedy,)), *findings[1:]])
    assert "<b>Confirmed by replay:</b> with lr / 10 the same 9 batches kill 1 of 8 units instead of 5." in page
    assert re.findall(r'<td>(.*?)</td><td class="r">(\d)</td>', page)[:3] == [
        ("nothing changed", "5"), ("lr / 10", "1"), ("clipping", "4"),
    ]  # fmt: skip
    assert "(4 of 5 lived)" in page
    assert '<code class="call">x.lr /= 10</code>' in page


def test_every_link_on_the_page_has_its_target_once(run, make_run):
    page = render(run, beside=[("sane", make_run())])
    targets = re.findall(r'id="([^"]+)"', page)
    assert len(targets) == len(set(targets))
    links = re.findall(r'href="#([^"]+)"', page)
    assert len(links) >= 4
    assert set(links) <= set(targets)


def test_a_sound_run_says_plainly_that_nothing_is_the_matter(make_run):
    page = render(make_run(kill=[(6, 0, [1], -100.0)]))
    assert not articles(page)
    assert "<b>Nothing is the matter.</b> 1 dead unit, at most 1 of the 8 of one site, is ordinary." in page
    assert "Nothing is the matter: 1 of 16 units are dead" in page


def test_a_run_that_kept_no_record_says_why_it_has_no_findings(make_run):
    page = render(make_run(diagnose=False, kill=[(6, 0, range(5), -100.0)]))
    assert "Causes were not looked for: this watch keeps nothing to diagnose by" in page
    assert "Nothing is the matter" not in page


def test_fifty_sites_of_one_cause_are_one_entry_that_folds_the_others(run):
    (first, *_) = [f for f in run.diagnose() if f.units]
    many = [replace(first, site=f"layer.{i}", severity="error") for i in range(50)]
    page = render(run, findings=many)
    assert len(articles(page)) == 1
    assert "The same at 49 more sites" in page
    assert set(map(int, re.findall(r"layer\.(\d+)", page))) == set(range(50))


def test_findings_of_a_large_run_keep_the_page_below_one_megabyte(run):
    (first, *_) = [f for f in run.diagnose() if f.units]
    wide = replace(first, units=tuple(range(4096)))
    codes = ["killed-by-step", "bias-drift", "weight-drift", "upstream-cascade", "born-dead", "unknown-cause"]
    many = [
        replace(wide, code=code, site=f"blocks.{i}.mlp.activation", severity="error")
        for code in codes
        for i in range(100)
    ]
    assert len(render(run, findings=many).encode()) < 2**19


def test_names_in_findings_are_escaped(run):
    (first, *_) = [f for f in run.diagnose() if f.units]
    odd = replace(first, site="<b>&", sentence="<i>they died</i>", remedies=(Remedy("<u>do</u>", "<s>call</s>"),))
    follows = replace(odd, code="upstream-cascade", root=(first.code, "<b>&"))
    page = render(run, findings=[odd, follows])
    for raw in ("<i>they", "<u>do", "<s>call", "<b>&<"):
        assert raw not in page


def test_the_course_of_a_fall_ends_below_zero_and_its_parts_are_those_of_what_moved_it():
    """Biases are pushed down by a known amount each step; nothing else moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        model[0].bias.fill_(1.0)
    optimizer = torch.optim.SGD([model[0].bias], lr=0.1)
    with relume.watch(model, optimizer, every=1, window=10, min_inputs=64) as watch:
        for _ in range(40):
            loss = model[0].bias[:6].sum() + 0.0 * model(torch.randn(64, 4)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (course,) = [c for c in watch.record.traces["1"].courses if len(c.units) > 1][-1:]
    assert set(course.units) <= set(range(6))
    high = dict(zip(course.steps, course.column("max"), strict=True))
    assert high[0] > 0 >= high[1]
    moved = dict(zip(course.steps, course.column("bias"), strict=True))
    for step in course.steps:
        assert moved[step] == pytest.approx(-0.1 * (step - course.steps[0]), abs=1e-4)
    assert max(map(abs, course.column("weights"))) < 1e-6
    page = view(watch, "run").findings
    captions = [figure.caption for entry in page.entries for figure in entry.figures]
    assert any("that died in step" in caption for caption in captions)
    loaded = charts.fall(course.steps, *map(course.column, ("mean", "std", "max")), "t", flat_below_zero=True)
    assert "last step it fired at" in loaded


def test_a_loaded_run_draws_the_same_fall(make_run, tmp_path):
    live = make_run(save=tmp_path / "run", kill=[(6, 0, range(5), -100.0)])
    drawn = [f.drawing for e in view(live, "run").findings.entries for f in e.figures]
    assert drawn
    assert [f.drawing for e in view(relume.load(tmp_path / "run"), "run").findings.entries for f in e.figures] == drawn


def test_a_long_chain_counts_the_sites_that_it_does_not_draw():
    links = [charts.Link(f"layer.{i}", f"{i} units", f"site{i}") for i in range(30)]
    drawing = charts.chain(links, "a chain")
    svg = ElementTree.fromstring(drawing)
    assert svg.attrib["role"] == "group"
    assert drawing.count("<rect") == charts.CHAIN + 1
    assert f"and {30 - charts.CHAIN} more" in drawing
    assert drawing.count('class="tip"') == charts.CHAIN


@pytest.mark.parametrize("nothing", [[], [float("nan")] * 3, [0.0] * 3])
def test_drawings_survive_missing_and_constant_data(nothing):
    steps = list(range(len(nothing)))
    for drawing in (
        charts.fall(steps, nothing, nothing, nothing, "t", flat_below_zero=True),
        charts.curves(steps, [("a", nothing)], "t"),
        charts.bars([("a", 0.0)], "t"),
        charts.bars([], "t"),
    ):
        assert "nan" not in drawing
        if drawing:
            ElementTree.fromstring(drawing)


def test_bars_point_down_to_the_left_and_up_to_the_right_of_zero():
    drawing = charts.bars([("bias", -2.0), ("weights", 1.0)], "t")
    down, up = re.findall(r'class="(?:down|up)" x="([\d.]+)" y="\d+" width="([\d.]+)"', drawing)
    zero = float(re.search(r'class="zero" d="M([\d.]+)', drawing)[1])
    assert float(down[0]) + float(down[1]) == pytest.approx(zero, abs=0.2)
    assert float(up[0]) == pytest.approx(zero, abs=0.2)
    assert float(down[1]) == pytest.approx(2 * float(up[1]), abs=0.2)


def test_no_number_of_the_evidence_is_left_out(run):
    for finding in run.diagnose():
        told = {key for row in rows(finding) for key in row.keys}
        known = {k for k, v in finding.evidence.items() if v not in ("", None) and v == v}
        assert known - {"units", "of", "share", "largest_update_ratio"} <= told
        assert set(key_rows(finding)) <= set(rows(finding))
    new = replace(finding, evidence={"something_new": 3.0, "flag": True, "absent": float("nan")})
    assert [(r.name, r.value) for r in rows(new)] == [("something new", "3"), ("flag", "yes")]
