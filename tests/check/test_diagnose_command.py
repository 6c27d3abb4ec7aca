"""`relume diagnose`: what it prints and writes, and its exit codes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import relume
from relume import check, cli
from relume.diagnose.remedies import REMEDIES


def run(folder, dead):
    """A short training, `dead` of whose 20 units never fire."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
    with torch.no_grad():
        model[0].bias.fill_(5.0)
        model[0].bias[:dead] = -50.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with relume.watch(model, optimizer, every=1, window=10, save=folder):
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(64, 4)).square().mean().backward()
            optimizer.step()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: run(folder / name, dead)
        for name, dead in (("none", 0), ("note", 2), ("warning", 6), ("error", 16))
    }  # fmt: skip


def invoke(*args):
    return CliRunner().invoke(cli.app, ["diagnose", *(str(a) for a in args)])


def test_findings_are_told_with_their_numbers(runs):
    result = invoke(runs["error"])
    assert result.exit_code == 0
    told = " ".join(result.output.split())
    assert told.startswith("Sequential, 20 steps of SGD (finished).")
    assert "16 of 20 units of '1' were dead" in told
    (finding,) = relume.load(runs["error"]).diagnose()
    assert finding.remedies[0].text in told


@pytest.mark.parametrize(
    ("which", "fail_on", "code"),
    [
        ("error", "none", 0), ("error", "error", 1), ("error", "warning", 1),
        ("warning", "error", 0), ("warning", "warning", 1),
        ("note", "warning", 0), ("none", "warning", 0),
    ],
)  # fmt: skip
def test_the_exit_code_is_1_from_the_chosen_severity_on(runs, which, fail_on, code):
    assert invoke(runs[which], "--fail-on", fail_on).exit_code == code


def test_a_sound_run_is_said_to_be_sound(runs):
    result = invoke(runs["none"])
    assert result.exit_code == 0
    assert "Nothing is the matter" in result.output


def test_json_is_the_findings_and_what_was_run(runs):
    result = invoke(runs["error"], "--json", "--fail-on", "error")
    assert result.exit_code == 1
    told = json.loads(result.output)
    loaded = relume.load(runs["error"])
    assert told["findings"] == [f.to_dict() for f in loaded.diagnose()]
    about = told["run"]
    assert (about["model"], about["status"], about["last_step"], about["windows"]) == ("Sequential", "finished", 19, 2)
    assert about["file"] == str(loaded.path)


def test_sarif_has_a_result_per_finding_and_a_rule_per_code(runs, tmp_path):
    assert invoke(runs["error"], "--sarif", tmp_path / "out" / "x.sarif").exit_code == 0
    log = json.loads((tmp_path / "out" / "x.sarif").read_text())
    (told,) = log["runs"]
    rules = told["tool"]["driver"]["rules"]
    assert {f"relume/{code}" for code in REMEDIES} <= {rule["id"] for rule in rules}
    for rule in rules:
        code = rule["id"].removeprefix("relume/")
        assert rule["shortDescription"]["text"]
        assert f"docs/findings/{code}.md" in rule["help"]["text"]
    (result,) = told["results"]
    (finding,) = relume.load(runs["error"]).diagnose()
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "relume/born-dead"
    assert (result["level"], result["message"]["text"]) == ("error", finding.sentence)
    assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "1"
    assert result["properties"]["evidence"] == finding.to_dict()["evidence"]


def test_a_print_stays_the_same_while_numbers_change(runs):
    loaded = relume.load(runs["error"])
    (finding,) = loaded.diagnose()
    other = replace(finding, units=finding.units[1:], sentence="15 of 20", severity="warning")
    elsewhere = replace(finding, site="3")
    prints = [
        check.findings_sarif([f], loaded)["runs"][0]["results"][0]["partialFingerprints"]
        for f in (finding, other, elsewhere)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_numbers_that_are_not_finite_are_null(runs):
    loaded = relume.load(runs["error"])
    (finding,) = loaded.diagnose()
    odd = replace(finding, evidence={**finding.evidence, "max": float("nan"), "min": -float("inf")})
    for told in (check.findings_json([odd], loaded), check.findings_sarif([odd], loaded)):
        assert '"max": null' in json.dumps(told, allow_nan=False)
        assert '"min": null' in json.dumps(told, allow_nan=False)


def test_a_script_that_relume_ran_is_where_the_result_is(runs, tmp_path, monkeypatch):
    loaded = relume.load(runs["error"])
    findings = loaded.diagnose()
    (tmp_path / "train.py").write_text("pass\n")
    monkeypatch.chdir(tmp_path)
    for script, there in (("train.py", True), ("gone.py", False)):
        loaded.about["script"] = script
        (place,) = check.findings_sarif(findings, loaded)["runs"][0]["results"][0]["locations"]
        assert ("physicalLocation" in place) is there
    loaded.about["script"] = "train.py"
    (place,) = check.findings_sarif(findings, loaded)["runs"][0]["results"][0]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "train.py"


@pytest.mark.parametrize("what", ["nowhere", "undiagnosed", "empty"])
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(tmp_path, what):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    if what != "nowhere":
        with relume.watch(model, every=1, window=2, save=tmp_path / what, diagnose=what != "undiagnosed"):
            for _ in range(4 if what == "undiagnosed" else 0):
                model(torch.randn(8, 4))
    done = subprocess.run(
        [sys.executable, "-m", "relume", "diagnose", str(tmp_path / what)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("relume: ")


def test_bad_usage_is_exit_code_2(runs):
    assert invoke(runs["none"], "--fail-on", "everything").exit_code == 2
    assert invoke().exit_code == 2
