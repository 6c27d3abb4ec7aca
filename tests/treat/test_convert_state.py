"""What a conversion leaves behind: state dicts that say what they need, bitwise undo, records that are plain data."""

import contextlib
import io
import json

import pytest
import torch
from torch import nn

import relume
from relume.treat.convert.steps import KEY


def fresh(net):
    torch.manual_seed(1)
    return type(net)()


@pytest.mark.parametrize("to", ["drelu", "prelu", "leaky_relu(0.2)"])
def test_undo_is_bitwise_whatever_was_converted(net, images, snapshot, to):
    net.blocks[0].relu.register_forward_hook(lambda *a: None)
    before = snapshot(net)
    conversion = relume.convert(net, to, batches=images)
    assert len(conversion.converted) == 9
    with pytest.raises(AssertionError):
        snapshot.same(before, snapshot(net))
    conversion.undo()
    snapshot.same(before, snapshot(net))
    with pytest.raises(relume.RelumeError, match="undone"):
        conversion.undo()


def test_names_of_sites_are_the_same_after_undo_and_modules_keep_theirs(net, images):
    names = list(relume.census(net, images))
    conversion = relume.convert(net, "drelu", batches=images)
    now = list(relume.census(net, images))
    assert now == [s.after for s in conversion]
    conversion.undo()
    assert list(relume.census(net, images)) == names


def test_undo_refuses_where_something_was_put_in_the_place_since(net, images):
    conversion = relume.convert(net, "drelu", batches=images)
    net.blocks[0].relu = nn.ReLU()
    with pytest.raises(relume.RelumeError, match=r"'blocks\.0\.relu' changed after this conversion"):
        conversion.undo()
    assert isinstance(net.blocks[1].relu, relume.nn.DReLU)


@pytest.mark.parametrize("to", ["drelu", "leaky_relu(0.2)"])
def test_loading_into_an_unconverted_model_fails_and_names_convert(net, images, to):
    relume.convert(net, to, batches=images)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"converted_by_relume_convert\""):
        fresh(net).load_state_dict(net.state_dict())


@pytest.mark.parametrize("to", ["drelu", "prelu", "leaky_relu(0.2)"])
def test_a_state_dict_converts_a_fresh_model_and_is_loaded_into_it(net, images, to):
    relume.convert(net, to, batches=images)
    net(images)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = fresh(net)
    conversion = relume.convert(other, state)
    other.load_state_dict(state)
    assert torch.equal(other.eval()(images), net.eval()(images))
    assert set(conversion.parameters) == {
        k for k in dict(net.named_parameters()) if k not in dict(fresh(net).named_parameters())
    }
    conversion.undo()
    assert list(other.state_dict()) == list(fresh(net).state_dict())


def test_two_conversions_in_a_row_are_both_in_the_state_dict(net, images):
    relume.convert(net, "drelu", "blocks.*", batches=images)
    relume.convert(net, "prelu", ":relu*", batches=images)
    other = fresh(net)
    relume.convert(other, net.state_dict())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(images), net.eval()(images))


def test_an_unconverted_state_dict_loads_into_a_converted_model_with_strict_false(net, images):
    state = fresh(net).state_dict()
    relume.convert(net, "prelu", batches=images)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*converted_by_relume_convert"):
        net.load_state_dict(state)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all("activation" in k or "relu" in k or k == KEY for k in missing)
    assert torch.equal(net.out.weight, state["out.weight"])


def test_a_state_dict_of_another_model_is_refused_and_nothing_is_done(net, images, snapshot):
    other = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    relume.convert(net, "drelu", batches=images)
    before = snapshot(other)
    with pytest.raises(relume.RelumeError, match="model built otherwise than this Sequential"):
        relume.convert(other, net.state_dict())
    snapshot.same(before, snapshot(other))
    with pytest.raises(relume.RelumeError, match="not that of a model converted by relume"):
        relume.convert(net, other.state_dict())


def test_a_checkpoint_can_not_write_code(net, images):
    """The recipe names children; what is no plain name never reaches the compiler."""
    relume.convert(net, "drelu", batches=images)
    state = net.state_dict()
    text = bytes(state[KEY].tolist()).decode()
    evil = text.replace('"activation"', '"a(x) or __import__(1) or self.b"')
    assert evil != text
    state[KEY] = torch.tensor(list(evil.encode()), dtype=torch.uint8)
    with pytest.raises(relume.RelumeError, match="no name of a module"):
        relume.convert(fresh(net), state)


def test_a_module_of_the_users_own_is_not_in_the_recipe(images):
    class Own(nn.Module):
        def forward(self, x):
            return x.abs()

    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU())
    relume.convert(model, Own, batches=images)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU())
    with pytest.raises(relume.RelumeError, match="repeat the call"):
        relume.convert(other, model.state_dict())
    assert type(other[2]) is nn.ReLU


