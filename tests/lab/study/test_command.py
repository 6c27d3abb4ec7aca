"""`relume study`: what it prints, writes and exits with; Ctrl-C."""

import csv
import functools
import json
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from typer.testing import CliRunner

from relume import cli
from relume.errors import RelumeError
from relume.lab.study.store import FILE_NAME, Store

CONFIG = """\
name = "small"

[settings]
task = "spirals"
steps = 12
window = 6
every = 2
width = 8
activation = ["relu", "elu"]
lr = [0.05, 0.5]
seed = [0, 1]
"""


@pytest.fixture
def config(tmp_path):
    def make(old="", new=""):
        path = tmp_path / "study.toml"
        path.write_text(CONFIG.replace(old, new) if old else CONFIG, encoding="utf-8")
        return path

    return make


def kept_in(path):
    with closing(Store(path)) as store:
        return len(store.statuses())


def invoke(*args):
    return CliRunner().invoke(cli.app, ["study", *(str(a) for a in args), "--jobs", "1"])


def test_it_tells_the_best_and_where_things_are(config, tmp_path):
    result = invoke(config(), "--out", tmp_path / "out", "--table", tmp_path / "table.csv")
    assert result.exit_code == 0
    assert "best by validation score" in result.stdout
    assert "8 runs done, 0 failed." in result.stdout
    assert str(tmp_path / "table.csv") in result.stdout
    assert result.stderr.splitlines()[0] == "small: 0 of 8 runs"
    assert result.stderr.splitlines()[-1].startswith("small: 8 of 8 runs; best: spirals: activation ")
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    again = invoke(config(), "--out", tmp_path / "out")
    assert again.exit_code == 0
    assert "8 of them before" in again.stderr
    assert again.stdout.splitlines()[:8] == result.stdout.splitlines()[:8]


def test_as_json(config, tmp_path):
    result = invoke(config(), "--out", tmp_path / "out", "--json")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["members"], told["done"], told["failed"], told["failures"]) == (8, 8, 0, [])
    assert told["folder"] == str(tmp_path / "out")
    means = [place["mean"] for place in told["best"]]
    assert means == sorted(means, reverse=True)
    assert {place["seeds"] for place in told["best"]} == {2}


def test_members_that_failed_are_told_and_the_exit_code_is_1(config, tmp_path):
    path = config('"elu"', '"glu"')
    result = invoke(path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "4 runs done, 4 failed." in result.stdout
    assert "failed: activation=glu, lr=0.05, seed=0: RelumeError: 'glu'" in result.stdout
    told = json.loads(invoke(path, "--out", tmp_path / "out", "--json").stdout)
    assert [f["settings"]["activation"] for f in told["failures"]] == ["glu"] * 4


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--table", "x.xlsx"], ".parquet or .csv"),
        (["--address", "auto"], "--runner ray"),
        (["--runner", "x"], "local"),
    ],
)
def test_bad_usage_exits_with_2(args, said, config, tmp_path):
    result = invoke(config(), "--out", tmp_path / "out", *args)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_a_wrong_config_is_told_with_its_line(config, tmp_path):
    result = invoke(config("steps = 12", "steps = 0"), "--out", tmp_path / "out")
    assert isinstance(result.exception, RelumeError)  # main() makes a line and exit code 2 of it
    assert "study.toml, line 5: steps is a whole number not below 1, not 0" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_it_and_what_is_done_is_kept(config, tmp_path):
    path = config("seed = [0, 1]", "seed = { low = 0, high = 999 }")
    command = [sys.executable, "-m", "relume", "study", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]
    # A program started in the background of a shell ignores the interrupt, and so do its children.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    store = tmp_path / "out" / FILE_NAME
    while process.poll() is None and not (store.exists() and kept_in(store)):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    kept = kept_in(store)
    assert f"Stopped: {kept:,} of 4,000 runs are kept; the same command goes on." in err
    assert 0 < kept < 4_000
    assert "Traceback" not in err
    assert out == ""
