"""docs/findings: a page for each code, and its thresholds are those in force."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from relume.diagnose import cascades, death, findings, gradients, rules, states
from relume.diagnose.remedies import REMEDIES
from relume.diagnose.replay import plans
from relume.report.words import CAUSES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "findings"


def load():
    spec = importlib.util.spec_from_file_location("docs_findings", ROOT / "docs" / "findings.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DOCS = load()


def codes_in_source():
    """What the rules can answer: every word of theirs that is written as a code."""
    found = set()
    for module in (rules, cascades, states, gradients, sys.modules["relume.diagnose.deaths"]):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} & (
                    {"saturation", "sparse"} | set(re.findall(r"^[a-z]+(?:-[a-z]+)+$", node.value))
                )
    return found


def numbers(module):
    return [(module, name) for name, value in vars(module).items() if name.isupper() and isinstance(value, int | float)]


def test_every_code_that_can_be_produced_has_a_page_and_no_other_has():
    codes = codes_in_source()
    assert codes == set(DOCS.PAGES)
    assert {path.stem for path in FOLDER.glob("*.md")} == codes | {"README"}
    assert set(CAUSES) == codes
    assert set(REMEDIES) | set(plans.OF_CAUSE) <= codes


def test_every_change_that_a_replay_makes_is_described():
    assert {key for keys in (*plans.OF_CAUSE.values(), plans.FOR_DEATHS) for key in keys} <= set(DOCS.CHANGES)


@pytest.mark.parametrize("code", DOCS.PAGES)
def test_a_page_says_what_is_in_force(code):
    """All but the example; `python docs/findings.py` writes it anew."""
    head, tail = DOCS.prose(code).split("{example}")
    page = (FOLDER / f"{code}.md").read_text()
    assert page.startswith(head)
    assert page.endswith(tail)


@pytest.mark.parametrize("code", DOCS.PAGES)
def test_the_example_shows_the_finding(code):
    page = (FOLDER / f"{code}.md").read_text()
    said = page.partition("```text\n")[2].partition("\n```")[0]
    title = CAUSES[code].title
    assert f"· {code}" in said or f"{title[0].lower()}{title[1:]}:" in said


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *numbers(rules),
        *[(cascades, n) for n in ("DEEP", "NARROW")],
        *[(findings, n) for n in ("NOTABLE", "GRAVE")],
        *[(gradients, n) for n in ("VANISHED", "EXPLODED", "LAYERS", "EARLY")],
        (states, "SPARSE"),
        (death, "LAST_STEPS"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_no_threshold_is_written_by_hand(module, name, monkeypatch):
    before = [DOCS.prose(code) for code in DOCS.PAGES] + [DOCS.index()]
    monkeypatch.setattr(module, name, 0.4321)
    after = [DOCS.prose(code) for code in DOCS.PAGES] + [DOCS.index()]
    assert before != after
    assert re.search(r"0\.432|43 %|0\.13", "".join(after))


def test_the_index_links_every_page():
    index = (FOLDER / "README.md").read_text()
    assert index == DOCS.index()
    assert set(re.findall(r"\]\(([a-z-]+)\.md\)", index)) == set(DOCS.PAGES)


def test_links_between_pages_lead_somewhere():
    for path in FOLDER.glob("*.md"):
        for target in re.findall(
            r"\]\((?!http)([^)#]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        ):
            assert (FOLDER / target).exists(), f"{path.name}: {target}"
