"""Reproductions: their machinery against plain training and known answers, and each of them at a tiny size."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from relume.cli import app
from relume.errors import RelumeError
from relume.init import born_dead_probability
from relume.lab import reproduce
from relume.lab.reproduce import dohare2024, lu2019, redo, sae_resampling, show, stack, stored
from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.reproduction import Reproduction, Row, figure, statement
from relume.lab.stats import Interval
from relume.lab.verdicts import Claim

# Width × depth → share born dead and its standard error, counted over 20,000 random networks (8,000 at depth 50).
COUNTED = {
    (2, 2): (0.160, 0.003), (2, 5): (0.619, 0.003), (2, 10): (0.911, 0.002), (2, 20): (0.995, 0.001),
    (3, 2): (0.044, 0.001), (3, 5): (0.293, 0.003), (3, 10): (0.632, 0.003), (3, 20): (0.903, 0.002),
    (4, 5): (0.112, 0.002), (4, 10): (0.334, 0.003), (4, 20): (0.649, 0.003), (4, 50): (0.947, 0.003),
    (5, 10): (0.152, 0.003), (5, 20): (0.374, 0.003), (5, 50): (0.764, 0.005),
    (8, 10): (0.010, 0.001), (8, 20): (0.037, 0.001), (8, 50): (0.139, 0.004),
}  # fmt: skip


def a_row(agrees=True, **changes):
    row = Row("mean | slope", "0.5", Interval(0.4, 0.3, 0.55, n=5), agrees, "inside our interval", True)
    return dataclasses.replace(row, **changes)


def a_result(name="redo", rows=None, **changes):
    found = Reproduction(name, "A title", "A paper", tuple(rows or [a_row()]), "3 seeds", ("a note",), 0, False, 1.5)
    return dataclasses.replace(found, **changes)


def test_the_theory_of_born_dead_networks_is_what_an_independent_count_gave():
    off = [(float(born_dead_probability([n] * d)) - share) / error for (n, d), (share, error) in COUNTED.items()]
    assert max(map(abs, off)) < 3.5


def test_lu2019_counts_what_the_theory_says_and_rai_saves_networks():
    rows, _, _ = lu2019.run(scale=0.03)
    table = [row for row in rows if row.what.startswith("born dead")]
    assert len(table) == 25
    assert all(row.same_setting for row in table)
    assert sum(row.agrees for row in table) >= 24
    assert [row.agrees for row in rows if "less RAI" in row.what and "born dead" in row.what] == [True, True]


def test_networks_that_are_born_dead_stay_constant_and_shallow_wide_ones_fit():
    def drawn():
        return torch.Generator().manual_seed(0)

    deep = lu2019.collapses(200, "he", 0, drawn())
    assert 0.8 < deep.double().mean() < 0.98  # before any step: the share born dead, 0.911
    after = lu2019.collapses(200, "he", 30, drawn())
    assert after[deep].double().mean() > 0.97  # no gradient reaches a dead one; a few were alive, with a tiny output
    assert lu2019.collapses(200, "he", 0, drawn(), depth=1).double().mean() < 0.7


def test_the_interval_of_a_ratio_holds_it():
    rng = np.random.default_rng(0)
    hits = [lu2019.ratio(int(a), int(b), 200) for a, b in rng.binomial(200, [0.3, 0.6], (600, 2))]
    assert 0.92 < np.mean([0.5 in h for h in hits]) < 0.98


@pytest.mark.parametrize("activation", ["relu", "prelu", "elu"])
@pytest.mark.parametrize("convolutions", [(), (4, 5)])
def test_a_member_of_a_stack_is_trained_as_it_would_be_alone(activation, convolutions):
    seeds = (3, 8, 5)
    x, y, _, _ = digits(seeds, 60)
    together = stack.Stack(seeds, (1, 8, 8), convolutions, (12,), 10, activation)
    alone = plain(together, 1, convolutions, activation)
    optimizer = torch.optim.SGD(together.parameters(), lr=0.05, momentum=0.9)
    stack.train(together, x, y, seeds, optimizer=optimizer, epochs=3, batch=20)

    optimizer = torch.optim.SGD(alone.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(8 + 10_000)
    for _ in range(3):
        rows = torch.randperm(60, generator=order)
        for chosen in rows.split(20):
            loss = F.cross_entropy(alone(x[1][chosen]), y[1][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    loss, accuracy = stack.evaluate(together, x, y)
    out = alone(x[1]).detach()
    assert float(loss[1]) == pytest.approx(float(F.cross_entropy(out, y[1])), rel=1e-4)
    assert float(accuracy[1]) == float((out.argmax(1) == y[1]).double().mean())
    if activation == "prelu":
        learnt = torch.stack([m.weight.mean() for m in alone if isinstance(m, nn.PReLU)])
        assert torch.allclose(together.slopes()[1], learnt, rtol=1e-4)
        assert (learnt != 0.25).all()


def plain(together, member, convolutions, activation):
    """The same network as torch modules, with the member's weights."""
    layers = []
    for i, (weight, bias) in enumerate(zip(together.weights, together.biases, strict=True)):
        shape = weight.shape[1:]
        convolution = i < len(convolutions)
        if i == len(convolutions):
            layers.append(nn.Flatten())
        layer = nn.Conv2d(shape[1], shape[0], 3, padding=1) if convolution else nn.Linear(shape[1], shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight[member])
            layer.bias.copy_(bias[member])
        layers.append(layer)
        if i < len(together.activations):
            layers.append({"relu": nn.ReLU, "elu": nn.ELU, "prelu": lambda: nn.PReLU(shape[0])}[activation]())
        if i == 0 and convolution:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def test_kept_outputs_are_each_hidden_layers_by_unit():
    x, _, _, _ = digits((0, 1), 50)
    kept = []
    stack.Stack((0, 1), (1, 8, 8), (4,), (6,), 10, "relu")(x[:, :7], kept)
    assert [tuple(k.shape) for k in kept] == [(2, 7, 4, 64), (2, 7, 6, 1)]


