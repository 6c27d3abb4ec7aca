"""`relume demo` on real data: one network dies, its sane twin does not, and the same seed says the same."""

import json

import pytest
from typer.testing import CliRunner

import relume
from relume import cli, demo


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo.run(out, seed=1, epochs=12, quiet=True)


def test_the_doomed_network_dies_and_the_sane_one_learns(done):
    result = done[1].to_dict()
    assert result["doomed"]["dead"] >= 80
    assert result["doomed"]["held_out_accuracy"] < 0.5
    assert result["sane"]["dead"] <= 20
    assert result["sane"]["held_out_accuracy"] > 0.95


def test_what_it_prints_is_what_its_run_files_hold(done):
    out, result = done[0], done[1].to_dict()
    for label in ("doomed", "sane", "untreated", "revived", "guarded"):
        run = relume.load(out / label)
        assert run.status == "finished"
        assert run.census().dead == result[label]["dead"]
        assert [f.to_dict() for f in run.diagnose()] == result[label]["findings"]
        assert [s.name for s in run.sites] == ["features.1", ":relu", ":relu#1"]
        assert [v for _, n, v in run.scalars if n == "held-out accuracy"][-1] == result[label]["held_out_accuracy"]


def test_the_report_compares_both(done):
    page = (done[0] / "report.html").read_text()
    assert "learning rate 0.3 (doomed)" in page
    assert "learning rate 0.02 (sane)" in page


def test_it_says_why_the_units_died_and_proves_it_by_replay(done):
    first, *_ = done[1].doomed.findings
    assert first.code == "killed-by-step"
    assert first.confirmation.confirmed is True
    assert first.confirmation.change == "lr 0.03 instead of 0.3"
    assert first.confirmation.dead <= first.confirmation.units / 4
    assert "were killed by large steps" in done[1].doomed.verdict
    page = (done[0] / "report.html").read_text()
    assert "Confirmed by replay" in page


def test_revival_in_place_keeps_the_output_and_brings_back_what_training_on_alone_does_not(done):
    result = done[1]
    assert len(result.revival) >= 80
    assert result.revival.change <= 1e-5
    assert result.untreated.accuracy < 0.5
    assert result.revived.accuracy > 0.7  # after six epochs
    low, high = result.doomed.accuracy, result.sane.accuracy
    assert result.guarded.accuracy >= low + 0.9 * (high - low)


def test_the_report_holds_what_the_guard_did(done):
    acts = done[1].to_dict()["acts"]
    assert {"revive", "lr"} <= {act["kind"] for act in acts}
    page = (done[0] / "report.html").read_text()
    assert 'id="treatment"' in page
    assert "lower the learning rate from 0.3 to 0.09" in page
    assert relume.load(done[0] / "guarded").about["acts"] == acts


def test_nothing_is_the_matter_with_the_sane_network(done):
    assert [f.severity for f in done[1].sane.findings if f.severity != "note"] == []
    assert done[1].sane.verdict.startswith("Nothing is the matter: ")
    assert "<b>Nothing is the matter.</b>" in (done[0] / "report.html").read_text()


def test_the_same_seed_says_the_same_and_an_earlier_demo_is_replaced(done):
    out, result = done
    assert demo.run(out, seed=1, epochs=12, quiet=True).to_dict() == result.to_dict()


def test_held_out_digits_are_never_trained_on():
    data = demo.Digits.load()
    seen = {tuple(x.flatten().tolist()) for x in data.x}
    assert (len(data.x), len(data.x_test)) == (1347, 450)
    assert not any(tuple(x.flatten().tolist()) in seen for x in data.x_test)


def test_the_command_prints_verdicts_accuracies_and_the_path_of_the_report(tmp_path):
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "d"), "--epochs", "3"])
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert "right on held-out digits" in words
    assert "Revived in place:" in words
    assert "(doomed):" in words
    assert "(sane):" in words
    assert "report.html" in words
    assert "under guard" in words


def test_as_json_it_prints_one_object_and_nothing_else(tmp_path):
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "d"), "--epochs", "2", "--json"])
    assert set(json.loads(result.output)) == {
        "report", "seed", "doomed", "sane", "untreated", "revived", "guarded", "revival", "acts",
    }  # fmt: skip
