"""A program under `relume run` sees and shows what it does under `python`; relume's verdict is added at the end."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import relume

RELUME = [sys.executable, "-m", "relume", "run"]

# Prints all of its surroundings that it can see; starts a process that imports it anew; ends after its main thread.
PROBE = '''
"""A probe."""
import atexit, json, multiprocessing, os, pickle, sys, threading, time
here: int = 1

class Own:
    pass

def double(x):
    return 2 * x

def last_words():
    time.sleep(0.2)
    print("the thread outlives the main one", flush=True)

if __name__ == "__main__":
    main = sys.modules["__main__"]
    spec = main.__spec__
    print(json.dumps({
        "argv": sys.argv, "path": sys.path[0], "file": __file__, "spec": spec and spec.name, "package": __package__,
        "doc": __doc__, "name": __name__, "cwd": os.getcwd(), "annotations": sorted(__annotations__),
        "own": type(pickle.loads(pickle.dumps(Own()))).__module__, "hook": sys.excepthook is sys.__excepthook__,
        "vars": sorted(k for k in vars(main) if k.startswith("__")),
    }), flush=True)
    if __file__.endswith("probe.py"):  # spawned processes do not import a __main__.py
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map_async(double, [1, 2]).get(20), flush=True)
    threading.Thread(target=last_words).start()
    atexit.register(print, "at exit", flush=True)
'''

TRAINING = """
import sys, torch
from torch import nn
torch.manual_seed(0)
def train(steps, device="cpu"):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(64, 4)).square().mean().backward()
        optimizer.step()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAINING)
    return tmp_path


def run(command: list[str], folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def script(folder: Path, text: str, name: str = "script.py") -> Path:
    (folder / name).write_text(textwrap.dedent(text))
    return folder / name


@pytest.mark.parametrize("how", ["file", "folder", "module", "package"])
def test_a_program_sees_the_surroundings_that_it_has_under_python(how: str, tmp_path: Path) -> None:
    package = tmp_path / "deep" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROBE)
    (package / "probe.py").write_text(PROBE)
    command = {
        "file": ["deep/package/probe.py", "--every", "x", "-m", "--", "y"],
        "folder": ["deep/package", "--window"],
        "module": ["-m", "deep.package.probe", "--json", "-m"],
        "package": ["-m", "deep.package"],
    }[how]
    bare, watched = run([sys.executable, *command], tmp_path), run([*RELUME, *command], tmp_path)
    if how == "folder":  # Python imports the folder's __main__ as a module, relume runs the file
        bare_seen, seen = (json.loads(r.stdout.splitlines()[0]) for r in (bare, watched))
        assert [bare_seen[k] for k in ("argv", "path", "name", "package", "own")] == [
            seen[k] for k in ("argv", "path", "name", "package", "own")
        ]
        return
    assert watched.stdout == bare.stdout
    assert len(bare.stdout.splitlines()) == (3 if how == "package" else 4)
    assert (bare.returncode, watched.returncode) == (0, 0)
    assert watched.stderr == "relume: nothing was watched: the script did not import torch\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


