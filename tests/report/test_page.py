"""The HTML page: complete, small, escaped, and its figures are the census's."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import relume
from relume.errors import EmptyCensusError
from relume.report import charts, write_html
from relume.report.html import render
from relume.report.looks import LOOKS
from relume.report.view import thinned, view


def test_nothing_is_fetched_and_no_script_runs(make_run):
    page = render(make_run(kill=[(6, 0, [1], -100.0)]))
    assert "<script" not in page
    assert not re.search(r"""src\s*=|url\(|@import|https?://|href="[^#]""", page)


def test_every_drawing_is_well_formed_and_described(make_run):
    drawings = re.findall(r"<svg.*?</svg>", render(make_run(kill=[(6, 0, range(5), -100.0)])), re.DOTALL)
    assert len(drawings) == 1 + 2 * 4 + 3  # the loss; strip, histogram, deaths, ranges of each site; how they fell
    for drawing in drawings:
        svg = ElementTree.fromstring(drawing)
        assert svg.attrib["role"] == "img"
        assert svg.find("title").text


def test_names_are_escaped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>&", nn.Sequential(nn.Linear(2, 4), nn.ReLU()))

        def forward(self, x):
            return self.get_submodule("<b>&")(x)

    model = Odd()
    with relume.watch(model, every=1, window=2) as watch:
        for _ in range(2):
            model(torch.randn(256, 2)).sum().backward()
        watch.log(**{"<i>loss": 1.0})
    page = render(watch)
    assert "<b>&" not in page.replace("<b>site</b>", "")
    assert "&lt;b&gt;&amp;.1" in page
    assert "<i>loss" not in page


def test_the_strip_shows_each_unit_in_each_window(make_run):
    run = view(make_run(kill=[(5, 0, [2], -100.0), (10, 0, [6], -100.0)]), "run")
    site = run.sites[0]
    dead = next(i for i, look in enumerate(LOOKS) if look.key == "dead")
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[1:, 2] = True  # killed before step 5, the first of window 1
    expected[2:, 6] = True
    assert torch.equal(site.codes == dead, expected)
    assert site.dead == [0, 1, 2, 2]
    assert site.deaths == [(4, 1), (9, 1)]


def test_the_drawn_strip_covers_exactly_the_cells_of_each_state():
    codes = torch.randint(0, 4, (17, 23), dtype=torch.uint8)
    drawing, shown = charts.strip(codes, torch.arange(23), "t", 10**6)
    assert shown == 23
    area = {}
    for key, path in re.findall(r'class="u-(\w+)" d="([^"]+)"', drawing):
        cells = set()
        for x, y, w, h in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", path):
            new = {(int(x) + i, int(y) + j) for i in range(int(w)) for j in range(int(h))}
            assert not cells & new
            cells |= new
        area[key] = cells
    for code, look in enumerate(LOOKS[:4]):
        flipped = codes.flip(1)  # the first unit is at the bottom
        assert area[look.key] == {tuple(at) for at in (flipped == code).nonzero().tolist()}


def test_a_strip_beyond_its_budget_shows_fewer_units_and_the_page_says_so():
    torch.manual_seed(0)
    codes = torch.randint(0, 4, (50, 90), dtype=torch.uint8)
    full, all_units = charts.strip(codes, torch.arange(90), "t", 10**6)
    small, fewer = charts.strip(codes, torch.arange(90), "t", 9000)
    assert all_units == 90
    assert 4 <= fewer < 90
    assert len(small) < 9500 < len(full)


def test_long_runs_are_thinned_to_the_first_the_last_and_between():
    windows = list(range(1000))
    drawn = thinned(windows, 120)
    assert len(drawn) == len(set(drawn)) == 120
    assert (drawn[0], drawn[-1]) == (0, 999)
    assert thinned(windows[:120], 120) == windows[:120]


def test_a_large_run_makes_a_page_below_one_megabyte(tmp_path):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(100))

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    def trained(windows):
        model = Deep()
        with relume.watch(model, every=1, window=1, min_inputs=8, diagnose=windows < 20) as watch:
            for _ in range(windows):
                with torch.no_grad():  # worst case for the strips: nothing stays as it was
                    for layer in model.layers:
                        layer.bias.normal_(0, 1)
                model(torch.randn(8, 8)).sum().backward()
        return watch

    # Findings of many sites, as a short run has them: to record the deaths of 100 sites in each window takes long.
    findings = trained(10).diagnose()
    assert len({f.site for f in findings}) > 50
    path = write_html(trained(150), tmp_path / "large.html", findings=findings)
    assert path.stat().st_size < 2**20
    assert "120 of 150 windows are drawn" in path.read_text()


def test_a_page_is_replaced_whole_or_not_at_all(make_run, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    write_html(make_run(), path)
    before = path.read_text()
    monkeypatch.setattr("relume.report.html.os.replace", lambda a, b: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_html(make_run(kill=[(6, 0, [1], -100.0)]), path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(make_run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        make_run().report(tmp_path / "file" / "r.html")


def test_an_empty_recording_has_no_report(tmp_path):
    with relume.watch(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) as watch:
        pass
    with pytest.raises(EmptyCensusError):
        watch.report(tmp_path / "r.html")


def test_a_loaded_run_gives_the_page_that_the_live_watch_gave(make_run, tmp_path):
    watch = make_run(save=tmp_path / "run", kill=[(6, 0, [1], -100.0)])
    assert render(relume.load(tmp_path / "run")) == render(watch)


SHORT = {0.0: "0", 0.0931: "0.0931", 1.234: "1.23", 45.6: "45.6", 1234.5: "1,234", -2.5: "−2.5", 3.4e9: "3.4e+09"}


@pytest.mark.parametrize(("value", "text"), [*SHORT.items(), (float("nan"), "–")])
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


@pytest.mark.parametrize("dead_at_the_end", [0, 3])
def test_charts_survive_constant_and_missing_data(dead_at_the_end):
    nothing = torch.full((4,), float("nan"), dtype=torch.float64)
    zeros = torch.zeros(4, dtype=torch.float64)
    for drawing in (
        charts.ranges(nothing, nothing, nothing, charts.Zone(), "t"),
        charts.ranges(zeros, zeros, zeros, charts.Zone(((-float("inf"), 0.0),)), "t"),
        charts.firing_histogram(nothing, "t"),
        charts.firing_histogram(zeros, "t"),
        charts.deaths([], [], [], 4, "t"),
        charts.deaths([5], [None], [(2, dead_at_the_end)], 4, "t"),
        charts.lines([("a", [(3, 1.0)])], "t"),
        charts.lines([], "t"),
    ):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
        assert "inf" not in drawing


def test_the_histogram_counts_every_unit_once():
    rates = torch.tensor([0.0, 0.0, 0.05, 0.1, 0.95, 1.0], dtype=torch.float64)
    drawing = charts.firing_histogram(rates, "t")
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", drawing)) == 6
    assert "units that never fire: 2" in drawing