def test_rrelu_draws_slopes_in_training_and_takes_their_mean_in_evaluation():
    act = stack.Activation("rrelu", 1, 4)
    z = torch.full((1, 500, 4), -1.0)
    drawn = -act.train()(z)
    assert 1 / 8 <= float(drawn.min()) < 0.14 < 0.32 < float(drawn.max()) <= 1 / 3
    assert torch.allclose(-act.eval()(z), torch.tensor(11 / 48))


def test_digits_are_split_anew_per_seed_without_overlap_and_standardized_by_the_training_part():
    x, y, x_test, y_test = digits((0, 1), 1000)
    assert x.shape == (2, 1000, 1, 8, 8)
    assert x_test.shape == (2, 797, 1, 8, 8)
    assert float(x[0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(x[0].std()) == pytest.approx(1, abs=1e-3)
    levels = x[0].unique()  # 17 shades
    assert len(levels) == 17
    assert ((x_test[0].flatten()[:, None] - levels).abs().amin(1) < 1e-5).all()
    assert not torch.equal(y[0], y[1])
    assert torch.equal(torch.cat([y[0], y_test[0]]).bincount(), torch.cat([y[1], y_test[1]]).bincount())
    assert torch.equal(digits((0,), 1000)[0][0], x[0])


def test_recycling_leaves_fewer_dormant_units():
    without, _ = redo.train(0, True, False, 2, 200)
    treated, losses = redo.train(0, True, True, 2, 200)
    assert treated[-1] < without[-1]
    assert all(np.isfinite(losses))


def test_labels_that_stay_are_learnt_and_shuffled_ones_are_hard():
    _, still = redo.train(0, False, False, 1, 150)
    _, moving = redo.train(0, True, False, 1, 150)
    assert still[0] < 0.3 < moving[0]


def test_continual_backpropagation_is_told_from_plain_only_by_its_replacements():
    plainly, dead = dohare2024.train(0, 0.0, 3)
    continually, _ = dohare2024.train(0, 0.01, 3)
    assert plainly[0] > 0.3
    assert 0 <= dead <= 1
    assert plainly != continually
    assert dohare2024.train(0, 0.0, 3)[0] == plainly


def test_resampling_makes_dead_latents_fire(monkeypatch):
    monkeypatch.setattr(sae_resampling, "LR", 0.02)  # kills many
    data = sae_resampling.activations(0)
    seen = []

    def watched(model, *args, **kwargs):
        def dead():
            return int((model.latents(data).detach() <= 0).all(0).sum())

        before = dead()
        sae_resampling_revive(model, *args, **kwargs)
        seen.append((before, dead()))

    sae_resampling_revive = sae_resampling.revive
    monkeypatch.setattr(sae_resampling, "revive", watched)
    share, loss, error, fires = sae_resampling.train(0, data, 128, 160, True, True)
    assert len(seen) == 4
    assert seen[0][0] > 5
    assert all(after == 0 for _, after in seen)
    assert 0 <= share < 1
    assert 0 < error < loss
    assert 0 < fires <= 128


def test_a_centred_autoencoder_starts_at_the_mean():
    data = torch.randn(50, 8) + 3
    generator = torch.Generator().manual_seed(0)
    model = sae_resampling.Autoencoder(data, 16, True, generator)
    assert torch.allclose(model.decoder.bias, data.mean(0))
    assert torch.allclose(model.decoder.weight.norm(dim=0), torch.ones(16))
    assert not sae_resampling.Autoencoder(data, 16, False, generator).decoder.bias.any()


@pytest.mark.parametrize("name", ["xu2015", "he2015", "clevert2015"])
def test_a_reproduction_run_twice_gives_the_same_rows_and_leaves_the_random_state(name):
    before = torch.get_rng_state()
    heard = []
    first = reproduce.reproduce(name, scale=0.04, progress=lambda done, what: heard.append(done))
    second = reproduce.reproduce(name, scale=0.04)
    assert first.rows == second.rows
    assert torch.equal(before, torch.get_rng_state())
    assert heard == sorted(heard)
    assert 0 <= heard[0] <= heard[-1] <= 1
    assert all(row.ours.low <= row.ours.estimate <= row.ours.high for row in first.rows)
    assert reproduce.reproduce(name, scale=0.04, seed=50).rows != first.rows


def test_the_bias_shift_of_each_activation_by_itself_is_the_theory():
    found = reproduce.reproduce("clevert2015", scale=0.04)
    figures = [row for row in found.rows if row.same_setting]
    assert [row.published for row in figures] == ["theory: 0.3989", "theory: 0.1605"]
    assert all(row.agrees for row in figures)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean lu2019"):
        reproduce.reproduce("lu2018")


def test_a_figure_agrees_when_it_lies_in_the_interval_and_a_statement_by_its_verdict():
    ours = Interval(0.5, 0.4, 0.6)
    assert figure("x", 0.41, "0.41", ours).agrees is True
    assert figure("x", 0.39, "0.39", ours).agrees is False
    claim = Claim("c", "It grows.", "paper", "growth")
    by_effect = {0.5: True, 0.0: None, -0.5: False}
    for effect, agrees in by_effect.items():
        assert statement(claim, Interval(effect, effect - 0.1, effect + 0.1, n=5), "ran").agrees is agrees


def test_results_are_stored_replaced_by_name_and_shown_on_a_page(tmp_path):
    path = tmp_path / "new" / "found.json"
    stored.add(path, [a_result("redo"), a_result("lu2019", title="First")])
    page = stored.add(path, [a_result("redo", [a_row(False), a_row(None)])])
    assert list(stored.read(path)) == ["lu2019", "redo"]
    assert stored.read(path)["redo"] == a_result("redo", [a_row(False), a_row(None)])
    text = page.read_text()
    assert page == path.with_suffix(".md")
    assert text.index("## lu2019: First") < text.index("## redo")
    assert "0 of 2 rows agree with what was published, 1 does not, 1 is open." in text
    assert "| 0.5 | mean \\| slope | 0.4 [0.3, 0.55] | no | inside our interval |" in text
    assert "- a note" in text


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "redo"}]', '[{"rows": [{}]}]'])
def test_a_file_that_holds_something_else_is_refused_and_left(tmp_path, text):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(RelumeError, match="does not hold stored reproductions"):
        stored.add(path, [a_result()])
    assert path.read_text() == text


