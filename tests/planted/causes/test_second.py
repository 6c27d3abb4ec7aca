"""Trainings planted apart from the rules: a right cause comes first, where nothing is the matter none is named.

One seed of every second kind; `benchmarks/diagnosis.py --corpus second` runs all, many times, and prints the matrix.
"""

import builtins
import re

import torch

import relume

NOT_BY_DEATH = {"saturation", "vanishing-gradient", "exploding-gradient", "silent-site", "sparse"}


def test_a_right_cause_comes_first(planted):
    watch = planted.run(0)
    findings = relume.diagnose(watch)
    grave = [f for f in findings if f.severity != "note"]
    said = [(f.code, f.site, f.sentence) for f in grave]
    if not planted.causes:
        assert not grave, said
        return
    assert grave, "nothing was named"
    assert grave[0].code in planted.causes, said
    if planted.sites:
        assert grave[0].site in planted.sites, said
    for site, codes in planted.at_sites.items():
        here = [f for f in findings if f.site == site and f.code not in NOT_BY_DEATH | {"born-dead"} - codes]
        assert max(here, key=lambda f: len(f.units)).code in codes, [(f.code, len(f.units)) for f in here]
    for finding in findings:
        assert 0 <= finding.evidence["certainty"] <= 1
        assert finding.evidence["certainty_basis"]
        for remedy in finding.remedies:
            assert_right(remedy.call)


def assert_right(call):
    """It is Python, of names that a reader of the message has, and of functions that there are."""
    tree = compile(call, "remedy", "exec")
    given = {"model", "optimizer", "batches", "census", "torch", "relume"}
    held = {"group", "g", "p"}
    methods = {"param_groups", "get_submodule", "parameters", "weight", "bias"}
    for name in tree.co_names:
        assert name in given | held | methods or hasattr(builtins, name) or _known(name), (name, call)
    for path in re.findall(r"\b((?:torch|relume)(?:\.\w+)+)\(", call):
        owner = {"torch": torch, "relume": relume}[path.split(".")[0]]
        for part in path.split(".")[1:]:
            owner = getattr(owner, part)
        assert callable(owner)


def _known(name):
    return any(hasattr(owner, name) for owner in (torch, relume, torch.nn, torch.nn.utils, torch.nn.init, relume.init))


def test_a_silent_site_is_one_finding_that_follows_what_caused_it(second):
    case = next(c for c in second.CASES if c.name.startswith("biases of the lower layer pushed down"))
    findings = relume.diagnose(case.run(0))
    (silent,) = [f for f in findings if f.code == "silent-site"]
    assert silent.site == "1"  # and none for the site above it, which is cut off by this one
    assert silent.severity == "error"
    assert silent.root == ("bias-drift", "1")
    assert len(silent.units) == 32
    assert "'1'" in silent.sentence
    assert silent.evidence["silent_above"] == "3"
    assert findings.index(silent) > next(i for i, f in enumerate(findings) if f.code == "bias-drift")


def test_a_learning_rate_is_named_at_which_the_step_would_have_stayed_within_the_spread(second):
    case = next(c for c in second.CASES if c.name.startswith("a cosine schedule with restarts"))
    finding = relume.diagnose(case.run(0))[0]
    assert finding.code == "killed-by-step"
    remedy = next(r for r in finding.remedies if "param_groups" in r.call)
    group = {"lr": 9.0}
    exec(remedy.call, {"optimizer": type("O", (), {"param_groups": [group]})})
    assert group["lr"] == 0.03  # the rate that it had otherwise


def test_a_remedy_takes_the_weight_decay_of_the_very_group(second):
    case = next(c for c in second.CASES if c.name.startswith("SGD with a decay of 0.5"))
    watch = case.run(0)
    finding = relume.diagnose(watch)[0]
    (optimizer,) = watch.optimizers
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
    exec(finding.remedies[0].call, {"model": watch.model, "optimizer": optimizer})
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.0]


def test_the_remedy_that_revives_is_a_call_that_does(second):
    case = next(c for c in second.CASES if c.name.startswith("biases of the lower layer pushed down"))
    watch = case.run(0)
    model, (optimizer,) = watch.model, watch.optimizers
    batches = [torch.randn(512, model[0].in_features)]
    (call,) = {r.call for f in relume.diagnose(watch) for r in f.remedies if r.call.startswith("relume.revive")}
    census = relume.census(model, batches)
    assert census.dead > 32
    exec(call, {"relume": relume, "model": model, "optimizer": optimizer, "census": census, "batches": batches})
    assert relume.census(model, batches).dead < census.dead / 2
