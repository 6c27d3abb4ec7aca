"""Intervals, comparisons effect sizes: on simulated data whose truth is known, against scipy and by hand."""

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from relume.errors import MissingExtraError
from relume.lab import stats
from relume.lab.stats import comparison, effects, location

BAND = (0.93, 0.97)
EXPERIMENTS = 2000  # standard error of a share of 0.95: 0.5 points


def covered(low, high, truth):
    return float(((low <= truth) & (truth <= high)).mean())


def skewed(shape):
    return np.random.default_rng(1).lognormal(0, 0.5, shape)


def failing(shape):
    """Runs of which one in ten fails."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(shape) < 0.1, 0.1, 0.9) + rng.normal(0, 0.02, shape)


def iqm_of(draw):
    values = np.sort(draw((1_000_000,)))
    return values[250_000:750_000].mean()


def test_the_interval_of_a_mean_over_10_seeds_holds_the_truth_in_95_of_100_experiments():
    scores = np.random.default_rng(0).normal(0.8, 0.05, (EXPERIMENTS, 10))
    low, high = location.student(scores, 0.0, 0.95)
    assert BAND[0] < covered(low, high, 0.8) < BAND[1]
    assert stats.interval(scores[0], "mean").low == pytest.approx(low[0])


@pytest.mark.parametrize("draw", [skewed, failing])
@pytest.mark.parametrize("tasks", [1, 4])
def test_the_interval_of_an_iqm_over_10_seeds_holds_it_for_skewed_scores_and_for_runs_that_sometimes_fail(draw, tasks):
    batch = draw((EXPERIMENTS, 10, tasks))
    low, high = location.bootstrap(batch, location._iqm, 0.95, "expanded", 299, 0)
    # 299 resamples and 2000 experiments leave a point of noise beyond the band.
    assert BAND[0] - 0.005 < covered(low, high, iqm_of(draw)) < BAND[1] + 0.005
    assert stats.interval(batch[0], "iqm").method == "expanded"


def test_the_plain_percentile_interval_is_too_short_at_5_seeds_where_the_expanded_is_longer():
    scores = np.random.default_rng(0).normal(size=(1000, 5, 1))
    held = {m: covered(*location.bootstrap(scores, np.mean, 0.95, m, 299, 0), 0) for m in ("percentile", "expanded")}
    assert held["percentile"] < 0.90 < held["expanded"]


def test_the_expanded_interval_is_the_percentile_interval_at_hesterbergs_percentiles():
    scores = np.random.default_rng(3).exponential(size=(6, 2))
    ours = stats.interval(scores, "mean", method="expanded", resamples=3000, seed=5)
    drawn = scipy_stats.bootstrap(
        (scores[:, 0], scores[:, 1]), lambda x, y, axis: (x.mean(axis) + y.mean(axis)) / 2,
        n_resamples=3000, method="percentile", rng=np.random.default_rng(5),
    ).bootstrap_distribution  # fmt: skip
    tail = scipy_stats.norm.cdf(-np.sqrt(6 / 5) * scipy_stats.t.ppf(0.975, 10))
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(drawn, [tail, 1 - tail])))


def test_the_trimmed_t_interval_holds_for_an_iqm():
    scores = np.random.default_rng(0).normal(0.8, 0.05, (EXPERIMENTS, 10))
    assert BAND[0] < covered(*location.student(scores, 0.25, 0.95), 0.8) < BAND[1]


def test_bca_follows_the_skew_and_is_scipys():
    scores = np.random.default_rng(3).exponential(size=30)
    ours = stats.interval(scores, "mean", method="bca", resamples=2000, seed=5)
    theirs = scipy_stats.bootstrap((scores,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(5))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval))
    assert ours.high - ours.estimate > ours.estimate - ours.low


def test_each_task_is_resampled_by_itself():
    """Tasks with scores far apart, each without spread: resampled together they would give a wide interval."""
    scores = np.array([[0.0, 100.0]] * 10) + np.random.default_rng(0).normal(0, 0.01, (10, 2))
    assert stats.interval(scores, "mean").width < 0.1


def test_scores_that_do_not_vary_have_an_interval_that_is_a_point():
    for method in ("expanded", "percentile", "bca"):
        found = stats.interval([0.5] * 6, "iqm", method=method)
        assert (found.low, found.estimate, found.high) == (0.5, 0.5, 0.5)


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=40))
def test_the_iqm_lies_within_the_middle_half_and_one_run_that_explodes_does_not_move_it_far(values):
    found = stats.iqm(values)
    ordered = sorted(values)
    cut = len(values) // 4
    assert ordered[cut] - 1e-9 <= found <= ordered[-cut - 1] + 1e-9
    assert stats.iqm([*ordered[:-1], 1e9]) <= ordered[-1] + 1e-9


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20))
def test_moving_and_stretching_scores_moves_and_stretches_the_interval(values):
    if np.ptp(values) < 1e-3:
        return
    first, second = stats.interval(values, "mean"), stats.interval(2 * np.array(values) + 3, "mean")
    assert (second.low, second.high) == pytest.approx((2 * first.low + 3, 2 * first.high + 3), abs=1e-6)


def test_the_wilson_interval_holds_on_average_and_clopper_pearson_at_every_share():
    trials, truths = 20, np.linspace(0.02, 0.98, 49)
    weight = scipy_stats.binom.pmf(np.arange(trials + 1), trials, truths[:, None])
    held = {}
    for method in ("wilson", "clopper-pearson"):
        found = [stats.proportion(k, trials, method=method) for k in range(trials + 1)]
        inside = np.array([[t in f for f in found] for t in truths])
        held[method] = (weight * inside).sum(1)
    assert BAND[0] < held["wilson"].mean() < BAND[1]
    assert held["clopper-pearson"].min() >= 0.95
    assert held["wilson"].min() < 0.95


def test_the_difference_of_proportions_is_that_of_newcombes_table():
    found = stats.difference_of_proportions(stats.proportion(9, 10), stats.proportion(3, 10))
    assert (found.low, found.high) == pytest.approx((0.1705, 0.8090), abs=1e-4)


@pytest.mark.parametrize("test", ["signs", "exchange"])
def test_p_values_under_the_null_are_below_5_percent_in_5_percent(test):
    rng = np.random.default_rng(4)
    pairs = rng.lognormal(size=(2, 600, 10, 1))
    if test == "signs":
        p = np.array([comparison.signs(x - y, 2000) for x, y in zip(*pairs, strict=True)])
    else:
        p = np.array([comparison.exchange(x, y, 400) for x, y in zip(*pairs, strict=True)])
    assert 0.03 < (p <= 0.05).mean() < 0.07


def test_the_sign_test_is_exact_for_few_seeds():
    """Six differences of one sign: of 64 ways to flip them, two are as far from zero."""
    assert comparison.signs(np.array([[1.0], [2], [3], [4], [5], [6]])) == 2 / 64


def test_no_finite_number_of_permutations_makes_a_p_value_of_zero():
    x, y = np.arange(12.0)[:, None] + 100, np.arange(12.0)[:, None]
    assert comparison.exchange(x, y, 99) == 1 / 100
    assert comparison.signs(x - y + y / 10, 99) == 1 / 100


def test_pairing_finds_what_the_spread_between_seeds_hides():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 1, 10)
    theirs, ours = seeds, seeds + 0.1 + rng.normal(0, 0.02, 10)
    assert stats.compare(ours, theirs).p < 0.01
    assert stats.compare(ours, theirs, paired=False).p > 0.5
    assert 0.1 in stats.compare(ours, theirs).difference


def test_welchs_interval_holds_with_unequal_spreads_and_numbers_of_runs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, (EXPERIMENTS, 5, 2)), rng.normal(0, 3, (EXPERIMENTS, 15, 2))
    low, high = comparison.welch(x, y, 0.95)
    assert BAND[0] < covered(low, high, 1.0) < BAND[1]
    theirs = scipy_stats.ttest_ind(x[0, :, 0], y[0, :, 0], equal_var=False).confidence_interval()
    ours = comparison.welch(x[:1, :, :1], y[:1, :, :1], 0.95)
    assert (ours[0][0], ours[1][0]) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.0])
def test_the_probability_of_improvement_has_an_interval_that_holds_where_the_bootstrap_would_not(gap):
    rng = np.random.default_rng(2)
    truth = scipy_stats.norm.cdf(gap / np.sqrt(2))
    x, y = rng.normal(gap, 1, (1000, 10, 1)), rng.normal(0, 1, (1000, 1, 10))
    ends = np.array([effects.newcombe(float(p), 10, 10, 1.96) for p in effects.better(x, y)])
    assert BAND[0] - 0.01 < covered(ends[:, 0], ends[:, 1], truth) < 0.98


def test_the_probability_of_improvement_is_mann_whitneys_u_and_stays_open_when_all_runs_are_better():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 8), rng.integers(0, 5, 12)
    u = scipy_stats.mannwhitneyu(x, y).statistic
    assert stats.probability_of_improvement(x, y).estimate == pytest.approx(u / 96)
    sure = stats.probability_of_improvement([5, 6, 7], [1, 2, 3])
    assert sure.estimate == sure.high == 1.0
    assert 0.2 < sure.low < 0.9
    assert stats.cliffs_delta(y, x).estimate == pytest.approx(1 - 2 * u / 96)


def test_cohens_d_is_shrunk_by_hedges_factor_and_its_interval_holds_the_data_at_its_ends():
    x, y = np.array([3.0, 4, 5, 6, 7]), np.array([1.0, 2, 3, 4, 5])
    found = stats.cohens_d(x, y)
    raw = 2 / np.std(x, ddof=1)
    assert found.estimate == pytest.approx(raw * (1 - 3 / (4 * 8 - 1)), rel=0.002)
    t = scipy_stats.ttest_ind(x, y).statistic
    tails = [scipy_stats.nct.cdf(t, 8, end * np.sqrt(2.5)) for end in (found.high, found.low)]
    assert tails == pytest.approx([0.025, 0.975])


@pytest.mark.parametrize("paired", [True, False])
def test_cohens_d_holds_the_true_effect(paired):
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.8, 1, (150, 10)), rng.normal(0, 1, (150, 10))
    truth = 0.8 / np.sqrt(2) if paired else 0.8
    found = [stats.cohens_d(a, b, paired=paired) for a, b in zip(x, y, strict=True)]
    assert np.mean([truth in f for f in found]) > 0.90
    assert np.mean([f.estimate for f in found]) == pytest.approx(truth, abs=0.1)


def test_holm_keeps_false_findings_away_and_benjamini_hochberg_finds_more():
    rng = np.random.default_rng(0)
    null = rng.random((1000, 20))
    assert (np.array([stats.holm(p) for p in null]) <= 0.05).any(1).mean() < 0.07
    assert (null <= 0.05).any(1).mean() > 0.5
    p = np.concatenate([rng.random(20), np.linspace(1e-4, 0.02, 20)])
    assert (stats.benjamini_hochberg(p) <= 0.05).sum() > (stats.holm(p) <= 0.05).sum() > 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrected_p_values_keep_their_order_and_never_fall(p):
    for correct in (stats.holm, stats.benjamini_hochberg):
        adjusted = correct(p)
        assert (adjusted >= np.array(p) - 1e-12).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


@settings(max_examples=20)
@given(st.integers(2, 12), st.integers(1, 4), st.sampled_from(["wilson", "bootstrap"]))
def test_a_profile_falls_from_all_to_none_within_its_band(runs, tasks, band):
    scores = np.random.default_rng(0).random((runs, tasks))
    found = stats.profile(scores, np.linspace(-0.1, 1.1, 25), band=band, resamples=200)
    assert found.share[0] == 1
    assert found.share[-1] == 0
    assert (np.diff(found.share) <= 0).all()
    assert (found.low <= found.share + 1e-9).all()
    assert (found.share <= found.high + 1e-9).all()


def test_a_profile_at_a_threshold_is_the_share_above_it_and_its_band_holds_the_truth():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        found = stats.profile(rng.random((10, 2)), [0.2, 0.7])
        inside += sum(a <= t <= b for a, t, b in zip(found.low, (0.8, 0.3), found.high, strict=True))
    assert 0.92 < inside / 600 < 0.985


def test_a_run_that_diverged_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"1 of 3 values that are not finite.*chance"):
        stats.interval([0.9, np.nan, 0.8])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.interval([0.9]), "at least 2 runs"),
        (lambda: stats.interval([1, 2], "mode"), "mean, median, iqm"),
        (lambda: stats.interval([[1, 2], [3, 4]], "mean", method="student"), "expanded"),
        (lambda: stats.interval([1, 2], confidence=95), "between 0 and 1"),
        (lambda: stats.compare([1, 2], [1, 2, 3]), "can't be compared"),
        (lambda: stats.holm([0.5, 2]), r"\[0, 1\]"),
        (lambda: stats.proportion(3, 2), "3 of 2"),
        (lambda: stats.cohens_d([1, 1], [1, 1]), "do not vary"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_scipy_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'relume\[lab\]'"):
        stats.proportion(1, 2)