ENDS = {
    "a code": "import sys; sys.exit(3)",
    "a text": "import sys; sys.exit('no more')",
    "an exception": """
        def f(): 1 / 0
        try:
            f()
        except ZeroDivisionError as error:
            raise ValueError("both") from error
        """,
    "its own hook": "import sys\nsys.excepthook = lambda *a: print('caught', a[0].__name__, file=sys.stderr)\n1 / 0",
    "an interrupt": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(9)",
    "no syntax": "def f(:",
    "relume's own error": "import relume\nraise relume.RelumeError('mine')",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_it_does_under_python(end: str, tmp_path: Path) -> None:
    path = script(tmp_path, ENDS[end])
    bare, watched = run([sys.executable, str(path)], tmp_path), run([*RELUME, str(path)], tmp_path)
    assert watched.returncode == bare.returncode
    *own, verdict = watched.stderr.splitlines()
    assert own == bare.stderr.splitlines()
    assert verdict == "relume: nothing was watched: the script did not import torch"


def test_a_run_that_fails_is_kept_and_reported(folder: Path) -> None:
    script(folder, "import train\ntrain.train(12)\nraise KeyError('so it ends')")
    done = run([*RELUME, "--every", "1", "--window", "5", "script.py"], folder)
    assert done.returncode == 1
    (out,) = (folder / "runs").glob("script-*")
    recorded = relume.load(out / "model")
    assert recorded.status == "failed: KeyError"
    assert (recorded.about["steps"], len(recorded.windows)) == (12, 3)
    assert recorded.census(0)["1"].dead.tolist() == [True] * 3 + [False] * 5
    assert f"relume: report: runs/{out.name}/report.html" in done.stderr
    assert "KeyError: 'so it ends'\nrelume: model (Sequential, 12 steps of SGD): 3 of 14 units" in done.stderr


def test_what_is_the_matter_is_named_at_the_end_and_in_json_and_kept_in_the_run_file(folder: Path) -> None:
    script(folder, "import train\ntrain.train(20)")
    options = ["--every", "1", "--window", "10", "script.py"]
    done = run([*RELUME, "--out", "a", *options], folder)
    told = [line for line in done.stderr.splitlines() if line.startswith("  ")]
    assert [line.partition(" were ")[0] for line in told] == ["  warning: 3 of 8 units of '1'"]
    done = run([*RELUME, "--out", "b", "--json", *options], folder)
    (model,) = json.loads(done.stderr.splitlines()[-1])["models"].values()
    kept = relume.load(folder / "b" / "model")
    assert model["findings"] == [finding.to_dict() for finding in kept.diagnose()]
    assert [f["code"] for f in model["findings"] if f["severity"] != "note"] == ["born-dead"]
    record = kept.kept_record()
    assert record is not None
    assert [row.step for row in record.steps.rows][-3:] == [17, 18, 19]
    assert record.steps.settings("0").optimizer == "SGD", "the optimizer that trains it was found, and its steps seen"


def test_a_run_that_is_terminated_dies_of_it_and_keeps_its_windows(folder: Path) -> None:
    script(folder, "import train, time\ntrain.train(20)\nprint('ready', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        [*RELUME, "--every", "1", "--window", "5", "--out", "o", "script.py"], cwd=folder, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    recorded = relume.load(folder / "o" / "model")
    assert recorded.status == "running"
    assert len(recorded.windows) == 4


def test_options_reach_the_watch_and_json_ends_stderr(folder: Path) -> None:
    script(folder, "import sys, train\nprint(sys.argv[1:])\ntrain.train(9)")
    options = ["--every", "2", "--window", "4", "--out", "given/out", "--exclude", "3", "--json"]
    done = run([*RELUME, *options, "script.py", "--every", "7"], folder)
    assert done.stdout == "['--every', '7']\n"
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["report"] == str(folder / "given" / "out" / "report.html")
    assert list(told["models"]) == ["model"]
    assert told["models"]["model"]["verdict"].endswith(
        "3 units that did not fire could not be judged: 128 inputs seen, 256 needed."
    )
    recorded = relume.load(folder / "given" / "out" / "model")
    assert [s.name for s in recorded.sites] == ["1"]
    assert [(w.first_step, w.last_step, w.observed) for w in recorded.windows] == [(0, 3, 2), (4, 7, 2), (8, 8, 1)]

    again = run([*RELUME, "--out", "given/out", "script.py"], folder)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "relume: given/out is there already, and not empty: choose another folder with --out\n"


def test_where_nothing_can_be_written_the_script_and_the_verdict_go_on(folder: Path) -> None:
    script(folder, "import train\ntrain.train(9)\nprint('trained')")
    (folder / "file").touch()
    done = run([*RELUME, "--every", "1", "--out", "file/out", "script.py"], folder)
    assert (done.returncode, done.stdout) == (0, "trained\n")
    kinds = [line.partition(" (")[0].partition(" of ")[0] for line in done.stderr.splitlines()]
    assert kinds == [
        "relume: failed while keeping a run file",
        "relume: failed while writing the report",
        "relume: model",
        "  warning: 3",
    ]
    assert "9 steps of SGD): 3 of 14 units are dead" in done.stderr


def test_only_the_first_of_several_ranks_writes_and_prints(folder: Path) -> None:
    script(folder, "import train\ntrain.train(9)\nprint('trained')")
    done = run([*RELUME, "script.py"], folder, RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")
    assert not (folder / "runs").exists()


def test_the_live_view_is_drawn_on_a_terminals_stderr_alone(folder: Path) -> None:
    script(folder, "import train\ntrain.train(9)")
    command = [*RELUME, "--live", "--every", "1", "--window", "4", "script.py"]
    terminal = run(command, folder, FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert terminal.stdout == ""
    assert "step 4:" in terminal.stderr
    assert "3 of 8 dead" in terminal.stderr
    assert "step 4:" not in run(command, folder).stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "with torch.no_grad(): nn.ReLU()(torch.ones(2))",
            "ReLU ran, but only in evaluation mode or without gradients",
        ),
        (
            "net = nn.Linear(2, 2); net(torch.ones(1, 2)).sum().backward()",
            "net (Linear) ran in training mode, but no optimizer of torch.optim that holds its parameters made a step",
        ),
        (
            "net = nn.Linear(2, 2); net(torch.ones(1, 2)).sum().backward(); torch.optim.SGD(net.parameters()).step()",
            "net (Linear) trained, but applied no activation that relume knows; make your own known with "
            "relume.register_activation",
        ),
    ],
)
def test_a_script_of_which_nothing_was_watched_is_told_why(text: str, why: str, tmp_path: Path) -> None:
    script(tmp_path, f"import torch\nfrom torch import nn\n{text}")
    done = run([*RELUME, "script.py"], tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"relume: nothing was watched: {why}\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["nowhere.py"], "relume: no file nowhere.py; "),
        (["-m", "nowhere.at.all"], "relume: there is no module 'nowhere.at.all' that can be run\n"),
        (["--every", "0", "script.py"], "Invalid value for '--every'"),
        (["--evry", "5", "script.py"], "No such option: --evry"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage_is_said_and_nothing_runs(command: list[str], told: str, tmp_path: Path) -> None:
    script(tmp_path, "print('ran')")
    done = run([*RELUME, *command], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
