"""`relume compact MODULE:MODEL --data MODULE:LOADER --out FILE`."""

import json

import pytest
import torch
from typer.testing import CliRunner

import relume
from relume import cli
from relume.prove.certify import certify

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.body(x)


torch.manual_seed(0)
print("this goes to stderr")
data = [torch.randn(256, 4), torch.randn(256, 4)]
def loader(): return iter(data)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_to_compact.py").write_text(NET)
    module = {}
    exec(NET, module)
    net = module["Net"]()
    with torch.no_grad():
        net.body[0].bias[:] = 1.0
        net.body[0].bias[[1, 6]] = -1000.0
    torch.save(net.state_dict(), tmp_path / "w.pt")
    return net, module["Net"]


def invoke(*args):
    result = CliRunner().invoke(cli.app, ["compact", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_checkpoint_becomes_smaller_and_is_rebuilt(folder):
    net, make = folder
    code, out = invoke("net_to_compact.py:Net", "--data", "net_to_compact.py:loader", "--weights", "w.pt", "--out",
                       "small/s.pt", "--json")  # fmt: skip
    said = json.loads(out)
    assert code == 0
    assert said["out"] == "small/s.pt"
    assert said["compaction"]["sites"]["body.1"]["removed"] == [1, 6]
    assert said["compaction"]["inputs"] == 512
    small = relume.rebuild(make, "small/s.pt")
    assert small.body[0].out_features == 6
    x = torch.randn(50, 4)
    torch.testing.assert_close(small(x), net(x))


def test_text_names_what_was_removed_and_the_file(folder):
    code, out = invoke("net_to_compact.py:Net", "--data", "net_to_compact.py:loader", "--weights", "w.pt", "--out",
                       "s.pt", "--latency")  # fmt: skip
    assert code == 0
    assert "2 of 8 units removed" in out
    assert "Saved: s.pt" in out
    assert " ms" in out


def test_a_certificate_takes_the_place_of_the_census(folder):
    net, _ = folder
    certify(net, -1.0, 1.0, shape=(4,)).save("c.json")
    code, out = invoke(
        "net_to_compact.py:Net", "--weights", "w.pt", "--certificate", "c.json", "--out", "s.pt", "--json"
    )
    said = json.loads(out)["compaction"]
    assert code == 0
    assert said["basis"] == "certificate"
    assert said["sites"]["body.1"]["removed"] == [1, 6]


def test_nothing_to_remove_is_no_failure_and_too_few_inputs_prove_nothing(folder):
    code, out = invoke("net_to_compact.py:Net", "--data", "net_to_compact.py:loader", "--weights", "w.pt", "--out",
                       "s.pt", "--min-inputs", "1000", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["compaction"]["sites"]["body.1"]["removed"] == []


def test_neither_data_nor_certificate_is_an_error(folder):
    with pytest.raises(relume.RelumeError, match="needs --data, or a --certificate"):
        invoke("net_to_compact.py:Net", "--out", "s.pt")
