"""The arithmetic of adding up ranks, and the names on which they agree; no processes here."""

import threading

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.census import Counts
from relume.census.counts import ARRAYS, INTEGER_ARRAYS
from relume.sites import Site
from relume.watch import joining
from relume.watch.joining import BYTES_PER_UNIT, Agreement, add_up


def site(name, units=3, producers=("fc",), consumers=()):
    """A real description, renamed."""
    model = nn.Sequential(nn.Linear(2, units), nn.ReLU())
    data = relume.census(model, torch.randn(4, 2))["1"].site.to_dict()
    return Site.from_dict({**data, "name": name, "alias": name, "producers": producers, "consumers": consumers})


class Pool:
    """All-reduce over threads, each of which is a rank; notes how many bytes a rank hands in."""

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks)
        self.given = [None] * ranks
        self.bytes = [0] * ranks

    def reducer(self, rank):
        def all_reduce(values, largest):
            self.bytes[rank] += values.numel() * values.element_size()
            self.given[rank] = values.clone()
            self.barrier.wait()
            whole = torch.stack(self.given)
            values.copy_(whole.amax(0) if largest else whole.sum(0))
            self.barrier.wait()

        return all_reduce


def added(ranks, sites):
    """What `add_up` gives on each rank."""
    pool, results = Pool(len(ranks)), [None] * len(ranks)

    def one(r):
        results[r] = add_up(ranks[r], sites, pool.reducer(r))

    threads = [threading.Thread(target=one, args=(r,)) for r in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, pool.bytes


def counted(z, step):
    """Counts of samples z [inputs, units] seen at one step."""
    fired, finite = (z > 0) & z.isfinite(), z.isfinite()
    n = finite.sum(0)
    mean = torch.where(finite, z, 0).sum(0) / n.clamp(min=1)
    marks = torch.where(fired.any(0), step, -1)
    return Counts(
        inputs=len(z),
        samples=len(z),
        fired=fired.sum(0),
        samples_fired=fired.sum(0),
        mean=mean,
        m2=torch.where(finite, z - mean, 0).square().sum(0),
        max=torch.where(finite, z, -torch.inf).amax(0),
        min=torch.where(finite, z, torch.inf).amin(0),
        output=torch.where(fired, z, 0).sum(0),
        nonfinite=(~finite).sum(0),
        first_fired=marks,
        last_fired=marks,
    )


values = st.sampled_from([-3.5, -1.0, 0.0, 1e-9, 0.25, 7.0, 1e8 + 1, -1e8, float("nan"), float("inf")])
rows = st.lists(st.tuples(values, values, values), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.tuples(rows, st.integers(0, 9))), min_size=1, max_size=4))
def test_ranks_add_up_to_what_one_process_counts(ranks):
    counts = [None if r is None else counted(torch.tensor(r[0], dtype=torch.float64), r[1]) for r in ranks]
    results, _ = added([{} if c is None else {"a": c} for c in counts], [site("skipped"), site("a")])
    present = sorted((r[1], i) for i, r in enumerate(ranks) if r is not None)
    if not present:
        assert results == [{}] * len(ranks)
        return
    whole = None
    for _, i in present:
        whole = counts[i] if whole is None else whole.merge(counts[i])
    for result in results:
        assert list(result) == ["a"]
        mine = result["a"]
        assert (mine.inputs, mine.samples) == (whole.inputs, whole.samples)
        for name in ARRAYS:
            a, b = getattr(mine, name), getattr(whole, name)
            assert a.dtype == b.dtype == (torch.int64 if name in INTEGER_ARRAYS else torch.float64)
            if name in ("mean", "m2", "output"):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-6)
            else:
                assert torch.equal(a, b), name


def test_a_small_spread_about_a_large_mean_survives():
    z = 1e9 + torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    results, _ = added([{"a": counted(z[:1], 0)}, {"a": counted(z[1:], 0)}], [site("a", 1)])
    assert float(results[0]["a"].m2) == 5.0
    assert float(results[0]["a"].mean) == 1e9 + 2.5


def test_bytes_are_in_proportion_to_the_units():
    for units in (10, 10_000):
        counts = counted(torch.randn(4, units, dtype=torch.float64), 0)
        _, sent = added([{"a": counts}, {}], [site("a", units)])
        assert sent == [BYTES_PER_UNIT * units + 16] * 2


def test_many_units_are_added_up_some_sites_at_a_time_to_the_same_bits(monkeypatch):
    sites = [site(name, units) for name, units in (("a", 5), ("b", 1), ("c", 9), ("d", 2))]
    ranks = [{s.name: counted(torch.randn(6, s.units, dtype=torch.float64), r) for s in sites[r:]} for r in range(2)]
    (whole, _), sent = added(ranks, sites)
    monkeypatch.setattr(joining, "_AT_ONCE", 8)
    (some, again), sent_again = added(ranks, sites)
    assert sent_again == sent
    assert list(some) == list(whole) == list(again)
    for name in whole:
        for n in ARRAYS:
            assert torch.equal(getattr(some[name], n), getattr(whole[name], n)), (name, n)
    assert [len(batch) for batch in joining._batches(sites)] == [2, 1, 1]


def test_a_site_known_to_one_rank_alone_joins_the_list():
    agreement = Agreement()
    agreement.learn([site("a"), site("b")])
    names = agreement.learn([site("b"), site("c")])
    assert names == {"b": "b", "c": "c"}
    assert list(agreement.sites) == ["a", "b", "c"]


def test_the_same_name_for_another_site_gets_another_number():
    agreement = Agreement()
    first = agreement.learn([site(":relu", producers=("a",)), site(":relu#1", producers=("b",))])
    second = agreement.learn(
        [site(":relu", producers=("b",)), site(":relu#1", producers=("a",)), site(":relu#2", 5, ("c",))]
    )
    third = agreement.learn([site(":relu", 7, ("d",))])
    assert first == {":relu": ":relu", ":relu#1": ":relu#1"}
    assert second == {":relu": ":relu#1", ":relu#1": ":relu", ":relu#2": ":relu#2"}
    assert third == {":relu": ":relu#3"}
    assert agreement.sites[":relu#3"].units == 7
    assert agreement.sites[":relu#3"].name == ":relu#3"


def test_a_list_learnt_again_with_more_consumers_adds_no_site():
    agreement = Agreement()
    agreement.learn([site("a"), site("a#1")])
    names = agreement.learn([site("a", consumers=("fc2",)), site("a#1")])
    assert names == {"a": "a", "a#1": "a#1"}
    assert list(agreement.sites) == ["a", "a#1"]
    assert agreement.sites["a"].consumers == ("fc2",)
