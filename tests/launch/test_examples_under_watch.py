"""Real scripts, which know nothing of relume, under `relume run`: what they print and train is what it is without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import relume

SCRIPTS = Path(__file__).parent.parent.parent / "examples" / "scripts"
INTERMEDIATE = "bert.encoder.layer.{}.intermediate.intermediate_act_fn"

# By script: of each model that it trains the optimizer, its steps, and the sites with their units and the inputs seen
# at every second step.
EXPECTED = {
    "plain_training": {"model": ("SGD", 171, {"1": (128, 2698), "4": (32, 2698)})},
    "lightning_digits": {"lit": ("Adam", 141, {"features.2": (8, 2264), "head.2": (48, 2264)})},
    "hf_bert": {
        "model": (
            "AdamW",
            60,
            {
                INTERMEDIATE.format(0): (96, 480),
                INTERMEDIATE.format(1): (96, 480),
                "cls.predictions.transform.transform_act_fn": (48, 480),
            },
        )
    },
    "hf_opt": {
        "opt": (
            "AdamW",
            40,
            {"model.decoder.layers.0.activation_fn": (96, 320), "model.decoder.layers.1.activation_fn": (96, 320)},
        )
    },
    "accelerate_loop": {"regressor": ("AdamW", 84, {":relu": (64, 1344), ":relu#1": (64, 1344)})},
    "skorch_digits": {"Classifier": ("SGD", 180, {"layers.1": (64, 2874), "layers.4": (64, 2874)})},
    "sb3_cartpole": {
        "mlp_extractor": (
            "Adam",
            64,
            {f"{net}_net.{i}": (32, 2048) for net in ("policy", "value") for i in (1, 3)},
        )
    },
    "gan": {
        "critic": ("Adam", 116, {"1": (64, 8980), "3": (32, 8980)}),
        "generator": ("Adam", 56, {"2": (64, 5396), "4": (64, 5396)}),
    },
    "sparse_autoencoder": {"encoder": ("Adam", 232, {"1": (256, 7188)})},
    "keras_digits": {"model": ("Adam", 135, {":relu": (8, 2170), ":relu#1": (48, 2170)})},
    "-m training": {"classifier": ("Adam", 200, {"1": (16, 5000), "3": (16, 5000)})},
}


def start(command: list[str], tmp_path: Path, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def comparable(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if "runtime" not in line]  # Hugging Face prints how long it took


def equal(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else all(map(equal, a, b))


def test_every_script_is_run_here() -> None:
    found = {p.stem for p in SCRIPTS.glob("*.py")} - {"words"}
    assert found | {"-m training"} == EXPECTED.keys()
    for name in found:
        assert "import relume" not in (SCRIPTS / f"{name}.py").read_text()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_trains_as_without_relume_and_all_its_models_are_found(name: str, tmp_path: Path) -> None:
    folder = SCRIPTS / "project" if name.startswith("-m") else tmp_path
    command = name.split() if name.startswith("-m") else [str(SCRIPTS / f"{name}.py")]
    files = [tmp_path / "bare.pt", tmp_path / "watched.pt"]
    out = tmp_path / "out"
    under_watch = [sys.executable, "-m", "relume", "run", "--every", "2", "--window", "20", "--out", str(out)]
    bare = start([sys.executable, *command, str(files[0])], tmp_path, folder)
    watched = start([*under_watch, *command, str(files[1])], tmp_path, folder)
    (bare_out, bare_err), (watched_out, watched_err) = bare.communicate(timeout=120), watched.communicate(timeout=120)

    assert (bare.returncode, watched.returncode) == (0, 0), bare_err + watched_err
    assert comparable(watched_out) == comparable(bare_out) != []
    assert equal(*(torch.load(f, weights_only=True) for f in files))

    told = [line for line in watched_err.splitlines() if line.startswith("relume: ")]
    assert told[-1].startswith("relume: report: ")
    assert [line.split()[1] for line in told[:-1]] == list(EXPECTED[name])
    assert "failed while" not in watched_err
    assert "not counted" not in watched_err
    assert (out / "report.html").stat().st_size > 10_000
    assert {p.name for p in out.iterdir()} == {"report.html", *EXPECTED[name]}
    for model, (optimizer, steps, sites) in EXPECTED[name].items():
        run = relume.load(out / model)
        census = run.census("all")
        assert (run.status, run.about["steps"], run.about["optimizer"]) == ("finished", steps, optimizer)
        assert {s.name: (s.units, s.inputs) for s in census.sites} == sites
        assert run.windows[0].first_step == 0
        # A generator is called once more after its last step.
        assert sum(w.observed for w in run.windows) in (-(-steps // 2), steps // 2 + 1)
