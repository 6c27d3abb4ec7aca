"""Run files that were damaged, or made by someone who means harm: an error, never a wrong number, never code."""

import ast
import json
import os
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.census.counts import ARRAYS
from relume.errors import RunFileError
from relume.watch.store import _TABLES, checksum

NAME = "run.sqlite"
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a finished run, and all that it says."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.Sigmoid())
    with torch.no_grad():
        model[0].bias[:5] = -100.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, every=1, window=4, save=folder, min_inputs=16) as watch:
        for step in range(14):
            model(torch.randn(8, 4)).mean().backward()
            optimizer.step()
            watch.log(loss=step / 2)
    return (folder / NAME).read_bytes(), everything(folder)


def everything(path, report=None):
    """All that can be read from a run, as text in which every bit of a number shows."""
    run = relume.load(path)
    try:
        said = [run.scalars, run.notes, run.about, run.history(), [s.to_dict() for s in run.sites]]
        said += [run.timeline(s.name).to_dict() for s in run.sites]
        said += [run.census(w.index).to_dict() for w in run.windows]
        if report is not None:
            run.report(report)
        return repr(said)
    finally:
        run.close()


def refused(path, right=None, report=None):
    """True when it is refused by a `RunFileError` that names it; False when it is read, and `right`."""
    try:
        said = everything(path, report)
    except RunFileError as error:
        said = error
    except relume.RelumeError:
        return False  # e.g. a run that holds no windows: what it says is true
    if isinstance(said, RunFileError):
        assert str(path) in str(said)
        return True
    assert right is None or said == right
    return False


@pytest.fixture
def place(tmp_path):
    def write(content):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / NAME).write_bytes(content)
        return tmp_path / "x" / NAME

    return write


@quick
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30))
def test_bytes_written_over_are_noticed_or_harmless(whole, place, changes):
    content = bytearray(whole[0])
    for where, byte in changes:
        content[int(where * len(content))] = byte
    refused(place(bytes(content)), whole[1])


@quick
@given(st.data())
def test_pages_swapped_copied_zeroed_and_cut_are_noticed_or_harmless(whole, place, data):
    size = int.from_bytes(whole[0][16:18], "big")
    pages = [whole[0][i : i + size] for i in range(0, len(whole[0]), size)]
    at = st.integers(0, len(pages) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        a, b = data.draw(at), data.draw(at)
        match data.draw(st.sampled_from(["swap", "copy", "zero", "part"])):
            case "swap":
                pages[a], pages[b] = pages[b], pages[a]
            case "copy":
                pages[a] = pages[b]
            case "zero":
                pages[a] = bytes(size)
            case "part":
                pages[a] = pages[a][: size // 2] + pages[b][size // 2 :]
    refused(place(b"".join(pages)), whole[1])


@quick
@given(st.integers(0, 10**6))
def test_a_file_cut_short_anywhere_is_refused(whole, place, end):
    assert refused(place(whole[0][: end % len(whole[0])]), whole[1])


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 2**62, 10**18]),
    st.floats(),
    st.text(max_size=20).filter(lambda t: "\x00" not in t),
    st.binary(max_size=40),
    st.sampled_from(["[" * 100_000, "1" * 5000, "{}", "[]", "null", '{"groups": [3]}', '{"train": 1e999}', "NaN"]),
)


def edit(path, table, row, column, value, *, sign):
    """Set one value by SQL; with `sign` also the checksum that fits it, as only relume or a foe would."""
    db = sqlite3.connect(path)
    db.create_function("signed", -1, lambda *values: checksum(values))
    names = [c.partition(" ")[0] for c in _TABLES[table][0]]
    keys = [k.strip() for k in _TABLES[table][1].split(",")]
    rows = db.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
    name = names[column % len(names)]
    where = " AND ".join(f"{k} = ?" for k in keys)
    chosen = rows[row % len(rows)]
    changed = False
    try:
        db.execute(f"UPDATE {table} SET {name} = ? WHERE {where}", (value, *chosen))
        if sign:
            columns = ", ".join(names)
            db.execute(f"UPDATE {table} SET checksum = signed({columns})")
        db.commit()
        changed = True
    except sqlite3.Error:
        pass  # a key twice, or nothing where something must be
    db.close()
    return changed


FULL = ("about", "sites", "windows", "counts", "scalars")


@quick
@given(st.sampled_from(FULL), st.integers(0, 99), st.integers(0, 9), VALUES)
def test_a_value_changed_by_sql_is_noticed(whole, place, table, row, column, value):
    path = place(whole[0])
    if edit(path, table, row, column, value, sign=False):
        refused(path, whole[1])


@settings(quick, max_examples=100)
@given(st.sampled_from(FULL), st.integers(0, 99), st.integers(0, 9), VALUES)
def test_a_value_forged_with_its_checksum_is_an_error_or_is_shown_and_does_no_harm(
    whole, place, tmp_path, table, row, column, value
):
    path = place(whole[0])
    if edit(path, table, row, column, value, sign=True):
        refused(path, report=tmp_path / "report.html")


@quick
@given(st.sampled_from(FULL), st.integers(0, 99))
def test_a_row_taken_out_is_refused(whole, place, table, row):
    path = place(whole[0])
    keys = [k.strip() for k in _TABLES[table][1].split(",")]
    db = sqlite3.connect(path)
    rows = db.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
    db.execute(f"DELETE FROM {table} WHERE " + " AND ".join(f"{k} = ?" for k in keys), rows[row % len(rows)])
    db.commit()
    db.close()
    assert refused(path)


