"""How the initializers are reached, and that each says what it takes, gives and raises."""

import inspect
import subprocess
import sys

import pytest

import relume

FUNCTIONS = sorted(n for n, f in vars(relume.init).items() if inspect.isfunction(f))


def test_they_are_there_after_import_relume_alone_and_cost_nothing_until_asked_for() -> None:
    code = (
        "import sys, relume; print('torch' in sys.modules); print(callable(relume.init.lsuv_), 'init' in dir(relume))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
    with pytest.raises(AttributeError, match="'relume' has no attribute 'initt'"):
        _ = relume.initt


def test_the_public_names_are_these() -> None:
    assert FUNCTIONS == [
        "alive_", "bias_", "born_dead_probability", "check", "data_dependent_", "glorot_", "he_", "identity_", "lsuv_",
        "orthogonal_", "rai_", "simulate_born_dead", "zero_",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_result_and_error_is_explained(name: str) -> None:
    function = getattr(relume.init, name)
    doc = function.__doc__
    assert all(part in doc for part in ("Args:", "Returns:", "Raises:"))
    about = doc.partition("Args:")[2].partition("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert parameter in about, parameter


@pytest.mark.parametrize("kind", ["BornDead", "Initialization", "Prediction", "SitePrediction"])
def test_every_field_of_a_result_is_explained(kind: str) -> None:
    cls = getattr(relume.init, kind)
    about = cls.__doc__.partition("Attributes:")[2]
    for name in cls.__dataclass_fields__:
        assert name in about, name
