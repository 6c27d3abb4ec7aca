"""Over two processes, every rank holds the census that one process has on the joined batches."""

import pytest
import torch

import relume
from relume.census.counts import ARRAYS

# The last one ends rank 1.
CASES = (
    "dropped", "ddp", "accumulation", "idle_rank", "branches", "evaluation", "join", "groups", "one_watches",
    "two_models", "unchanged", "fsdp", "tensor_parallel", "raises", "second_dies",
)  # fmt: skip
FRAMEWORKS = ("lightning", "accelerate", "left_open")
EXACT = [n for n in ARRAYS if n not in ("mean", "m2", "output")]


@pytest.fixture
def ranks(launch):
    return launch(*CASES)


def same_counts(a, b, *, sites=None):
    """Two censuses of `workers.table`: all but moments to the last bit."""
    assert list(a) == list(b) if sites is None else set(sites) <= set(a) & set(b)
    for name in a if sites is None else sites:
        for key in ("inputs", "samples", "producers"):
            assert a[name][key] == b[name][key], (name, key)
        for key in EXACT:
            assert torch.equal(a[name][key], b[name][key]), (name, key, a[name][key], b[name][key])
        for key in ("mean", "m2", "output"):
            torch.testing.assert_close(a[name][key], b[name][key], rtol=1e-9, atol=1e-12)


def same(a, b):
    """Two recordings of `workers.told`."""
    assert [(w["index"], w["steps"], w["observed"], w["complete"]) for w in a["windows"]] == [
        (w["index"], w["steps"], w["observed"], w["complete"]) for w in b["windows"]
    ]
    assert a["sites"] == b["sites"]
    for one, other in zip(a["windows"], b["windows"], strict=True):
        assert set(one) == set(other)
        for phase in {"train", "eval"} & set(one):
            same_counts(one[phase], other[phase])


def identical(a, b):
    """To the last bit, moments too."""
    same(a, b)
    for one, other in zip(a["windows"], b["windows"], strict=True):
        for phase in {"train", "eval"} & set(one):
            for name, row in one[phase].items():
                assert all(torch.equal(row[n], other[phase][name][n]) for n in ARRAYS)


def test_both_ranks_hold_the_census_of_the_joined_batches(ranks):
    (zero, reference, *_), (one, *_) = ranks["ddp"]
    assert len(zero["windows"]) == 3
    assert zero["windows"][0]["train"]["act"]["dead"].any()
    assert not zero["windows"][0]["train"]["act"]["dead"].all()
    same(zero, reference)
    identical(zero, one)
    assert zero["notes"] == one["notes"] == []


def test_names_are_those_of_the_module_inside_ddp(ranks):
    assert [s["name"] for s in ranks["ddp"][0][0]["sites"]] == ["act", ":relu"]


def test_on_window_and_timeline_agree_on_all_ranks(ranks):
    zero, one = ranks["ddp"]
    assert zero[2] == one[2] == [0, 1, 2]
    assert torch.equal(zero[3], one[3])


def test_only_the_first_rank_writes_the_run_file_and_it_holds_all_counts(ranks):
    zero, one = ranks["ddp"]
    assert zero[5] == one[5] == ["run.sqlite"]
    identical(zero[4], zero[0])


def test_gradient_accumulation_counts_every_batch_of_every_rank(ranks):
    (zero, reference), (one, _) = ranks["accumulation"]
    assert zero["windows"][0]["train"]["act"]["inputs"] == 4 * 2 * (8 + 3)
    same(zero, reference)
    identical(zero, one)


def test_a_rank_that_observes_nothing_in_a_window_holds_what_the_others_saw(ranks):
    for (zero, reference), (one, _) in zip(*ranks["idle_rank"], strict=True):
        assert zero["windows"]
        same(zero, reference)
        identical(zero, one)


def test_sites_are_matched_by_what_they_are_when_ranks_find_them_in_another_order(ranks):
    (zero, reference), (one, _) = ranks["branches"]
    identical(zero, one)
    assert len(zero["sites"]) == 3

    def by_producer(window):
        return {row["producers"]: row for row in window["train"].values()}

    assert len(zero["windows"]) == len(reference["windows"]) == 3
    for mine, whole in zip(zero["windows"], reference["windows"], strict=True):
        mine, whole = by_producer(mine), by_producer(whole)
        assert set(mine) == set(whole)
        same_counts(mine, whole, sites=set(whole))
    assert ("c",) in by_producer(zero["windows"][2])  # only rank 0 was there


def test_evaluation_on_the_first_rank_alone_is_counted_on_all(ranks):
    (zero, reference), (one, _) = ranks["evaluation"]
    assert [w["eval"]["act"]["inputs"] for w in zero["windows"] if "eval" in w] == [20, 20]
    same(zero, reference)
    identical(zero, one)


def test_ranks_that_make_different_numbers_of_steps_lose_no_count(ranks):
    (zero, tables), (one, _) = ranks["join"]
    same_counts(tables["all"], tables["one"])
    assert tables["all"]["act"]["inputs"] == 8 * (10 + 7)
    assert zero["notes"] == one["notes"] == []