def forge(path, table, sets, where="1"):
    """Rewrite rows and sign them."""
    db = sqlite3.connect(path)
    db.create_function("signed", -1, lambda *values: checksum(values))
    columns = ", ".join(c.partition(" ")[0] for c in _TABLES[table][0])
    for name, value in sets.items():
        db.execute(f"UPDATE {table} SET {name} = ? WHERE {where}", (value,))
    db.execute(f"UPDATE {table} SET checksum = signed({columns})")
    db.commit()
    db.close()


def peak(monkeypatch):
    """The most bytes that zlib was asked to give at once."""
    asked = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self):
            self.inner = real()

        def decompress(self, blob, limit=0):
            raw = self.inner.decompress(blob, limit)
            asked.append(len(raw))
            return raw

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    return asked


def test_a_zip_bomb_is_not_unpacked(whole, place, monkeypatch):
    path = place(whole[0])
    forge(path, "counts", {"arrays": zlib.compress(bytes(200_000_000), 9)})
    asked = peak(monkeypatch)
    assert refused(path)
    assert 0 < max(asked) < 20_000


def test_more_units_than_a_file_has_room_for_are_not_believed(whole, place):
    path = place(whole[0])
    db = sqlite3.connect(path)
    (text,) = db.execute("SELECT description FROM sites WHERE name = '1'").fetchone()
    db.close()
    for units in (10**9, 10**18, 2**63, -1, 1.5, "many", None):
        forge(path, "sites", {"description": json.dumps({**json.loads(text), "units": units})}, "name = '1'")
        assert refused(path), units


def test_a_site_without_counts_is_not_believed_to_have_any_number_of_units(whole, place):
    """Nothing was counted there that could contradict it, and arrays of zeros would be made as long as it says."""
    path = place(whole[0])
    db = sqlite3.connect(path)
    (text,) = db.execute("SELECT description FROM sites WHERE name = '3'").fetchone()
    db.execute("DELETE FROM counts WHERE site = '3'")
    db.commit()
    db.close()
    forge(path, "windows", {"rows": '{"train": 1}'})
    assert "not reached" in str(relume.load(path).census())
    forge(path, "sites", {"description": json.dumps({**json.loads(text), "units": 10**13})}, "name = '3'")
    assert refused(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fired", -1), ("fired", 10**6), ("samples_fired", -1), ("samples_fired", 10**6), ("nonfinite", -1)],
)
def test_counts_that_can_not_be_are_refused_though_they_are_signed(whole, place, name, value):
    path = place(whole[0])
    columns = [bytes(8 * 16) if n != name else struct.pack("<q", value) * 16 for n in ARRAYS]
    raw = b"".join(columns)
    planes = b"".join(raw[i::8] for i in range(8))
    forge(path, "counts", {"arrays": zlib.compress(planes)}, "site = '1'")
    with pytest.raises(RunFileError, match=f"impossible counts: {name}"):
        everything(path)


def test_counts_forged_within_reason_are_read_so_the_refusals_above_are_for_their_reason(whole, place):
    path = place(whole[0])
    forge(path, "counts", {"arrays": zlib.compress(bytes(8 * 16 * len(ARRAYS)))}, "site = '1'")
    everything(path)
    assert relume.load(path).census(0)["1"].fired.tolist() == [0] * 16


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_in_a_run_file_is_bytes_like_any_other(whole, place, tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    payload = pickle.dumps(Payload(), 0)
    for table, column in [("counts", "arrays"), ("windows", "settings"), ("about", "value"), ("sites", "description")]:
        for value in (payload, payload.decode(), zlib.compress(payload)):
            path = place(whole[0])
            forge(path, table, {column: value})
            assert refused(path)
    assert not (tmp_path / "executed").exists()


def test_names_and_notes_of_a_foreign_file_are_no_markup_in_the_report(whole, place, tmp_path):
    path = place(whole[0])
    bad = "<script>alert(1)</script>"
    forge(path, "about", {"value": json.dumps(bad)}, "key = 'model'")
    forge(path, "scalars", {"name": bad})
    page = relume.load(path).report(tmp_path / "report.html").read_text()
    assert bad not in page
    assert "&lt;script&gt;alert(1)" in page


# No code from data, anywhere


SOURCES = sorted(Path(relume.__file__).parent.rglob("*.py"))
RUNS_CODE = {"eval", "exec", "execfile", "compile", "__import__"}
# Where code that the user named is run, which is what these are for: a script, and the source of a model's own class.
MAY = {
    ("launch/program.py", "exec"),
    ("launch/program.py", "compile"),
    ("treat/convert/rewrite.py", "compile"),
    ("treat/convert/source.py", "compile"),
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(Path(relume.__file__).parent)))
def test_no_source_file_reads_code_from_data(source):
    where = source.relative_to(Path(relume.__file__).parent).as_posix()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        line = f"{where}:{node.lineno}: {name}"
        assert name not in RUNS_CODE or (where, name) in MAY, line
        assert not (
            last in ("load", "loads", "Unpickler") and name.startswith(("pickle", "marshal", "dill", "joblib"))
        ), line
        assert not name.startswith("yaml.load"), line
        assert name != "torch.load" or options.get("weights_only") == "True", line
        assert name not in ("np.load", "numpy.load") or options.get("allow_pickle", "False") == "False", line
