"""`relume census MODULE:MODEL --data MODULE:LOADER`: finds, loads, counts, and fails as it is told to."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import relume
from relume import cli

NET = '''
"""A net with 3 of 8 units dead in the first site, none of 4 in the second."""
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        with torch.no_grad():
            self.body[0].bias[:3] = -1000.0
            self.body[2].bias[:] = 1000.0

    def forward(self, x):
        return self.body(x)


def make():
    print("making a model")
    return Net()


model = Net()
silent = Net()
with torch.no_grad():
    silent.body[0].bias[:] = -1000.0
nan = Net()
with torch.no_grad():
    nan.body[0].weight[5] = float("nan")


class models:
    small = model


tensor = torch.randn(512, 4)
loader = DataLoader(TensorDataset(tensor, torch.zeros(512)), batch_size=64)
batches = [tensor[:256], tensor[256:]]
few = [tensor[:10]]
dataset = TensorDataset(tensor)
nothing = []
narrow = torch.randn(512, 3)
number = 3


def generated():
    yield from batches


def made_loader():
    return loader


def broken():
    raise RuntimeError("no such file:\\n  the digits")


def breaks_later():
    yield tensor
    raise OSError("disk unplugged")
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net_of_test.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def invoke(*args):
    """(exit code, stdout, stderr) as the shell sees them; `main` turns errors into lines."""
    runner = CliRunner()
    result = runner.invoke(cli.app, ["census", *map(str, args)])
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        assert isinstance(error, relume.RelumeError | OSError), repr(error)
        return 2, result.stdout, str(error)
    return result.exit_code, result.stdout, result.stderr


def said(*args):
    code, out, err = invoke(*args, "--json")
    assert code in (0, 1), err
    return code, json.loads(out)


@pytest.mark.parametrize("model", ["model", "Net", "make", "models.small"])
@pytest.mark.parametrize("data", ["tensor", "loader", "batches", "generated", "made_loader"])
def test_instances_classes_and_functions_are_found_in_a_module_of_the_working_folder(folder, model, data):
    code, result = said(f"net_of_test:{model}", "--data", f"net_of_test:{data}")
    assert code == 0
    assert result["passed"]
    assert result["census"]["dead"] == 3
    assert result["census"]["units"] == 12
    assert result["census"]["sites"]["body.1"]["inputs"] == 512


def test_a_file_is_named_by_its_path_and_run_once(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "neighbour.py").write_text("runs = []\n")
    (folder / "sub" / "file_of_test.py").write_text(NET + "\nimport neighbour\nneighbour.runs.append(1)\n")
    code, result = said("sub/file_of_test.py:model", "--data", folder / "sub" / "file_of_test.py:loader")
    assert (code, result["census"]["dead"]) == (0, 3)
    assert sys.modules["neighbour"].runs == [1]


def test_a_file_may_be_called_as_a_library_is(folder):
    (folder / "random.py").write_text(NET)
    assert said("random.py:model", "--data", "random.py:tensor")[1]["census"]["dead"] == 3
    import random

    assert random.random() < 1


def test_the_census_is_that_of_the_library(folder):
    _, result = said("net_of_test:model", "--data", "net_of_test:loader", "--min-inputs", 100)
    module = sys.modules["net_of_test"]
    assert result["census"] == relume.census(module.model, module.loader, min_inputs=100).to_dict()


def test_options_reach_the_census(folder):
    base = ("net_of_test:model", "--data", "net_of_test:loader")
    assert list(said(*base, "--include", "body.3")[1]["census"]["sites"]) == ["body.3"]
    assert list(said(*base, "--exclude", "body.3")[1]["census"]["sites"]) == ["body.1"]
    assert said(*base, "--max-batches", 3, "--min-inputs", 10)[1]["census"]["sites"]["body.1"]["inputs"] == 192
    assert said(*base, "--phase", "train")[1]["census"]["phase"] == "train"
    assert said(*base, "--min-inputs", 1000)[1]["census"]["unknown"] == 3
    for axis in ("-1", "body.*=1"):
        assert said(*base, "--axis", axis)[1]["census"]["units"] == 12
    assert "axis=0 was given" in invoke(*base, "--axis", "0")[2]


def test_what_is_drawn_at_random_is_the_same_each_time(folder):
    def anew(*args):
        sys.modules.pop("net_of_test", None)
        return invoke("net_of_test.py:Net", "--data", "net_of_test.py:tensor", "--json", *args)

    first = anew()
    assert anew() == first
    assert anew("--seed", 1) != first


# Limits and exit codes. 3 of 12 units dead, 3 of 8 in body.1.


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        (("--fail-over", 0.25), 0),
        (("--fail-over", 0.2499), 1),
        (("--fail-over", 0), 1),
        (("--fail-over", 1), 0),
        (("--fail-over-site", 0.375), 0),
        (("--fail-over-site", 0.374), 1),
        (("--fail-on-unknown",), 0),
        ((), 0),
    ],
)
def test_the_check_fails_when_the_dead_are_more_than_the_limit(folder, limit, code):
    found, result = said("net_of_test:model", "--data", "net_of_test:tensor", *limit)
    assert found == code
    assert result["passed"] == (code == 0)
    assert len(result["failures"]) == code


def test_a_failure_is_said_with_its_numbers_below_the_table(folder):
    code, out, _ = invoke("net_of_test:model", "--data", "net_of_test:tensor", "--fail-over", 0.05)
    assert code == 1
    assert "3 of 12 units dead" in out.splitlines()[0]
    assert out.splitlines()[-1] == "failed: 3 of 12 units are dead: 25 %, limit 5.0 %"


def test_a_model_that_can_not_be_judged_does_not_pass(folder):
    base = ("net_of_test:model", "--data", "net_of_test:few")
    assert said(*base)[0] == 0, "without a limit there is nothing to fail"
    code, result = said(*base, "--fail-on-unknown")
    assert code == 1
    assert result["failures"] == ["body.1: 3 of 8 units could not be judged: 10 inputs seen, 256 needed"]
    (folder / "all_silent.py").write_text(NET.replace("bias[:] = 1000.0", "bias[:] = -1000.0"))
    code, result = said("all_silent:silent", "--data", "all_silent:few", "--fail-over", 0.5)
    assert code == 1
    assert result["failures"] == ["no unit could be judged: 10 inputs seen, 256 needed"]


def test_a_diverged_model_does_not_pass_for_having_no_dead_units(folder):
    base = ("net_of_test:nan", "--data", "net_of_test:tensor")
    assert said(*base)[0] == 0
    code, result = said(*base, "--fail-over", 1)
    assert code == 1
    assert result["failures"] == [
        "NaN or infinite pre-activations, so the model has diverged: units 1 in body.1, 4 in body.3"
    ]


# Weights


@pytest.fixture
def weights(folder):
    """Weights of `Net` with 5 of 8 units dead."""
    module = {}
    exec(NET, module)
    net = module["Net"]()
    with torch.no_grad():
        net.body[0].bias[:5] = -1000.0
    return net.state_dict()


def dead_with(path):
    return said("net_of_test:Net", "--data", "net_of_test:tensor", "--weights", path)[1]["census"]["dead"]


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
    lambda s: {"model_state_dict": s},
    lambda s: {"module." + k: v for k, v in s.items()},
    lambda s: {"_orig_mod." + k: v for k, v in s.items()},
    lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}},
])  # fmt: skip
def test_weights_are_loaded_from_a_state_dict_or_a_checkpoint_that_holds_one(folder, weights, wrap):
    torch.save(wrap(weights), "w.pt")
    assert dead_with("w.pt") == 5


def test_weights_are_loaded_from_safetensors(folder, weights):
    pytest.importorskip("safetensors.torch").save_file(weights, "w.safetensors")
    assert dead_with("w.safetensors") == 5


def error_with(path):
    code, out, err = invoke("net_of_test:Net", "--data", "net_of_test:tensor", "--weights", path)
    assert (code, out) == (2, "")
    assert "\n" not in err
    assert str(path) in err
    return err


def test_safetensors_that_is_not_installed_names_the_extra(folder, weights, monkeypatch):
    (folder / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install 'relume[safetensors]'" in error_with("w.safetensors")


def test_weights_of_another_model_are_refused_with_the_keys_that_differ(folder, weights):
    weights["head.weight"] = weights.pop("body.2.weight")
    weights["body.0.bias"] = torch.zeros(9)
    torch.save(weights, "w.pt")
    assert error_with("w.pt") == (
        "w.pt does not fit Net: missing: body.2.weight; unexpected: head.weight; "
        "of another shape: body.0.bias is (9,) instead of (8,)"
    )


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def bare_pickle(value, path):
    with open(path, "wb") as file:
        pickle.dump(value, file, 2)


@pytest.mark.parametrize("save", [torch.save, bare_pickle])
@pytest.mark.parametrize("content", [Payload(), {"state_dict": Payload()}, {"body.0.bias": Payload()}])
def test_code_in_a_file_of_weights_is_not_run(folder, save, content):
    save(content, "w.pt")
    assert "runs no code from a file" in error_with("w.pt")
    assert not (folder / "executed").exists()
    with open("w.pt", "rb") as file:
        pickle_is_live = b"touch executed" in file.read()
    assert pickle_is_live


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 torn", b"\x80\x02}q\x00"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_damaged_file_of_weights_is_refused(folder, content, name):
    (folder / name).write_bytes(content)
    error_with(name)


def test_a_checkpoint_without_weights_is_refused_with_its_keys(folder):
    torch.save({"epoch": 3, "network": {"a": torch.zeros(2)}}, "w.pt")
    assert "its keys: epoch, network" in error_with("w.pt")
    torch.save([torch.zeros(2)], "w.pt")
    assert "holds a list" in error_with("w.pt")
    assert "there is no file" in error_with("absent.pt")


# Wrong input


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("net_of_test", "net_of_test:tensor", "MODULE:NAME"),
        (":model", "net_of_test:tensor", "MODULE:NAME"),
        ("net_of_test:modell", "net_of_test:tensor", "did you mean model"),
        ("net_of_test:models.large", "net_of_test:tensor", "no 'models.large'"),
        ("net_of_test:number", "net_of_test:tensor", "is a int, not a torch.nn.Module"),
        ("net_of_test:made_loader", "net_of_test:tensor", "returned a DataLoader, not a torch.nn.Module"),
        ("net_of_test:broken", "net_of_test:tensor", "raised RuntimeError: no such file: the digits (*net_of_test.py:"),
        ("absent_module:model", "net_of_test:tensor", "importing absent_module raised ModuleNotFoundError"),
        ("absent.py:model", "net_of_test:tensor", "there is no file absent.py"),
        ("torn.py:model", "net_of_test:tensor", "importing torn.py raised SyntaxError"),
        ("exits.py:model", "net_of_test:tensor", "importing exits.py raised SystemExit: 3"),
        ("net_of_test:model", "net_of_test:dataset", "wrap it in torch.utils.data.DataLoader"),
        ("net_of_test:model", "net_of_test:number", "gives a int"),
        ("net_of_test:model", "net_of_test:broken", "calling net_of_test:broken() for the data raised RuntimeError"),
        ("net_of_test:model", "net_of_test:breaks_later", "reading a batch of net_of_test:breaks_later raised OSError"),
        ("net_of_test:model", "net_of_test:nothing", "nothing to count"),
        ("net_of_test:model", "net_of_test:narrow", "running net_of_test:model on net_of_test:narrow raised"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_that_says_what_and_exit_code_2(folder, model, data, says):
    (folder / "torn.py").write_text("def model(:\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    code, out, err = invoke(model, "--data", data)
    assert (code, out) == (2, "")
    assert "\n" not in err
    for part in says.split("*"):
        assert part in err


@pytest.mark.parametrize(
    "args",
    [
        ("--fail-over", "5"),
        ("--fail-over", "-0.1"),
        ("--max-batches", "0"),
        ("--min-inputs", "0"),
        ("--phase", "test"),
        ("--axis", "last"),
        ("--axis", "1", "--axis", "2"),
        ("--axis", "=1"),
    ],
)
def test_bad_usage_is_exit_code_2(folder, args):
    code, out, err = invoke("net_of_test:model", "--data", "net_of_test:tensor", *args)
    assert code == 2
    assert err
    assert not out


def test_a_file_that_can_not_be_written_is_exit_code_2(folder):
    (folder / "file").write_text("")
    for option in ("--sarif", "--summary"):
        code, _, err = invoke("net_of_test:model", "--data", "net_of_test:tensor", option, "file/out")
        assert code == 2
        assert "file" in err


# As a command


def shell(*args, **env):
    command = [sys.executable, "-m", "relume", "census", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **env})


def test_as_a_command_it_prints_json_alone_on_stdout_and_exits_with_1(folder):
    done = shell("net_of_test:make", "--data", "net_of_test:loader", "--fail-over", 0.05, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["census"]["dead"] == 3
    assert done.stderr == "making a model\n"


def test_as_a_command_an_error_is_one_line_on_stderr_and_exit_code_2(folder):
    done = shell("net_of_test:broken", "--data", "net_of_test:loader")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("relume: calling net_of_test:broken() for the model raised RuntimeError")
    assert done.stderr.count("\n") == 1


def test_a_model_on_real_digits_by_a_loader_of_its_own(folder):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        net[0].weight[7] = -net[0].weight[7].abs()
        net[0].bias[7] = -0.1
    torch.save(net.state_dict(), "w.pt")
    (folder / "digits_of_test.py").write_text(
        "import torch\nfrom sklearn.datasets import load_digits\nfrom torch import nn\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "d = load_digits()\n"
        "x = torch.tensor(d.data / 16.0, dtype=torch.float32)\n"
        "data = DataLoader(TensorDataset(x, torch.tensor(d.target)), 100)\n"
    )
    _, result = said("digits_of_test:net", "--data", "digits_of_test:data", "--weights", "w.pt")
    fires = (net[0](x) > 0).any(0)
    assert result["census"]["sites"]["1"]["state"] == ["alive" if f else "dead" for f in fires.tolist()]
    loader = DataLoader(TensorDataset(x), 100)
    assert result["census"]["dead"] == relume.census(net, loader).dead >= 1
