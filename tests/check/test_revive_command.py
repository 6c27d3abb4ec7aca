"""`relume revive`: a checkpoint in, one whose dead units are alive out."""

import json
import sys

import pytest
import torch
from torch import nn

from relume.cli import main

MODULE = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def stream():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        def forward(self, x):
            return self.b(x + torch.relu(self.a(x)))
    net = Net()
    with torch.no_grad():
        net.a.bias[2] = -100
    return net

def data():
    return [torch.randn(128, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_to_revive.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].bias[[1, 4]] = -100
    torch.save(net.state_dict(), tmp_path / "old.pt")

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["relume", "revive", *args])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr()

    call.folder, call.net = tmp_path, net
    return call


def loaded(run, name):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    net.load_state_dict(torch.load(run.folder / name, weights_only=True))
    return net


COMMON = ("mine_to_revive:model", "--data", "mine_to_revive:data", "--weights", "old.pt")


def test_the_new_checkpoint_computes_the_same_and_its_units_fire(run):
    code, said = run(*COMMON, "--out", "new/net.pt", "--json")
    assert code == 0, said.err
    revival = json.loads(said.out)["revival"]
    assert [(a["site"], a["unit"]) for a in revival["acts"]] == [("1", 1), ("1", 4)]
    net, x = loaded(run, "new/net.pt"), torch.randn(512, 6)
    assert torch.equal(net(x), run.net(x))
    assert bool((net[0](x)[:, [1, 4]] > 0).any(0).all())


def test_other_methods_and_patterns(run):
    code, said = run(*COMMON, "--out", "new.pt", "--method", "recentre", "--share", "0.25", "--json")
    assert code == 0, said.err
    acts = json.loads(said.out)["revival"]["acts"]
    assert [a["after"]["firing_rate"] for a in acts] == pytest.approx([0.25, 0.25], abs=0.01)
    code, said = run(*COMMON, "--out", "new.pt", "--exclude", "1")
    assert code == 0
    assert "no unit to revive" in said.out


def test_what_cannot_be_kept_is_an_error_and_writes_nothing(run):
    code, said = run("mine_to_revive:stream", "--data", "mine_to_revive:data", "--out", "new.pt")
    assert code == 2
    assert "'b' reads them mixed" in said.err
    assert not (run.folder / "new.pt").exists()
    code, said = run("mine_to_revive:stream", "--data", "mine_to_revive:data", "--out", "new.pt", "--no-preserve")
    assert code == 0
    assert "not kept" in said.out


def test_a_share_without_recentre_is_refused(run):
    code, said = run(*COMMON, "--out", "new.pt", "--share", "0.5")
    assert code == 2
    assert "--share goes with --method recentre" in said.err
