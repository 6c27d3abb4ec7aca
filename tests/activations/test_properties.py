"""What is found of each activation, and where it is shown: `relume activations`, its plot, docs/activations.md."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import relume
from relume import cli
from relume.activations import Activation, activation, all_activations
from relume.activations.plot import svg
from relume.activations.properties import adaptation, properties, scale_after

ROOT = Path(__file__).parents[2]

# Gradient, monotone, infimum, jump of f' at 0.
KNOWN = {
    "identity": ("positive", True, -math.inf, 0.0),
    "relu": ("flat", True, 0.0, 1.0),
    "leaky_relu(0.2)": ("positive", True, -math.inf, 0.8),
    "prelu": ("positive", True, -math.inf, 0.75),
    "elu": ("vanishes", True, -1.0, 0.0),
    "elu(2)": ("vanishes", True, -2.0, 1.0),
    "celu(2)": ("vanishes", True, -2.0, 0.0),
    "selu": ("vanishes", True, -1.7580993408473766, 0.7073981776819709),
    "gelu": ("turns", False, -0.16997, 0.0),
    "softplus": ("vanishes", True, 0.0, 0.0),
    "tanh": ("vanishes", True, -1.0, 0.0),
    "softsign": ("vanishes", True, -1.0, 0.0),
    "tanhshrink": ("turns", True, -math.inf, 0.0),
    "hardswish": ("flat", False, -0.375, 0.0),
    "displaced_relu": ("flat", True, -0.05, 0.0),
    "dynamic_relu": ("varies", True, 0.0, 1.0),
    "drelu": ("positive", True, -math.inf, 0.0),
    "drelu(alpha=0.3, tau=5)": ("positive", True, -math.inf, 0.0),
    "drelu_exponential": ("positive", True, -math.inf, 0.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_properties_are_those_that_follow_by_hand(name: str) -> None:
    found = properties(activation(name))
    gradient, monotone, least, jump = KNOWN[name]
    assert (found.gradient, found.monotone) == (gradient, monotone)
    assert found.least == pytest.approx(least, abs=1e-4)
    assert found.jump_at_zero == pytest.approx(jump, abs=1e-5)


def test_the_least_slope_of_what_never_dies_is_its_floor() -> None:
    assert properties(activation("leaky_relu(0.2)")).least_slope == pytest.approx(0.2)
    assert properties(activation("drelu(alpha=0.3)")).least_slope == pytest.approx(0.3, abs=1e-9)
    assert properties(activation("elu")).least_slope == 0
    assert properties(activation("gelu")).turn == pytest.approx(-0.7517915, abs=1e-6)


def test_kinks_off_zero_are_found() -> None:
    assert properties(activation("hardtanh(-2, 3)")).kinks == pytest.approx((-2, 3), abs=1e-6)
    assert properties(activation("displaced_relu(0.3)")).kinks == pytest.approx((-0.3,))
    assert properties(activation("tanh")).kinks == ()


def test_adaptation_is_found_by_trying() -> None:
    torch.manual_seed(0)
    assert adaptation(nn.ReLU()) == "no"
    assert adaptation(nn.RReLU()) == "no"
    assert adaptation(nn.PReLU()) == "learns"
    assert adaptation(relume.nn.DReLU()) == "follows"
    assert adaptation(relume.nn.DReLU(tau=1.0)) == "no"
    assert adaptation(relume.nn.DynamicReLU(16, reduction=1), 16) == "by input"
    state = torch.random.get_rng_state()
    adaptation(nn.RReLU())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("name", "gain"), [("tanh", 5 / 3), ("selu", 0.75), ("tanh", 1.0), ("relu", 1.3)])
def test_where_a_gain_leads_is_what_a_wide_network_does(name: str, gain: float) -> None:
    entry = activation(name)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(256, 1024, generator=generator)
    for _ in range(6):
        z = entry.function(z) @ (torch.randn(1024, 1024, generator=generator) * gain / 32)
    assert scale_after(entry, gain, 6) == pytest.approx(float(z.square().mean().sqrt()), rel=0.08)


def test_with_its_own_gain_the_scale_stays() -> None:
    for name in ("relu", "tanh", "selu", "gelu", "drelu"):
        assert scale_after(activation(name), activation(name).gain) == pytest.approx(1, abs=1e-6)


# The command


def invoke(*args):
    return CliRunner().invoke(cli.app, ["activations", *map(str, args)], env={"COLUMNS": "140"})


def test_the_table_has_a_row_for_each_activation_with_its_gains() -> None:
    result = invoke()
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.output.splitlines() if line and not line[0].isspace()}
    assert set(rows) - {"name"} == {a.name for a in all_activations()}
    assert re.search(r"max\(0, x\)\s+x ≤ 0\s+1\.414\s+1\.414\s+0\.3989", rows["relu"])


def test_a_named_activation_is_shown_in_full() -> None:
    output = " ".join(invoke("tanh", "LeakyReLU(0.2)", "dual_relu").output.split())
    assert "gain 1.593 (torch's convention is 1.667)" in output
    assert "gain 1.387 (torch's too)" in output
    assert "never zero: |f′| ≥ 0.2" in output
    assert "of both, independent" in output


def test_json_gives_the_same_numbers_in_full_and_infinities_as_text() -> None:
    (relu,) = json.loads(invoke("relu", "--json").output)
    assert relu["gain"] == activation("relu").gain
    assert relu["zones"]["flat"] == [["-inf", 0.0]]
    (leaky,) = json.loads(invoke("leaky_relu", "--json").output)
    assert leaky["least"] == "-inf"
    assert len(json.loads(invoke("--json").output)) == len(list(all_activations()))


@pytest.mark.parametrize("name", ["leakyrelo", "leaky_relu(1, 2)", "threshold"])
def test_what_it_does_not_know_is_exit_code_2(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "relume", "activations", name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    if name == "leakyrelo":
        assert done.stderr == "relume: no activation is called 'leakyrelo'; close to it: leaky_relu\n"


def test_the_plot_is_one_file_with_a_panel_for_each(tmp_path) -> None:
    path = tmp_path / "plots" / "some.svg"
    result = invoke("relu", "gelu", "--plot", path)
    assert result.exit_code == 0
    assert "some.svg" in result.output
    titles = [t.text for t in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}title")]
    assert titles[0] == "Activation functions: relu, gelu"
    assert titles[1] == "relu: max(0, x), flat for x ≤ 0"
    assert titles[2].endswith("nowhere flat")


# The drawing


def panel(entry: Activation) -> ElementTree.Element:
    return next(ElementTree.fromstring(svg([entry])).iter("{http://www.w3.org/2000/svg}g"))


def curve(entry: Activation, kind: str) -> list[list[tuple[float, float]]]:
    """The pieces of a curve, in the units of the drawing's axes, read off the SVG with the ticks as a ruler."""
    root = panel(entry)
    ns = "{http://www.w3.org/2000/svg}"
    texts = list(root.iter(f"{ns}text"))
    xs = {float(t.text.replace("−", "-")): float(t.get("x")) for t in texts if t.get("class") == "x"}
    ys = {float(t.text.replace("−", "-")): float(t.get("y")) - 4 for t in texts if t.get("class") == "y"}
    kx, ky = (xs[2] - xs[0]) / 2, ys[1] - ys[0]
    (path,) = [p for p in root.iter(f"{ns}path") if p.get("class") == kind]
    pieces = [p.split("L") for p in path.get("d").split("M")[1:]]
    return [
        [((float(p.split()[0]) - xs[0]) / kx, (float(p.split()[1]) - ys[0]) / ky) for p in piece] for piece in pieces
    ]


