"""The live view and the verdict in a terminal: right figures, 80 columns, readable without colour."""

import io

import torch
from rich.console import Console

import relume
from relume.report import LiveView, print_verdict
from relume.report.terminal import CELLS, strip


def test_a_strip_shows_dead_units_dark_and_first(make_run):
    census = make_run(kill=[(0, 0, [1, 4], -100.0)]).census()
    cells = strip(census["body.1"]).plain
    assert len(cells) == 8
    assert cells.startswith("··")
    assert "·" not in cells[2:]


def test_a_strip_of_many_units_has_a_fixed_number_of_cells(make_run):
    census = make_run(kill=[(0, 0, range(96), -100.0)], width=192).census()
    cells = strip(census["body.1"]).plain
    assert len(cells) == CELLS
    assert cells.count("·") == CELLS // 2


def test_the_live_view_follows_the_watch_to_the_end():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=False)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU())
    with torch.no_grad():
        model[0].bias[:2] = -50.0
    with relume.watch(model, every=1, window=5) as watch, LiveView(20, "training", console) as live:
        for _ in range(20):
            model(torch.randn(64, 2)).sum().backward()
            live.update(watch)
    said = out.getvalue()
    assert "20/20 steps" in said
    assert "2 of 4 dead" in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_printed_verdict_fits_80_columns_and_names_what_is_not_counted(make_run):
    out = io.StringIO()
    watch = make_run(kill=[(6, 0, [1], -100.0)])
    watch.notes.append("something could not be seen")
    print_verdict(watch, Console(file=out, width=80))
    said = out.getvalue()
    assert said.startswith("1 of 16 units are dead (6.2 %)")
    assert "not counted: something could not be seen" in said
    assert max(map(len, said.splitlines())) <= 80
