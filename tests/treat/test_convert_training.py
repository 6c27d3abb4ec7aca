"""Training goes on through a conversion: optimizers and schedulers take new parameters, and functions need not jump."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import relume
from relume.treat.convert import Blend

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def mlp():
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 2))


def step(model, optimizer, x=X):
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_new_parameters_join_without_weight_decay_and_the_state_of_others_stays():
    model = mlp()
    optimizer = torch.optim.AdamW(
        [{"params": model[:2].parameters(), "lr": 0.01}, {"params": model[2:].parameters(), "lr": 0.001}],
        weight_decay=0.1,
    )
    step(model, optimizer)
    state = {id(p): copy.deepcopy(s) for p, s in optimizer.state.items()}
    conversion = relume.convert(model, "prelu", batches=X, optimizer=optimizer)
    assert conversion.parameters == ("1.weight", "3.weight")
    groups = optimizer.param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.01, 0.1, 2), (0.001, 0.1, 4), (0.01, 0, 1), (0.001, 0, 1),
    ]  # fmt: skip
    assert groups[2]["params"][0] is model[1].weight
    assert groups[3]["params"][0] is model[3].weight
    for p, s in optimizer.state.items():
        assert all(torch.equal(v, state[id(p)][k]) for k, v in s.items())
    slope = model[1].weight.clone()
    step(model, optimizer)
    assert not torch.equal(model[1].weight, slope)
    conversion.undo()
    assert len(optimizer.param_groups) == 2
    assert len(optimizer.state) == 6
    step(model, optimizer)


def test_where_nothing_decays_no_group_is_added():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    relume.convert(model, "prelu", batches=X, optimizer=optimizer)
    assert len(optimizer.param_groups) == 1
    step(model, optimizer)
    scheduler.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.5**e),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.StepLR(o, 1)], [2]
        ),
    ],
)
def test_a_scheduler_drives_the_new_group_as_it_does_the_old(make):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    scheduler = make(optimizer)
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        with pytest.raises(relume.RelumeError, match="pass scheduler="):
            relume.convert(model, "prelu", batches=X, optimizer=optimizer)
        assert type(model[1]) is nn.ReLU
    conversion = relume.convert(model, "prelu", batches=X, optimizer=optimizer, scheduler=scheduler)
    for _ in range(4):
        step(model, optimizer)
        scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        old, new = optimizer.param_groups
        assert old["lr"] == new["lr"]
    conversion.undo()
    step(model, optimizer)
    scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))


def test_parameters_of_exchanged_modules_leave_the_optimizer_and_come_back():
    model = mlp()
    model[1] = nn.PReLU(10)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    step(model, optimizer)
    slope, kept = model[1].weight, copy.deepcopy(optimizer.state[model[1].weight])
    order = [id(p) for p in optimizer.param_groups[0]["params"]]
    conversion = relume.convert(model, "relu", batches=X, optimizer=optimizer)
    assert all(p is not slope for p in optimizer.param_groups[0]["params"])
    assert slope not in optimizer.state
    conversion.undo()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == order
    assert all(torch.equal(v, kept[k]) for k, v in optimizer.state[slope].items())


def test_an_optimizer_of_another_model_is_refused_and_a_missing_one_is_noted():
    model = mlp()
    with pytest.raises(relume.RelumeError, match="holds no parameter of this Sequential"):
        relume.convert(model, "prelu", batches=X, optimizer=torch.optim.SGD(mlp().parameters(), 0.1))
    assert "2 new parameters are in no optimizer yet" in relume.convert(model, "prelu", batches=X).notes[-1]


@pytest.mark.parametrize("to", ["drelu", "gelu", "leaky_relu(0.2)", "prelu"])
def test_preserve_keeps_the_function_exactly_whatever_the_two_are(net, images, to):
    net.eval()
    before = net(images)
    conversion = relume.convert(net, to, batches=images, preserve=True)
    assert conversion.change == 0
    assert torch.equal(net(images), before)
    assert len(conversion.converted) == 9


def test_prelu_takes_over_a_slope_and_needs_no_blend():
    model = mlp()
    model[3] = nn.LeakyReLU(0.3)
    conversion = relume.convert(model, "prelu", batches=X, preserve=True)
    assert (model[1].weight.unique().tolist(), model[3].weight.unique().tolist()) == ([0.0], [pytest.approx(0.3)])
    assert conversion.change == pytest.approx(0, abs=1e-6)
    assert conversion.share == 1


def test_annealing_goes_from_the_old_function_to_the_new_in_so_many_steps():
    model, plain = mlp(), mlp()
    plain.load_state_dict(model.state_dict())
    relume.convert(plain, "leaky_relu(0.5)")
    old, new = model(X), plain(X)
    conversion = relume.convert(model, "leaky_relu(0.5)", batches=X, preserve=True, steps=4)
    assert [conversion.step() for _ in range(3)] == [0.25, 0.5, 0.75]
    h = model[0](X)
    assert torch.allclose(model[1](h), 0.25 * h.relu() + 0.75 * nn.functional.leaky_relu(h, 0.5))
    assert not torch.equal(model(X), old)
    assert conversion.step() == 1
    assert [type(m) for m in model] == [type(m) for m in plain]
    assert torch.equal(model(X), new)
    assert conversion.step() == 1
    with pytest.raises(ValueError, match="let go"):
        conversion.anneal(0.5)
    conversion.undo()
    assert torch.equal(model(X), old)


def test_a_checkpoint_in_the_midst_of_annealing_goes_on_where_it_was():
    model = mlp()
    conversion = relume.convert(model, "drelu", batches=X, preserve=True, steps=10)
    for _ in range(3):
        conversion.step()
    other = mlp()
    again = relume.convert(other, model.state_dict(), steps=10)
    other.load_state_dict(model.state_dict())
    assert isinstance(other[1], Blend)
    assert again.share == pytest.approx(0.3)
    assert torch.equal(other.eval()(X), model.eval()(X))
    assert again.step() == pytest.approx(0.4)
    again.anneal(1.0)
    conversion.anneal(1.0)
    assert list(other.state_dict()) == list(model.state_dict())
    last = mlp()
    relume.convert(last, model.state_dict())
    last.load_state_dict(model.state_dict())
    assert torch.equal(last.eval()(X), model(X))


def test_a_blend_is_one_site_of_the_old_name():
    model = mlp()
    relume.convert(model, "drelu", batches=X, preserve=True)
    assert list(relume.census(model, X)) == ["1", "3"]


def test_a_dead_network_of_digits_comes_to_life_when_converted_in_the_midst_of_training():
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        model[0].bias.fill_(-8)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)

    def train(steps):
        for i in range(steps):
            at = torch.arange(i * 64, i * 64 + 64) % 1500
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()

    def accuracy():
        model.eval()
        with torch.no_grad():
            right = (model(x[1500:]).argmax(1) == y[1500:]).float().mean()
        model.train()
        return float(right)

    train(150)
    assert relume.census(model, x[:1500], include="1").dead_fraction == 1
    assert accuracy() < 0.2
    relume.convert(model, "drelu", batches=x[:256], optimizer=optimizer)
    train(800)
    assert accuracy() > 0.8


def test_in_half_precision_annealing_still_comes_to_its_end():
    model = mlp().to(torch.bfloat16)
    conversion = relume.convert(model, "leaky_relu", preserve=True, steps=1000)
    model.to(torch.bfloat16)
    assert [conversion.step() for _ in range(1000)][-1] == 1
    assert type(model[1]) is nn.LeakyReLU


def test_a_slope_that_is_blended_out_is_trained_until_it_goes():
    model = mlp()
    model[1] = nn.PReLU(10)
    slope = model[1].weight
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    conversion = relume.convert(model, "gelu", batches=X, preserve=True, optimizer=optimizer)
    assert conversion.change == 0
    assert any(p is slope for p in optimizer.param_groups[0]["params"])
    conversion.anneal(0.5)
    step(model, optimizer)
    assert slope.grad.abs().sum() > 0
    conversion.anneal(1)
    assert not any(p is slope for p in optimizer.param_groups[0]["params"])
    conversion.undo()
    assert any(p is slope for p in optimizer.param_groups[0]["params"])
    assert model[1].weight is slope


def test_a_converted_model_trains_under_ddp(tmp_path, net, images):
    relume.convert(net, "prelu", batches=images)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        parallel(images).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
        with pytest.raises(relume.RelumeError, match="convert the model inside, then wrap it anew"):
            relume.convert(parallel, "drelu", batches=images)
    finally:
        torch.distributed.destroy_process_group()
