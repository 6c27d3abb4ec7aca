"""C++ sources are built once, kept where nobody else can write, and refused with the reason."""

import shutil
import sys
from pathlib import Path

import pytest

from relume.native import BuildError, library

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler here"
)
SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RELUME_KERNELS", raising=False)
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def where(built):
    return Path(built._name)


def test_a_source_is_built_once_and_anew_when_it_changes(source):
    first = library(source)
    assert first.answer() == 42
    made = where(first).stat().st_mtime_ns
    assert where(library(source)).stat().st_mtime_ns == made
    source.write_text(SOURCE.replace("42", "43"))
    second = library(source)
    assert second.answer() == 43
    assert where(second) != where(first)


def test_other_flags_make_another_library(source):
    source.write_text("#ifndef N\n#define N 1\n#endif\n" + SOURCE.replace("42", "N"))
    assert library(source).answer() == 1
    assert library(source, flags=("-shared", "-fPIC", "-DN=2")).answer() == 2


def test_flags_that_the_compiler_does_not_know_are_passed_over(source):
    assert library(source, tuned=(("-march=no-such-machine",), ())).answer() == 42


def test_a_folder_that_others_can_write_to_is_not_trusted(source, tmp_path):
    open_to_all = tmp_path / "cache" / "relume"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    assert open_to_all not in where(library(source)).parents


def test_what_the_compiler_says_is_said(source):
    source.write_text("no such thing;\n")
    with pytest.raises(BuildError, match="error"):
        library(source)


@pytest.mark.parametrize(
    ("name", "value", "said"), [("RELUME_KERNELS", "off", "RELUME_KERNELS"), ("PATH", "", "no C++")]
)
def test_without_a_compiler_or_when_turned_off_the_reason_is_given(source, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=said):
        library(source)
