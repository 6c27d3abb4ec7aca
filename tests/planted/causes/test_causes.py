"""Trainings whose cause is known by construction: it is named first, with evidence; where nothing is, nothing is named.

`benchmarks/diagnosis.py` runs more seeds of the same and prints the confusion matrix.
"""

import json
import math

import pytest

from relume.diagnose.causes import diagnose

NOT_BY_DEATH = {"saturation", "vanishing-gradient", "exploding-gradient", "silent-site"}


def dead_share(watch, site):
    timeline = watch.timeline(site)
    return int(timeline.dead.sum()) / timeline.units


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_cause_is_named_first(case, seed):
    watch, record = case.run(seed)
    if case.cause is not None and case.cause not in NOT_BY_DEATH:
        sites = [case.site] if case.site else [s.name for s in watch.sites]
        assert max(dead_share(watch, s) for s in sites) >= 0.1, "the case does not kill: it is planted wrongly"
    findings = diagnose(watch, record)
    grave = [f for f in findings if f.severity != "note"]
    said = [(f.code, f.site, f.sentence) for f in grave]
    if case.cause is None:
        assert not grave, said
    else:
        assert grave, "nothing was named"
        assert grave[0].code == case.cause, said
        assert case.site in (None, grave[0].site), said
        assert grave[0].remedies
    for site, code in case.at_sites:
        here = [f for f in findings if f.site == site and f.code not in ("born-dead", "sparse", "silent-site")]
        assert max(here, key=lambda f: len(f.units)).code == code, [(f.code, len(f.units)) for f in here]
    by_site = {s.name: s for s in watch.sites}
    for finding in findings:
        assert finding.evidence
        assert finding.sentence.endswith(".")
        assert "unknown" not in finding.sentence or finding.code == "unknown-cause" or not case.cause, finding.sentence
        json.dumps(finding.to_dict())
        assert finding.steps[0] <= finding.steps[1] <= watch.step
        if finding.site:
            assert set(finding.units) <= set(range(by_site[finding.site].units))
    deaths = [f for f in findings if f.code not in NOT_BY_DEATH and f.code != "sparse"]
    for site in by_site:  # each dead unit is in one finding
        units = [u for f in deaths if f.site == site for u in f.units]
        assert sorted(units) == watch.timeline(site).dead.nonzero().flatten().tolist()


def test_a_cascade_is_traced_to_the_finding_below(corpus):
    case = next(c for c in corpus.CASES if c.at_sites)
    findings = diagnose(*case.run(0))
    cascade = next(f for f in findings if f.code == "upstream-cascade")
    assert cascade.root == ("killed-by-step", "1")
    assert cascade.evidence["by_upstream"] < 0
    assert abs(cascade.evidence["by_weights"]) < abs(cascade.evidence["by_upstream"])


def test_evidence_of_a_killing_step_holds_the_learning_rate_and_the_size_of_the_step(corpus):
    case = next(c for c in corpus.CASES if c.name.startswith("one step at"))
    (finding, *_) = diagnose(*case.run(0))
    evidence = finding.evidence
    assert evidence["lr"] == 20.0
    assert evidence["usual_lr"] == 0.05
    assert evidence["update_ratio"] > 10 * evidence["usual_update_ratio"]
    assert finding.steps[0] == 10
    assert evidence["max_before"] > 0 >= evidence["max_after"]
    assert not any(math.isnan(v) for v in evidence.values() if isinstance(v, float))
