"""The command line: what it prints and writes, and its exit codes (0 fine, 1 a check failed, 2 bad usage or input)."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import relume
from relume import cli


@pytest.fixture
def run_folder(tmp_path):
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:3] = -50.0
    with relume.watch(model, every=1, window=5, save=tmp_path / "run"):
        for _ in range(10):
            model(torch.randn(64, 2)).sum().backward()
    return tmp_path / "run"


def invoke(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


def shell(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "relume", *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_report_writes_the_page_beside_the_run_and_prints_the_verdict(run_folder):
    result = invoke("report", run_folder)
    assert result.exit_code == 0
    assert "3 of 4 units are dead" in " ".join(result.output.split())
    assert (run_folder / "report.html").read_text().startswith("<!doctype html>")


def test_report_takes_the_file_itself_and_another_place_to_write(run_folder, tmp_path):
    out = tmp_path / "elsewhere" / "page.html"
    assert invoke("report", run_folder / "run.sqlite", "--out", out).exit_code == 0
    assert out.exists()


def test_report_as_json_is_one_object_with_the_census(run_folder):
    result = json.loads(invoke("report", run_folder, "--json").output)
    assert result["status"] == "finished"
    assert result["census"]["dead"] == 3
    assert result["census"]["sites"]["1"]["tally"]["dead"] == 3
    assert result["verdict"].startswith("3 of 4 units are dead")


@pytest.mark.parametrize("contents", [None, b"", b"not a database at all" * 100])
def test_a_missing_empty_or_foreign_run_is_one_line_on_stderr_and_exit_code_2(tmp_path, contents):
    if contents is not None:
        (tmp_path / "run.sqlite").write_bytes(contents)
    result = shell("report", tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("relume: ")
    assert len(result.stderr.splitlines()) == 1
    assert "run.sqlite" in result.stderr


def test_a_page_that_cannot_be_written_is_exit_code_2(run_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = shell("report", run_folder, "--out", tmp_path / "file" / "page.html")
    assert result.returncode == 2
    assert result.stderr.startswith("relume: ")


def test_bad_usage_is_exit_code_2():
    assert invoke("report").exit_code == 2
    assert invoke("no-such-command").exit_code == 2
    assert invoke("demo", "--epochs", "0").exit_code == 2


def test_version_and_help():
    assert invoke("--version").output.strip() == f"relume {relume.__version__}"
    help_text = invoke("--help").output
    assert "demo" in help_text
    assert "report" in help_text
