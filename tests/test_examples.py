"""Each script in examples/ runs in a fresh folder and prints what it promises."""

import re
import runpy
from pathlib import Path

import pytest

from relume.census import never_fired_bound

EXAMPLES = Path(__file__).parent.parent / "examples"
TESTED = {"plain_loop.py", "census_of_a_trained_model.py", "your_own_activation.py"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def script(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


def test_every_example_is_run_here_and_says_how_to_run_it() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == TESTED
    for name in TESTED:
        assert f"\npython examples/{name}\n" in (EXAMPLES / name).read_text()


def test_the_plain_loop_counts_the_dead_dates_their_deaths_and_reports(run, tmp_path: Path) -> None:
    out = run("plain_loop.py")
    dead, units = map(int, re.match(r"(\d+) of (\d+) units dead .* train, steps 250–299", out).groups())
    assert units == 128
    assert 20 < dead < 128
    rows = re.findall(r"^(1|3): (\d+) born dead; others died at steps \[(.*)\]$", out, re.MULTILINE)
    assert [site for site, _, _ in rows] == ["1", "3"]
    for _, born, steps in rows:
        died = [int(s) for s in steps.split(", ")]
        assert int(born) > 0
        assert died == sorted(died)
        assert all(0 <= s < 320 and s % 5 == 0 for s in died)
    report = tmp_path / out.strip().rpartition("report: ")[2]
    assert report.is_file()
    assert report.read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_census_of_a_trained_model_finds_the_planted_channels_and_bounds_them(run, tmp_path: Path) -> None:
    out = run("census_of_a_trained_model.py")
    assert "3 of 48 units dead" in out
    assert "dead channels: [0, 1, 2]" in out
    assert f"fewer than one in {round(1 / never_fired_bound(1000))} new images (95 %)" in out
    assert f"all of them at once: {round(1 / never_fired_bound(1000, 1 - 0.05 / 16))}" in out
    assert not list(tmp_path.iterdir())  # a census writes nothing


def test_an_activation_of_ones_own_is_a_site_with_its_dead_units(run) -> None:
    out = run("your_own_activation.py")
    assert "4 of 32 units dead (12 %)" in out
    assert re.search(r"^:squared_relu +squared_relu +32 +4 ", out, re.MULTILINE)