@pytest.mark.parametrize("name", ["relu", "gelu", "drelu", "hardshrink", "leaky_relu(0.3)"])
def test_the_curves_are_the_function_and_its_derivative(name: str) -> None:
    entry = activation(name)
    for kind, function in (("f", entry.function), ("d", entry.derivative)):
        for piece in curve(entry, kind):
            for x, y in piece[1:-1]:
                assert y == pytest.approx(float(function(torch.tensor([x], dtype=torch.float64))[0]), abs=0.02)


def test_a_jump_is_a_gap_not_a_slope() -> None:
    assert len(curve(activation("hardshrink"), "f")) == 3
    assert len(curve(activation("relu"), "d")) == 2
    assert len(curve(activation("relu"), "f")) == 1
    assert len(curve(activation("gelu"), "d")) == 1


def test_the_flat_zone_is_shaded_from_its_edge() -> None:
    shaded = [
        r for r in panel(activation("relu6")).iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == "flat"
    ]
    assert len(shaded) == 1  # from 6 on lies outside the frame
    assert not [r for r in panel(activation("gelu")).iter() if r.get("class") == "flat"]


# The page


def test_the_page_is_what_the_command_prints() -> None:
    spec = importlib.util.spec_from_file_location("activations_page", ROOT / "docs" / "activations.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.page() == (ROOT / "docs" / "activations.md").read_text(encoding="utf-8"), (
        "run: python docs/activations.py"
    )
