"""What a compaction is to have and to hold: figures, a table, a file, and exports."""

import io
import json
import warnings

import pytest
import torch
from torch import nn

import relume
from relume.prove.compact import Recipe, RecipeError


def cnn():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2),
    ).eval()  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(300, 1, 8, 8)


@pytest.fixture
def net(kill):
    model = cnn()
    kill(model[1], range(8), 1.0)
    kill(model[1], [0, 3, 4])
    kill(model[7], [2])
    kill(model[7], [4], 1.0)
    with torch.no_grad():
        model[4].weight[1] = -model[4].weight[1].abs()
    return model


@pytest.fixture
def compaction(net, x):
    return relume.compact(net, relume.census(net, x), x)


def test_figures_of_before_and_after(net, compaction):
    small = compaction.model
    assert small[0].out_channels == 5
    assert small[1].num_features == 5
    assert small[4].in_channels == 5
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert compaction.parameters == (count(net), count(small))
    conv = 64 * 9 * 8 * 2 + 4 * 9 * 8 * 6 * 2
    assert compaction.flops[0] == conv + 24 * 5 * 2 + 5 * 2 * 2, "per input, two for a multiplication and an addition"
    left = small[4].out_channels, small[7].out_features
    conv = 64 * 9 * 5 * 2 + 4 * 9 * 5 * left[0] * 2
    assert compaction.flops[1] == conv + 4 * left[0] * left[1] * 2 + left[1] * 2 * 2
    assert compaction.latency is None
    assert compaction.inputs == 300
    assert compaction.units == {"2": 8, "5": 6, "8": 5}


def test_latency_is_measured_when_asked_for(net, x):
    compaction = relume.compact(net, relume.census(net, x), x, latency=True)
    before, after = compaction.latency
    assert before > 0
    assert after > 0
    assert " ms" in str(compaction)


def test_it_says_on_what_it_rests(compaction, net, x):
    assert compaction.basis == "census"
    bound = compaction.death_bound["2"]
    assert bound == pytest.approx(1 - 0.05 ** (1 / 300))
    assert f"p < {bound:.2g}" in compaction.exact
    assert "on the data seen" in compaction.exact


def test_the_table_names_sites_and_reasons(kill, x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2))
    kill(model[1], [1, 2])
    compaction = relume.compact(model, relume.census(model, x), x)
    lines = str(compaction).splitlines()
    assert lines[0].startswith("0 of 6 units removed · parameters")
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("2 "))
    assert row.split()[:4] == ["2", "6", "0", "2"]
    assert "normalizes all" in " ".join(lines)
    assert repr(compaction).startswith("Compaction(0 units removed")


def test_plain_data(compaction):
    data = json.loads(json.dumps(compaction.to_dict()))
    assert data["sites"]["2"]["removed"] == [0, 3, 4]
    assert data["sites"]["2"]["units"] == 8
    assert data["basis"] == "census"
    assert data["parameters"] == list(compaction.parameters)
    assert 0 <= data["difference"] < 1.2e-5


def test_a_file_rebuilds_the_model_in_a_fresh_one(compaction, x, tmp_path):
    path = compaction.save(tmp_path / "new" / "small.pt")
    for fresh in (cnn, cnn()):
        built = relume.rebuild(fresh, path)
        assert [m.extra_repr() for m in built.modules()] == [m.extra_repr() for m in compaction.model.modules()]
        assert torch.equal(built.eval()(x), compaction.model(x))
    assert path.stat().st_size < 20_000


def test_a_bias_that_was_added_is_rebuilt(kill, tmp_path):
    def make():
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 3, bias=False))

    model, x = make(), torch.randn(300, 4)
    kill(model[0], [2], bias=100.0)
    compaction = relume.compact(model, relume.census(model, x), x)
    built = relume.rebuild(make, compaction.save(tmp_path / "small.pt"))
    assert torch.equal(built(x), compaction.model(x))


def test_shared_weights_stay_shared(kill, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.d = nn.Linear(4, 6)
            self.d.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.relu(self.a(x)) + torch.relu(self.d(x)))

    model, x = Tied(), torch.randn(300, 4)
    for layer in (model.a, model.d):
        kill(layer, range(6), 2.0)
        kill(layer, [0, 4])
    compaction = relume.compact(model, relume.census(model, x), x)
    assert compaction.removed == {":relu": (0, 4), ":relu#1": (0, 4)}
    assert compaction.model.a.weight is compaction.model.d.weight
    built = relume.rebuild(Tied, compaction.save(tmp_path / "small.pt"))
    assert built.a.weight is built.d.weight
    assert torch.equal(built(x), compaction.model(x))


def test_a_model_of_other_sizes_is_not_touched_by_a_recipe(compaction, tmp_path):
    path = compaction.save(tmp_path / "small.pt")
    other = cnn()
    other[4] = nn.Conv2d(8, 7, 3, bias=False)
    with pytest.raises(
        RecipeError, match=r"in which 4.weight is \[6, 8, 3, 3\]; in this Sequential it is \[7, 8, 3, 3\]"
    ):
        relume.rebuild(other, path)
    assert other[0].weight.shape[0] == 8
    with pytest.raises(RecipeError, match="there is none"):
        relume.rebuild(nn.Sequential(nn.ReLU()), path)
    with pytest.raises(TypeError, match="made a int"):
        relume.rebuild(lambda: 3, path)


def test_a_file_that_is_none_is_refused(tmp_path, compaction):
    path = tmp_path / "x.pt"
    with pytest.raises(RecipeError, match="there is no file"):
        relume.rebuild(cnn, path)
    path.write_bytes(b"not a model")
    with pytest.raises(RecipeError, match="can't be read"):
        relume.rebuild(cnn, path)
    torch.save(compaction.model.state_dict(), path)
    with pytest.raises(RecipeError, match="holds no recipe"):
        relume.rebuild(cnn, path)
    torch.save({"relume_recipe": '{"format": 99}', "state_dict": {}}, path)
    with pytest.raises(RecipeError, match="format 99"):
        relume.rebuild(cnn, path)
    torch.save({"relume_recipe": '{"format": 1}', "state_dict": {}}, path)
    with pytest.raises(RecipeError, match="this is no recipe of relume"):
        relume.rebuild(cnn, path)
    torch.save({"relume_recipe": compaction.recipe.to_json(), "state_dict": cnn().state_dict()}, path)
    with pytest.raises(RecipeError, match="do not fit"):
        relume.rebuild(cnn, path)
    assert Recipe.from_json(compaction.recipe.to_json()) == compaction.recipe


def test_it_exports_as_the_original_does(compaction, x):
    small, want = compaction.model, compaction.model(x[:4])
    exported = torch.export.export(small, (x[:4],)).module()
    torch.testing.assert_close(exported(x[:4]), want)
    torch.testing.assert_close(torch.jit.script(small)(x[:4]), want)
    torch.testing.assert_close(torch.jit.trace(small, x[:4])(x[:4]), want)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(small, (x[:4],), dynamo=True, verbose=False)
    program.save(file)
    shapes = [list(i.shape) for i in program.model.graph.initializers.values() if "weight" in (i.name or "")]
    assert [5, 1, 3, 3] in [[int(d) for d in s] for s in shapes]


def test_a_compacted_model_is_compacted_again(compaction, x):
    """Nothing is left to remove, and relume reads it as any model."""
    again = relume.compact(compaction.model, relume.census(compaction.model, x), x)
    assert again.removed == {}
    assert again.parameters == (compaction.parameters[1],) * 2
