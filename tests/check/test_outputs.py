"""SARIF and Markdown of a census: what code hosts read, held against the standard's required fields."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import relume
from relume.check import Target, markdown, sarif
from relume.check.limits import Limits

HERE = Path(__file__)


class Sites(nn.Module):
    """3 of 8 units dead; all 4 dead; 2 of 4 non-finite; a healthy one."""

    def __init__(self):
        super().__init__()
        self.some, self.all, self.bad, self.well = (nn.Linear(4, n) for n in (8, 4, 4, 4))
        self.act = nn.ModuleDict({n: nn.ReLU() for n in ("some", "all", "bad", "well")})
        with torch.no_grad():
            self.some.bias[:3] = -1000.0
            self.all.bias[:] = -1000.0
            self.bad.weight[:2] = float("inf")
            self.well.bias[:] = 1000.0

    def forward(self, x):
        return [self.act[n](getattr(self, n)(x)) for n in ("some", "all", "bad", "well")]


@pytest.fixture(scope="module")
def census():
    torch.manual_seed(0)
    return relume.census(Sites(), torch.randn(300, 4))


@pytest.fixture
def target():
    return Target("tests:Sites", Sites, HERE, 18)


def test_sarif_has_one_result_per_site_and_trouble(census, target):
    results = sarif(census, target, [])["runs"][0]["results"]
    assert [(r["ruleId"], r["properties"]["site"], r["level"]) for r in results] == [
        ("relume/dead-units", "act.some", "warning"),
        ("relume/silent-site", "act.all", "error"),
        ("relume/non-finite", "act.bad", "error"),
    ]
    assert results[0]["message"]["text"].startswith("act.some (relu): 3 of 8 units are dead. None fired on 300 inputs")
    assert results[0]["properties"]["dead"] == [0, 1, 2]
    assert "2 of 4 units had NaN or infinite input" in results[2]["message"]["text"]


def test_sarif_has_what_the_standard_requires(census, target, monkeypatch):
    monkeypatch.chdir(HERE.parents[1])
    log = json.loads(json.dumps(sarif(census, target, ["too many"]), allow_nan=False))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"] == "relume"
    assert len({r["id"] for r in rules}) == len(rules)
    for rule in rules:
        assert rule["shortDescription"]["text"]
        assert rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"] == {
            "artifactLocation": {"uri": "check/test_outputs.py", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 18},
        }
        assert location["logicalLocations"][0]["fullyQualifiedName"] == result["properties"]["site"]
        assert all(isinstance(v, str) for v in result["partialFingerprints"].values())
    prints = [r["partialFingerprints"]["relumeSite/v1"] for r in run["results"]]
    assert len(set(prints)) == len(prints)
    assert run["properties"]["failures"] == ["too many"]


def test_a_file_outside_the_working_folder_is_named_in_full(census, target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    location = sarif(census, target, [])["runs"][0]["results"][0]["locations"][0]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": HERE.resolve().as_uri()}


def test_a_model_without_a_file_is_placed_by_its_site_alone(census):
    location = sarif(census, Target("m:x", None, None, 1), [])["runs"][0]["results"][0]["locations"][0]
    assert "physicalLocation" not in location


def test_a_healthy_model_has_no_results():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[:] = 1000.0
    assert sarif(relume.census(net, torch.randn(300, 2)), Target("m:x", None, None, 1), [])["runs"][0]["results"] == []


SOURCE = """
import torch
first = 1

class Net: ...

def make(): ...

a, b = 1, 2
named: int = 3
if True:
    inner = 4
first = 5
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [("Net", 5), ("Net.__name__", 5), ("make", 7), ("b", 9), ("named", 10), ("first", 13), ("inner", 1)],
)
def test_the_line_is_where_the_name_is_defined(tmp_path, monkeypatch, name, line):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lines_of_test.py").write_text(SOURCE)
    target = Target.find(f"{tmp_path}/lines_of_test.py:{name}", "the model")
    assert (target.file, target.line) == (tmp_path / "lines_of_test.py", line)
    del sys.modules["lines_of_test"]  # its file is gone with the test


def rows(page):
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [c.strip() for c in line.split(" | ")] for line in lines}


def test_markdown_says_the_same_numbers_as_the_census(census):
    page = markdown(census, [], checked=False)
    assert page.startswith("### relume Sites, 7 of 20 units dead (39 %)\n")
    table = rows(page)
    assert table["act.some"][1:4] == ["relu", "8", "**3**"]
    assert table["act.all"][3] == "**4** (all)"
    assert "2 non-finite" in table["act.bad"][-1]
    assert table["act.well"][3] == "0"
    assert "300 inputs seen in eval mode" in page


def test_markdown_says_what_failed(census):
    limits = Limits(over=0.05, over_site=0.5)
    failures = limits.failures(census)
    assert len(failures) == 3
    page = markdown(census, failures, checked=True)
    assert page.startswith("### relume failed: Sites")
    assert page.count("- ❌ ") == 3
    assert "❌ 7 of 20 units are dead: 39 %, limit 5.0 %" in page
    assert markdown(census, [], checked=True).startswith("### relume passed: Sites")


def test_a_name_can_not_break_the_table():
    net = nn.Sequential()
    net.add_module("a|b", nn.Linear(2, 2))
    net.add_module("c|<i>", nn.ReLU())
    page = markdown(relume.census(net, torch.randn(8, 2)), [], checked=False)
    (row,) = [line for line in page.splitlines() if line.startswith("| `")]
    assert row.startswith("| `c\\|<i>` | relu | 2 |")


def command(*args, cwd, **env):
    done = subprocess.run(
        [sys.executable, "-m", "relume", "census", "net.py:model", "--data", "net.py:data", *args],
        capture_output=True, text=True, timeout=120, cwd=cwd, env={**os.environ, **env},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nmodel = nn.Sequential(nn.Linear(2, 2), nn.ReLU())\n"
        "data = torch.ones(300, 2)\n"
        "torch.nn.init.constant_(model[0].bias, -9)\n"
    )
    return tmp_path


def test_a_github_job_shows_the_page_without_being_asked(folder):
    (folder / "step.md").write_text("before\n")
    command("--sarif", "out/relume.sarif", cwd=folder, GITHUB_STEP_SUMMARY=str(folder / "step.md"))
    page = (folder / "step.md").read_text()
    assert page.startswith("before\n### relume Sequential, 2 of 2 units dead (100 %)")
    log = json.loads((folder / "out" / "relume.sarif").read_text())
    (result,) = log["runs"][0]["results"]
    assert result["ruleId"] == "relume/silent-site"
    location = result["locations"][0]["physicalLocation"]
    assert (location["artifactLocation"]["uri"], location["region"]["startLine"]) == ("net.py", 3)


def test_a_page_of_ones_own_is_replaced(folder):
    (folder / "own.md").write_text("before\n")
    command("--summary", "own.md", cwd=folder, GITHUB_STEP_SUMMARY=str(folder / "step.md"))
    assert (folder / "own.md").read_text().startswith("### relume")
    assert not (folder / "step.md").exists()