def test_the_stored_page_in_docs_is_made_from_the_stored_results(pytestconfig):
    path = pytestconfig.rootpath / "docs" / "reproductions.json"
    found = stored.read(path)
    assert set(found) == set(reproduce.names())
    assert show.page(found.values()) == path.with_suffix(".md").read_text(encoding="utf-8")


def test_the_command_lists_runs_stores_and_prints_json(tmp_path):
    run = CliRunner().invoke
    listed = run(app, ["reproduce"]).output
    assert all(name in listed for name in reproduce.names())
    path = tmp_path / "found.json"
    shown = run(app, ["reproduce", "xu2015", "--scale", "0.04", "--store", str(path)])
    assert shown.exit_code == 0
    assert "rows agree with what was published" in shown.output.replace("\n", " ")
    printed = json.loads(run(app, ["reproduce", "xu2015", "--scale", "0.04", "--json"]).stdout)
    assert Reproduction.from_dict(printed[0]).rows == stored.read(path)["xu2015"].rows
    page = path.with_suffix(".md")
    text = page.read_text()
    page.unlink()
    assert json.loads(run(app, ["reproduce", "--store", str(path), "--json"]).stdout) == {"page": str(page)}
    assert page.read_text() == text


@pytest.mark.parametrize("arguments", [["lu2018"], ["lu2019", "--scale", "0"], ["lu2019", "--seed", "-1"]])
def test_the_command_refuses_wrong_arguments(arguments):
    assert CliRunner().invoke(app, ["reproduce", *arguments]).exit_code == 2