def test_sync_false_adds_up_nothing_and_a_group_only_its_own_ranks(ranks):
    zero, one = ranks["groups"]
    own, small, whole = ([t["act"]["inputs"] for t in tables] for tables in zip(zero, one, strict=True))
    assert own == [32, 32]
    assert small == [32, 32]
    assert whole == [64, 64]


def test_a_watch_on_one_rank_alone_waits_once_and_says_so(ranks):
    (told, warned, seconds, total), other = ranks["one_watches"]
    assert len(warned) == 1
    assert "rank 1 does not watch the same model" in warned[0]
    assert told["notes"] == warned
    assert [w["train"]["act"]["inputs"] for w in told["windows"]] == [32, 32]
    assert seconds < 5
    assert total == other[3] == 2.0  # groups made later are not disturbed


def test_two_models_are_kept_apart(ranks):
    zero, one = ranks["two_models"]
    for tables in zip(zero, one, strict=True):
        assert tables[0]["act"]["inputs"] == 2 * 8 * 6
        same_counts(*tables)


@pytest.mark.parametrize("kind", ["ddp", "static", "fsdp"])
def test_training_is_bitwise_unchanged(ranks, kind):
    for rank in ranks["unchanged"]:
        compared, equal = rank[kind]
        assert compared > 12
        assert equal


@pytest.mark.parametrize("leaves", [False, True], ids=["whole", "leaves"])
def test_fsdp_counts_and_names_as_one_process_does(ranks, leaves):
    (zero, reference), (one, _) = ranks["fsdp"]
    assert reference["windows"][0]["train"]["act"]["producers"] == ("fc1",)
    same(zero[leaves], reference)
    identical(zero[leaves], one[leaves])


def test_tensor_parallel_ranks_keep_their_own_units_and_say_so(ranks):
    (notes, warned, units), (other_notes, other_warned, other_units) = ranks["tensor_parallel"]
    assert "tensor parallelism spreads the units" in notes[0]
    assert "tensor parallelism spreads the units" in other_notes[0]
    assert warned == notes
    assert other_warned == []
    assert units["act"] == other_units["act"] == 6


def test_a_rank_that_raises_is_not_waited_for(ranks):
    (told, warned, longest, saved), wrote = ranks["raises"]
    assert warned == told["notes"] == ["from step 4 on, the counts are of rank 0 alone (rank 1: failed: ValueError)"]
    assert [w["train"]["0.act"]["inputs"] for w in told["windows"]] == [64] + [32] * 9
    assert longest < 2
    assert wrote is False
    identical(saved, told)
    assert saved["notes"] == told["notes"]


def test_a_watch_dropped_unclosed_is_not_waited_for(ranks):
    (notes, seconds), _ = ranks["dropped"]
    assert "rank 1: its watch was dropped without close()" in notes[0]
    assert seconds < 5


def test_a_rank_that_is_killed_holds_the_others_up_for_a_short_while_only(ranks):
    (told, warned, longest, saved), killed = ranks["second_dies"]
    assert killed is None
    assert len(warned) == 1
    assert "rank 0 alone" in warned[0]
    assert told["notes"] == warned
    inputs = [w["train"]["0.act"]["inputs"] for w in told["windows"]]
    assert inputs[0] == 64
    assert sum(inputs) == 64 + 36 * 8
    assert longest < 9
    identical(saved, told)


def test_the_end_of_the_first_rank_leaves_the_others_running(launch):
    killed, (told, warned, longest, _) = launch("first_dies")["first_dies"]
    assert killed is None
    assert warned == []  # the rank that speaks for all has gone
    assert "rank 1 alone" in told["notes"][0]
    assert sum(w["train"]["0.act"]["inputs"] for w in told["windows"]) == 40 * 8 + 4 * 8
    assert longest < 9


def test_a_watch_left_open_ends_with_the_program(launch, tmp_path_factory):
    launch(*FRAMEWORKS)
    base = tmp_path_factory.getbasetemp()
    folder = next(p for b in (base, base.parent) for p in b.glob(f"ranks-{FRAMEWORKS[0]}"))
    assert (folder / "codes").read_text() == "0 0"
    run = relume.load(folder / "open")
    assert run.about["status"] == "finished"
    assert [(w.complete, run.census_of(w)["act"].inputs) for w in run.windows] == [(True, 64), (False, 32)]


@pytest.mark.parametrize(("case", "prefix", "windows"), [("lightning", "net.", [64, 32]), ("accelerate", "", [64, 32])])
def test_frameworks_that_wrap_the_model_are_added_up(launch, case, prefix, windows):
    pytest.importorskip(case)
    zero, one = launch(*FRAMEWORKS)[case]
    identical(zero, one)
    assert [s["name"] for s in zero["sites"]] == [f"{prefix}1", f"{prefix}4"]
    assert [w["train"][f"{prefix}1"]["inputs"] for w in zero["windows"]] == windows


def test_sync_that_is_no_group_is_refused():
    with pytest.raises(TypeError, match=r"process group, not 'yes'"):
        relume.watch(torch.nn.Linear(2, 2), sync="yes")
