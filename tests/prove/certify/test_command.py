"""`relume certify`: names on the command line, exit codes, JSON."""

import json
import sys
from typing import NamedTuple

import pytest
import torch
from torch import nn

import relume
from relume import cli

SOURCE = """
import torch
from torch import nn

print("imported")

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].bias[:3] = -50.0
    return model

data = [(torch.rand(20, 3), torch.zeros(20)) for _ in range(2)]

class Odd(nn.Module):
    def forward(self, x):
        return torch.relu(torch.cumprod(x, -1))
"""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    (tmp_path / "certified_net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "certified_net", raising=False)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["relume", "certify", *args])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Done(end.value.code or 0, *capfd.readouterr())

    return run


def test_the_certificate_is_printed_as_a_table_and_as_json(run, tmp_path):
    done = run("certified_net:make", "--data", "certified_net:data", "--out", "c.json", "--json", "--method", "crown")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] is True
    assert found["certificate"]["sites"][0]["dead"][:3] == [True] * 3
    assert relume.Certificate.load(tmp_path / "c.json").dead == found["certificate"]["dead"]
    assert "imported" in done.stderr


def test_a_box_may_be_given_by_numbers_and_weights_by_a_file(run, tmp_path):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.nn.init.constant_(model[0].bias, -50.0)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    args = ("certified_net:make", "--weights", "weights.pt", "--lower", "0", "--upper", "1", "--shape", "3")
    done = run(*args, "--fail-over", "0.5")
    assert done.returncode == 1, done.stderr
    assert "8 of 8 units certified dead (100 %)" in done.stdout
    assert "failed: 8 of 8 units are certified dead, limit 50.0%" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("certified_net:make",), "a box is needed"),
        (("certified_net:make", "--lower", "1", "--upper", "0", "--shape", "3"), "lower > upper"),
        (("certified_net:make", "--lower", "0", "--upper", "1", "--shape", "a"), "--shape takes whole numbers"),
        (("certified_net:Odd", "--lower", "0", "--upper", "1", "--shape", "3"), "applies cumprod"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, args, message):
    done = run(*args)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
