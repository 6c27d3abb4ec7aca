"""What `import relume` gives, and what it costs."""

import inspect
import subprocess
import sys

import pytest

import relume

NAMES = {
    "watch", "census", "load", "register_activation", "backend",
    "convert", "Conversion",
    "revive", "Revival",
    "guard", "Guard", "Policy",
    "certify", "Certificate",
    "compact", "Compaction", "rebuild",
    "Watch", "Run", "Census", "SiteCensus", "Timeline", "Site",
    "diagnose", "Finding", "Confirmation", "Remedy",
    "RelumeError", "RelumeWarning",
}  # fmt: skip
FUNCTIONS = sorted(n for n in NAMES if inspect.isfunction(getattr(relume, n)))


def test_relume_exports_exactly_the_documented_names() -> None:
    public = {n for n in dir(relume) if not n.startswith("_") and not inspect.ismodule(getattr(relume, n))}
    assert public - {"Any", "TYPE_CHECKING"} == NAMES
    assert set(relume.__all__) == {"__version__", *NAMES}
    assert relume.__version__.count(".") >= 1


def test_the_verbs_are_functions_though_folders_have_their_names() -> None:
    # Importing from the folders must not put them in the functions' place.
    import relume.census.counts
    import relume.diagnose.causes
    import relume.watch.store

    assert inspect.isfunction(relume.census)
    assert inspect.isfunction(relume.watch)
    assert inspect.isfunction(relume.diagnose)


def test_torch_is_imported_with_the_first_name_that_is_used() -> None:
    code = (
        "import sys, relume, relume.cli; print('torch' in sys.modules); relume.watch; print('torch' in sys.modules);"
        "from relume import *; print(callable(census), relume.census is census)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "True"]


def test_importing_gives_no_warning_and_leaves_what_is_optional_alone() -> None:
    """Data frames, the demo's data, the report and the browser are loaded when asked for."""
    optional = ("pandas", "sklearn", "jinja2", "playwright", "typer")
    code = f"import sys, relume; print([m for m in {optional!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_explained(name: str) -> None:
    first = (getattr(relume, name).__doc__ or "").strip().partition("\n")[0]
    assert first.endswith((".", ":", ";", ",")) or len(first) > 40, first


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(relume, name)
    doc = function.__doc__
    assert all(part in doc for part in ("Args:", "Returns:", "Raises:"))
    about = doc.partition("Args:")[2].partition("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert parameter in about, parameter


def methods() -> list[tuple[str, str]]:
    found = []
    for kind in (relume.Census, relume.SiteCensus, relume.Timeline):
        for name, method in vars(kind).items():
            if (
                not name.startswith("_")
                and inspect.isfunction(method)
                and len(inspect.signature(method).parameters) > 1
            ):
                found.append((kind.__name__, name))
    return found


@pytest.mark.parametrize(("kind", "name"), methods())
def test_a_method_of_a_result_says_what_it_takes(kind: str, name: str) -> None:
    method = getattr(getattr(relume, kind), name)
    about = (method.__doc__ or "").partition("Args:")[2]
    for parameter in list(inspect.signature(method).parameters)[1:]:
        assert f"{parameter}:" in about, parameter


@pytest.mark.parametrize("kind", ["Census", "SiteCensus", "Timeline", "Site", "Finding", "Confirmation"])
def test_every_field_of_a_result_is_named_in_its_docstring(kind: str) -> None:
    cls = getattr(relume, kind)
    about = cls.__doc__.partition("Args:" if kind == "Timeline" else "Attributes:")[2]
    for name in vars(relume.Timeline("site", 2)) if kind == "Timeline" else cls.__dataclass_fields__:
        assert name.startswith("_") or name in about, name


def test_every_error_is_one_of_relumes() -> None:
    from relume import errors

    raised = [v for v in vars(errors).values() if inspect.isclass(v) and v.__module__ == errors.__name__]
    assert all(issubclass(v, relume.RelumeError | relume.RelumeWarning) for v in raised)
    assert issubclass(relume.RelumeWarning, UserWarning)
    assert issubclass(errors.MissingExtraError, ImportError)