def test_a_conversion_is_plain_data_and_prints_as_a_table(net, images):
    import pickle

    conversion = relume.convert(net, "drelu", batches=images)
    data = json.loads(json.dumps(conversion.to_dict()))
    assert [s["outcome"] for s in data["sites"]].count("converted") == 9
    lines = str(conversion).splitlines()
    assert lines[0].startswith("9 of 10 sites converted to drelu; the output moved by at most ")
    assert len(lines) == 2 + len(conversion)
    assert "now blocks.0.relu_1" in str(conversion)
    kept = pickle.loads(pickle.dumps(conversion))
    assert kept == conversion
    with pytest.raises(relume.RelumeError, match="record without its model"):
        kept.undo()


def test_change_is_the_largest_difference_of_the_outputs_in_evaluation(net, images):
    net.eval()
    before = net(images)
    conversion = relume.convert(net, "elu", batches=images)
    assert conversion.change == pytest.approx(float((net(images) - before).detach().abs().max()), rel=1e-5)


def test_undo_keeps_the_order_of_children_where_a_function_was_an_attribute(snapshot):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    names = [n for n, _ in layer.named_modules()]
    conversion = relume.convert(layer, "prelu", batches=torch.randn(3, 5, 8))
    assert [n for n, _ in layer.named_modules()] != names
    conversion.undo()
    assert [n for n, _ in layer.named_modules()] == names


def test_converting_leaves_random_state_buffers_and_gradients_alone(net, images):
    net(images).sum().backward()
    state, mean = torch.get_rng_state(), net.blocks[0].bn1.running_mean.clone()
    grads = [p.grad.clone() for p in net.parameters()]
    relume.convert(net, "leaky_relu", batches=images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net.blocks[0].bn1.running_mean, mean)
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, net.parameters(), strict=True))
    assert net.training


@pytest.mark.parametrize("to", ["leaky_relu", lambda: Breaks()], ids=["done", "failed"])
def test_no_mode_and_no_global_hook_of_torch_is_left(net, images, to):
    hooks = torch.nn.modules.module
    with contextlib.suppress(ArithmeticError):
        relume.convert(net, to, batches=images)
    assert torch.overrides._get_current_function_mode_stack() == []
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


class Breaks(nn.Module):
    def forward(self, x):
        raise ArithmeticError("on purpose")


@pytest.mark.parametrize("to", [Breaks, lambda: 3, lambda a, b: None], ids=["runs not", "no module", "arguments"])
def test_an_error_leaves_the_model_and_the_optimizer_untouched(net, images, snapshot, to):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    before, groups = snapshot(net), [list(g["params"]) for g in optimizer.param_groups]
    with pytest.raises((ArithmeticError, TypeError)):
        relume.convert(net, to, batches=images, optimizer=optimizer)
    snapshot.same(before, snapshot(net))
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [[id(p) for p in g] for g in groups]


def test_wrong_arguments_are_told(net, images, snapshot):
    before = snapshot(net)
    with pytest.raises(relume.RelumeError, match=r"no activation is called 'drelo'; close to it: .*drelu"):
        relume.convert(net, "drelo", batches=images)
    with pytest.raises(relume.RelumeError, match=r"no site is called 'block\.\*'; there are: :relu, blocks\.0\.relu"):
        relume.convert(net, "drelu", "block.*", batches=images)
    with pytest.raises(ValueError, match="alpha must lie"):
        relume.convert(net, "drelu(alpha=2)", batches=images)
    with pytest.raises(TypeError, match="to= is the name of an activation"):
        relume.convert(net, 3, batches=images)
    with pytest.raises(ValueError, match="norm is one of 'batch', 'layer'"):
        relume.convert(net, "relu", norm="bn", batches=images)
    with pytest.raises(ValueError, match="don't go together"):
        relume.convert(net, "drelu", norm="batch", preserve=True, batches=images)
    with pytest.raises(relume.RelumeError, match="yielded nothing"):
        relume.convert(net, "drelu", batches=[])
    with pytest.raises(relume.RelumeError, match="applies no activation"):
        relume.convert(nn.Linear(2, 2), "drelu")
    snapshot.same(before, snapshot(net))


def test_models_that_can_not_be_converted_say_what_to_do_first():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(relume.RelumeError, match="convert the model that was scripted"):
        relume.convert(torch.jit.script(model), "drelu")
    with pytest.raises(relume.RelumeError, match="run the model once first"):
        relume.convert(nn.Sequential(nn.LazyLinear(2), nn.ReLU()), "drelu")
    wrapped = type("DistributedDataParallel", (nn.Module,), {})()
    wrapped.module = model
    with pytest.raises(relume.RelumeError, match="convert the model inside, then wrap it anew"):
        relume.convert(wrapped, "drelu")
