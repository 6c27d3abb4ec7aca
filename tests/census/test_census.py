"""`Census`: a mapping of sites, its totals, and what it hands on: dicts, JSON, data frames, text."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from rich.cells import cell_len
from torch import Tensor, nn

import relume
from relume.activations import catalogue as of
from relume.census import STATES, Census, SiteCensus, percent
from relume.census.table import cut
from relume.errors import CensusMismatchError, MissingExtraError, RelumeError

N = 8


def units(*signs: int) -> Tensor:
    """One unit per sign: always on, never on; 0 is NaN."""
    return torch.tensor([[s * (i + 1.0) if s else math.nan for s in signs] for i in range(N)])


@pytest.fixture
def census(counted) -> Census:
    return Census(
        (
            counted(units(-1, 1, 1), name="a"),
            counted(units(-1, -1), name="b.act"),
            counted(units(1, 0), of.gelu(), name="c"),
            counted(torch.empty(0, 4), name="never"),
        ),
        phase="train",
        first_step=0,
        last_step=99,
        model="Net",
        notes=("a note",),
    )


def test_it_is_a_mapping_in_forward_order(census: Census) -> None:
    assert list(census) == ["a", "b.act", "c", "never"]
    assert len(census) == 4
    assert census["b.act"] is census.sites[1]
    assert "a" in census
    assert "z" not in census
    assert census.get("z") is None
    assert [m.name for m in census.values()] == list(census)


def test_an_alias_serves_where_it_is_of_one_site_only(counted) -> None:
    def named(name: str, alias: str) -> SiteCensus:
        member = counted(units(1), name=name)
        return dataclasses.replace(member, site=dataclasses.replace(member.site, alias=alias))

    census = Census((named(":clamp", ":relu"), named("x", "two"), named("y", "two")))
    assert census[":relu"].name == ":clamp"
    with pytest.raises(KeyError):
        census["two"]


def test_a_name_wins_over_another_sites_alias(counted) -> None:
    first = counted(units(1), name=":relu")
    second = counted(units(1), name=":clamp")
    second = dataclasses.replace(second, site=dataclasses.replace(second.site, alias=":relu"))
    assert Census((first, second))[":relu"] is first


def test_an_unknown_name_is_answered_with_the_known_ones(census: Census) -> None:
    with pytest.raises(KeyError) as caught:
        census["layer1"]
    assert str(caught.value) == "there is no site 'layer1' in this census; sites: a, b.act, c, never"
    assert isinstance(caught.value, RelumeError)


def test_of_many_sites_the_answer_names_some_and_their_number(counted) -> None:
    census = Census(tuple(counted(units(1), name=f"s{i}") for i in range(23)))
    with pytest.raises(KeyError, match=r"sites: s0, s1, .*, s19 and 3 more$"):
        census["x"]
    with pytest.raises(KeyError, match="sites: none"):
        Census(())["x"]


def test_totals(census: Census) -> None:
    assert (census.units, census.dead, census.unknown, census.inputs) == (11, 3, 4, N)
    assert census.dead_fraction == 3 / 6  # neither the four unknown ones nor the one with NaN count
    assert census.silent_sites == ("b.act",)


def test_there_is_no_dead_fraction_where_none_was_judged(counted) -> None:
    for member in (counted(torch.empty(0, 4)), counted(units(0, 0))):
        assert math.isnan(Census((member,)).dead_fraction)
        assert math.isnan(Census((member,)).dormant())
    assert math.isnan(Census(()).dead_fraction)
    assert Census(()).inputs == 0


def test_the_dormant_share_is_over_all_units_that_have_a_score(census: Census) -> None:
    # a: one of three; b.act: both; c: none of the one that is finite
    assert census.dormant(0.0) == 3 / 6
    assert census.dormant(1e9) == 1.0
    with pytest.raises(ValueError, match="tau"):
        census.dormant(-1)


def test_it_is_frozen(census: Census) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        census.phase = "eval"
    assert repr(census) == "Census(4 sites, 3 of 11 units dead, train)"


def test_used_with_another_model_it_says_what_is_missing() -> None:
    census = relume.census(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Tanh())), torch.randn(8, 2))
    census.check_matches(nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Sequential(nn.ReLU())))
    with pytest.raises(CensusMismatchError, match=r"another model \(Sequential\): ReLU has no module for 1, 2\.0"):
        census.check_matches(nn.ReLU())


# As data


def test_to_dict_goes_through_json_and_back_unchanged_with_nan_as_null(census: Census) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    plain = census.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False), parse_constant=refuse) == plain
    assert json.loads(census.to_json(indent=2)) == plain
    assert plain["dead_fraction"] == 0.5
    assert plain["silent_sites"] == ["b.act"]
    a = plain["sites"]["a"]
    assert a["state"] == ["dead", "linear", "linear"]
    assert a["fired"] == [0, N, N]
    assert a["death_bound"][0] == pytest.approx(1 - 0.05 ** (1 / N))
    assert a["death_bound"][1] is None
    assert plain["sites"]["c"]["mean"][1] is None
    assert plain["sites"]["never"]["mean"] == [None] * 4
    assert plain["sites"]["never"]["reached"] is False


def test_an_empty_census_is_json_too() -> None:
    assert json.loads(json.dumps(Census(()).to_dict(), allow_nan=False))["dead_fraction"] is None


@pytest.mark.parametrize("activation", [of.hardtanh(-1.0, math.inf), of.relu(), of.tanh(), of.softshrink()])
def test_sites_of_any_zones_are_json(counted, activation) -> None:
    json.dumps(Census((counted(units(1), activation),)).to_dict(), allow_nan=False)


def test_to_pandas_has_one_row_per_unit(census: Census) -> None:
    frame = census.to_pandas()
    assert list(frame.columns) == [
        "site", "unit", "state", "dead", "inputs", "death_bound", "fired", "firing_rate", "mean", "std", "min", "max",
        "mean_output", "nonfinite",
    ]  # fmt: skip
    assert len(frame) == census.units
    assert frame["site"].tolist() == ["a"] * 3 + ["b.act"] * 2 + ["c"] * 2 + ["never"] * 4
    assert frame["unit"].tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 2, 3]
    assert frame["dead"].sum() == 3
    assert set(frame["state"]) <= set(STATES)
    assert frame["mean"].isna().sum() == 5
    assert Census(()).to_pandas().empty


def test_without_pandas_it_says_what_to_install(census: Census, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError) as caught:
        census.to_pandas()
    assert str(caught.value) == ("to_pandas() needs pandas, which is not installed: pip install 'relume[pandas]'")
    assert isinstance(caught.value, ImportError)


# As text


def checked(census: Census) -> list[str]:
    text = str(census)
    lines = text.splitlines()
    assert text == text.rstrip()
    for line in lines:
        assert line == line.rstrip()
        assert cell_len(line) <= 80, line
    return lines


def test_it_prints_as_a_table(census: Census) -> None:
    assert checked(census) == [
        "3 of 11 units dead (50 %) · train, steps 0–99",
        "site                  activation  units  dead  fires on  p fires <  also",
        "a                     relu            3     1      67 %       0.31  2 linear",
        "b.act                 relu            2   2 !       0 %       0.31",
        "c                     gelu            2     0      50 %             1 non-finite",
        "never                 relu            4     0         –             not reached",
        "8 inputs seen. “p fires <”: 95 % bound for a dead unit firing on a new input.",
        "“!”: whole site dead, the signal is cut",
    ]


def test_an_empty_one_prints() -> None:
    assert checked(Census(()))[0] == "0 of 0 units dead (–) · eval"


def test_a_window_in_progress_says_so(counted) -> None:
    census = Census((counted(units(1)),), first_step=3, last_step=5, complete=False)
    assert "steps 3–5, window not complete" in checked(census)[0]


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.{}.mixture_of_experts.feed_forward.activation_function:gelu#2",
        "模型.编码器.第{}层.前馈网络.激活函数.非常长的名字.一二三四五六七八九十",
        "🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊{}🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊🦊",
        "[red]{}[/red]" + "[b]x[/b]" * 12,
    ],
    ids=["long", "wide", "emoji", "markup"],
)
def test_any_name_prints_within_80_columns_and_keeps_the_numbers_whole(counted, name: str) -> None:
    big = SiteCensus(counted(units(-1, 1, 0)).site, counted(units(-1, 1, 0)).counts, 4)
    many = counted(-torch.ones(N, 12_345), of.hardtanh(0.0, 6.0))
    members = tuple(
        dataclasses.replace(m, site=dataclasses.replace(m.site, name=name.format(i, i), alias=f"{i}"))
        for i, m in enumerate([big, many])
    )
    lines = checked(Census(members, phase="train", first_step=10**6, last_step=10**7))
    (row,) = [line for line in lines if "12345 !" in line]
    assert "  12345  12345 !       0 %       0.31" in row
    assert "…" in row


def test_a_name_that_fits_is_not_cut(counted) -> None:
    name = "backbone.blocks.11.act"
    assert checked(Census((counted(units(1), name=name),)))[2].startswith(name + " ")


def test_long_names_that_differ_at_either_end_stay_apart(counted) -> None:
    names = [f"{side}.a_very_long_name_that_fills_the_whole_column_and_more.{n}" for side in "ab" for n in range(3)]
    lines = checked(Census(tuple(counted(units(1), name=n) for n in names)))
    assert len({line.split()[0] for line in lines[2:8]}) == 6


@pytest.mark.parametrize("width", [0, 1, 2, 5, 11, 12, 40])
@pytest.mark.parametrize("name", ["features.12", "激活函数激活函数", "a激b活c函d数e", "e\u0301" * 9])
def test_a_cut_name_has_at_most_the_width_in_cells(name: str, width: int) -> None:
    short = cut(name, width)
    assert cell_len(short) <= max(width, 1)
    assert (short == name) == (cell_len(name) <= width)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"), (1e-9, "< 0.1 %"), (0.00099, "< 0.1 %"), (0.001, "0.1 %"), (0.034, "3.4 %"), (0.0994, "9.9 %"),
        (0.0996, "10 %"), (0.514, "51 %"), (0.994, "99 %"), (0.999, "> 99 %"), (1.0, "100 %"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_a_share_is_never_rounded_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text
