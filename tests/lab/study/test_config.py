"""A wrong config gets an error that names the file, the line and what is accepted."""

import pytest

from relume.lab import tasks
from relume.lab.study import ConfigError, Study
from relume.lab.study.config import read, restored
from relume.lab.study.settings import Choices, Range

GOOD = """\
name = "good"  # a comment
sampler = "random"
trials = 5
each = ["task", "activation"]

[settings]
task = "spirals"
activation = [
    "relu",
    "drelu",
]
lr = { low = 0.001, high = 1 }
depth = { low = 1, high = 4 }
seed = [0, 1]
"""


def written(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def error(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path, text))
    return str(caught.value)


def test_a_config_is_read(tmp_path):
    config = read(written(tmp_path, GOOD))
    assert (config.name, config.sampler, config.trials, config.each) == ("good", "random", 5, ("task", "activation"))
    assert config.settings["activation"] == Choices(("relu", "drelu"))
    assert config.settings["lr"] == Range(0.001, 1.0, log=True, whole=False)
    assert config.settings["depth"] == Range(1, 4, log=False, whole=True)
    assert set(config.sampled()) == {"lr", "depth"}
    assert config.varied() == ("activation", "lr", "depth")
    assert restored(config.text) == config


WRONG = {  # what stands for which line of GOOD, and what is said, at which line
    "an unknown key": ("trials = 5", "trails = 5", 3, "no 'trails'; close to it: trials; there are: name, sampler"),
    "a setting among the keys": ("trials = 5", "lr = 5", 3, "'lr' stands under [settings]"),
    "an unknown setting": ("depth = {", "dpeth = {", 13, "no setting 'dpeth'; close to it: depth; there are: task"),
    "a key among the settings": ("seed = [0, 1]", "trials = 3", 14, "'trials' stands above [settings]"),
    "a sampler": ('"random"', '"randon"', 2, "one of grid, random, optuna, not 'randon'; close to it: random"),
    "an activation in a list": ('    "drelu"', '    "dreluu"', 10, "'dreluu'; close to it: drelu"),
    "a parameter of one": ('    "drelu"', '    "elu(x=1)"', 10, "its parameters: alpha=1.0"),
    "a task": ('"spirals"', '"spiral"', 7, "close to it: spirals"),
    "a number as text": ("low = 0.001", 'low = "0.001"', 12, "lr is a number, not '0.001'"),
    "a truth as number": ("lr = {", "batch = true\nlr = {", 12, "batch is a whole number, not True"),
    "half a layer": ("depth = {", "width = [8, 8.5]\ndepth = {", 13, "width is a whole number, not 8.5"),
    "a norm that is not": ("depth = {", 'norm = ["group"]\ndepth = {', 13, "norm is one of none, batch, layer"),
    "below zero": ("low = 0.001", "low = -1", 12, "lr is a number not below 0"),
    "the logarithm of zero": ("low = 0.001", "low = 0", 12, "a low above 0, or log = false"),
    "a range upside down": ("high = 4", "high = 0", 13, "depth is a whole number not below 1"),
    "low above high": ("low = 1, high = 4", "low = 5, high = 4", 13, "low is at most high; depth has 5 and 4"),
    "half a range": ("low = 1, high = 4", "low = 1", 13, "low and high, as in depth = { low = 1, high = 8 }"),
    "a range of words": ('task = "spirals"', "task = { low = 1, high = 2 }", 7, "one of digits"),
    "an empty list": ("seed = [0, 1]", "seed = []", 14, "at least one value"),
    "no trials": ("trials = 5", "trials = 0", 3, "trials is a whole number not below 1, not 0"),
    "judging by the test score": ("trials = 5", 'objective = "test"', 3, "validation, best-validation: what is chosen"),
    "each of what is not": ('"activation"]', '"aktivation"]', 4, "'aktivation'; close to it: activation"),
    "each of seeds": ('"activation"]', '"seed"]', 4, "no setting 'seed'"),
    "a window too short": ("seed = [0, 1]", "window = 5", 14, "a window of 5 steps has none to look at with every"),
    "a bad name": ('"good"', '"../good"', 1, "for a folder"),
    "no TOML": ("trials = 5", "trials = ", 3, "no TOML: Invalid value"),
    "the same key twice": ("seed = [0, 1]", "depth = 3", 14, "no TOML: Cannot overwrite"),
    "an end too soon": ("seed = [0, 1]", "seed = [0, 1", 14, "no TOML"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_file_line_and_what_is_accepted(case, tmp_path):
    old, new, line, said = WRONG[case]
    assert GOOD.count(old) == 1
    told = error(tmp_path, GOOD.replace(old, new))
    assert told.startswith(f"{tmp_path / 'study.toml'}, line {line}")
    assert said in told


def test_what_is_accepted_of_a_task_is_all_tasks(tmp_path):
    told = error(tmp_path, GOOD.replace('"spirals"', "3"))
    assert all(name in told for name in tasks.names())
    assert "no setting" not in told
    assert "settings need a task" in error(tmp_path, GOOD.replace('task = "spirals"', ""))


def test_what_a_grid_can_not_do_is_said(tmp_path):
    grid = GOOD.replace('"random"', '"grid"')
    assert "line 3: trials is for" in error(tmp_path, grid.replace('each = ["task", "activation"]', ""))
    assert "line 4: each is for" in error(tmp_path, grid.replace("trials = 5", ""))
    told = error(tmp_path, grid.replace("trials = 5", "").replace('each = ["task", "activation"]', ""))
    assert "line 12: lr: a grid needs a list here, or points = N" in told
    many = "\n".join(f"{name} = {{ low = 1, high = 999 }}" for name in ("width", "batch", "steps"))
    assert "997,002,999 runs" in error(tmp_path, f'name = "many"\n[settings]\ntask = "spirals"\n{many}\n')


def test_a_sampler_with_nothing_to_choose_is_refused(tmp_path):
    text = 'name = "x"\nsampler = "random"\n[settings]\ntask = "spirals"\nseed = [0, 1]\n'
    assert "line 2: there is nothing for the sampler random to choose" in error(tmp_path, text)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"can't read .*nothing.toml: No such file"):
        Study(tmp_path / "nothing.toml", out=tmp_path)


def test_a_dict_is_taken_too_and_its_errors_name_the_setting():
    with pytest.raises(ConfigError, match="the config: lr is a number not below 0"):
        read({"name": "x", "settings": {"task": "sine", "lr": [0.1, -1]}})
    config = read({"name": "x", "settings": {"task": "sine", "lr": (0.1, 1)}})
    assert restored(config.text) == config
