"""What an optimizer remembers of the revived entries is forgotten, entry by entry, and of no other."""

import copy

import pytest
import torch
from torch import nn

import relume


class Lion(torch.optim.Optimizer):
    """A third party's: one moment of the parameter's shape (Chen et al. 2023)."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("m", torch.zeros_like(p))
                p.sub_(torch.sign(state["m"] * 0.9 + p.grad * 0.1), alpha=group["lr"])
                state["m"].lerp_(p.grad, 0.01)


OPTIMIZERS = {
    "SGD momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.5),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01, t0=1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "Lion": Lion,
}
# What an entry starts with, where that is not 0.
STARTS = {("Adagrad", "sum"): 0.5, ("Rprop", "step_size"): 0.01}


def trained(make, steps=3):
    """A net, trained for a while, whose units 1 and 4 have died since."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = make(model.parameters())
    x = torch.randn(64, 6)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        model[0].bias[[1, 4]] = -100
    return model, optimizer, x


def per_entry(optimizer, parameter):
    state = optimizer.state[parameter]
    return {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == parameter.shape}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_just_the_entries_of_revived_units_are_as_at_the_start(name):
    model, optimizer, x = trained(OPTIMIZERS[name])
    incoming, bias, outgoing = model[0].weight, model[0].bias, model[2].weight
    mine = {id(p): torch.zeros_like(p, dtype=torch.bool) for p in (incoming, bias, outgoing)}
    mine[id(incoming)][[1, 4]] = True
    mine[id(bias)][[1, 4]] = True
    mine[id(outgoing)][:, [1, 4]] = True
    before = {id(p): per_entry(optimizer, p) for p in model.parameters()}
    counts = [
        s["step"].clone() if torch.is_tensor(s["step"]) else s["step"] for s in optimizer.state.values() if "step" in s
    ]
    assert any(before.values())
    census = relume.census(model, [x], min_inputs=1)
    relume.revive(model, census, optimizer, units={"1": [1, 4]}, batches=[x])
    for p in model.parameters():
        for key, after in per_entry(optimizer, p).items():
            was = before[id(p)][key]
            changed = mine.get(id(p), torch.zeros_like(p, dtype=torch.bool))
            assert torch.equal(after[~changed], was[~changed])
            start = p.detach() if key == "ax" else torch.full_like(p, STARTS.get((name, key), 0.0))
            if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg") and name != "Adadelta" and changed.any():
                start = torch.full_like(p, float(was[~changed & (was > 0)].double().mean()))
                assert (start > 0).all()
            assert torch.equal(after[changed], start[changed]), key
    now = [s["step"] for s in optimizer.state.values() if "step" in s]
    assert all(torch.as_tensor(a).equal(torch.as_tensor(b)) for a, b in zip(counts, now, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_undo_is_bitwise_and_training_goes_on_as_if_nothing_had_been(name):
    model, optimizer, x = trained(OPTIMIZERS[name])
    twin, other = copy.deepcopy((model, optimizer))
    revival = relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    assert not torch.equal(model[0].weight, twin[0].weight)
    revival.undo()
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_revived_unit_does_not_jump_by_old_moments():
    """Adam with moments of a unit that died under large gradients: the reset unit moves as a new one would."""
    model, optimizer, x = trained(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    with torch.no_grad():
        optimizer.state[model[0].weight]["momentum_buffer"][1] = 1e6
    relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    assert float((model[0].weight - before)[1].abs().max()) < 1


@pytest.mark.parametrize("name", ["Adam", "AdamW fused", "RMSprop"])
def test_the_steps_after_a_revival_late_in_training_are_no_larger_than_others(name):
    """With second moments at 0 and counts of steps that go on they would be up to 6.6 times the rate; RMSprop's 10."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = OPTIMIZERS[name](model.parameters())
    optimizer.param_groups[0]["lr"] = 1e-3
    x = torch.randn(64, 6)

    def step():
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        (model(x) - torch.randn(64, 3)).square().mean().backward()  # noise: gradients stay of one size
        optimizer.step()
        return (model[0].weight.detach() - before).abs()

    usual = torch.stack([step().max() for _ in range(300)])[-100:]
    with torch.no_grad():
        model[0].bias[[1, 4]] = -100
    relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    revived = max(float(step()[[1, 4]].max()) for _ in range(20))
    assert 0 < revived <= 1.5 * float(usual.max())


def test_the_published_way_is_there_for_those_who_ask():
    model, optimizer, x = trained(OPTIMIZERS["Adam"])
    census = relume.census(model, [x], min_inputs=1)
    with pytest.raises(ValueError, match="second_moments is 'mean' or 'zero', not 'none'"):
        relume.revive(model, census, optimizer, batches=[x], second_moments="none")
    relume.revive(model, census, optimizer, batches=[x], second_moments="zero")
    assert not optimizer.state[model[0].weight]["exp_avg_sq"][[1, 4]].any()
    assert relume.treat.revive.Continual().second_moments == "zero"
    with pytest.raises(ValueError, match="second_moments"):
        relume.treat.revive.Continual(second_moments="none")


def test_a_parameter_without_other_entries_starts_with_empty_second_moments():
    model, optimizer, x = trained(OPTIMIZERS["Adam"])
    with torch.no_grad():
        model[0].bias.fill_(-100)
    relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    assert not optimizer.state[model[0].weight]["exp_avg_sq"].any()


def test_a_gradient_not_yet_used_is_forgotten_too():
    model, optimizer, x = trained(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    model[0].weight.grad.fill_(7)
    revival = relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    assert float(model[0].weight.grad[[1, 4]].abs().max()) == 0
    assert float(model[0].weight.grad[[0, 2]].min()) == 7
    revival.undo()
    assert float(model[0].weight.grad.min()) == 7


def test_several_groups_and_several_optimizers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    one = torch.optim.Adam([{"params": [model[0].weight]}, {"params": [model[0].bias], "lr": 0.1}], 0.01)
    two = torch.optim.SGD(model[2].parameters(), 0.01, momentum=0.9)
    x = torch.randn(64, 6)
    model(x).sum().backward()
    one.step()
    two.step()
    with torch.no_grad():
        model[0].bias[3] = -100
    census = relume.census(model, [x], min_inputs=1)
    with pytest.raises(relume.RelumeError, match=r"2\.weight.*no optimizer given \(Adam\) holds it"):
        relume.revive(model, census, one, batches=[x])
    revival = relume.revive(model, census, [one, two], batches=[x])
    assert set(revival.state) == {"Adam.exp_avg", "Adam.exp_avg_sq", "SGD.momentum_buffer"}
    assert float(one.state[model[0].bias]["exp_avg"][3]) == 0
    assert float(two.state[model[2].weight]["momentum_buffer"][:, 3].abs().max()) == 0


def test_master_weights_in_the_optimizer_follow_the_new_weights():
    """A model in bfloat16 whose optimizer holds float32 copies of its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    masters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    model.bfloat16()
    optimizer = torch.optim.Adam(masters, 0.01)
    x = torch.randn(64, 6, dtype=torch.bfloat16)
    model(x).sum().backward()
    for master, p in zip(masters, model.parameters(), strict=True):
        master.grad = p.grad.float()
    optimizer.step()
    with torch.no_grad():
        masters[1][3] = -100
        for master, p in zip(masters, model.parameters(), strict=True):
            p.copy_(master)
    relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    for master, p in zip(masters, model.parameters(), strict=True):
        assert torch.equal(master.to(torch.bfloat16), p)
    assert float(masters[1][3]) == 0
    assert not torch.equal(masters[0], model[0].weight.float())  # all others keep their precision
    assert float(optimizer.state[masters[0]]["exp_avg"][3].abs().max()) == 0


class Mastering(Lion):
    """Keeps a float32 copy of each parameter in its state, under a name of its own."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["precise"] = p.detach().float().clone()


def test_a_copy_of_the_weights_in_the_state_follows_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    optimizer = Mastering(model.parameters())
    x = torch.randn(64, 6, dtype=torch.bfloat16)
    with torch.no_grad():
        model[0].bias[3] = -100
    model(x).sum().backward()
    optimizer.step()
    relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])
    for p in model.parameters():
        assert torch.equal(optimizer.state[p]["precise"], p.float())


def test_state_that_is_not_kept_by_entry_is_refused():
    model, optimizer, x = trained(torch.optim.Adafactor)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    census = relume.census(model, [x], min_inputs=1)
    with pytest.raises(relume.RelumeError, match=r"Adafactor keeps 'row_var' for '.*weight' as \[\d, 1\]"):
        relume.revive(model, census, optimizer, batches=[x])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before[0].items())
    relume.revive(model, census, batches=[x])


def test_lbfgs_is_refused():
    model, _, x = trained(lambda p: torch.optim.SGD(p, 0.1))
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(relume.RelumeError, match="LBFGS keeps a history of whole steps"):
        relume.revive(model, relume.census(model, [x], min_inputs=1), optimizer, batches=[x])


def test_an_optimizer_of_another_model_is_refused():
    model, _, x = trained(lambda p: torch.optim.SGD(p, 0.1))
    other = torch.optim.Adam(nn.Linear(2, 2).parameters())
    with pytest.raises(relume.RelumeError, match=r"the optimizer \(Adam\) holds no parameter of this Sequential"):
        relume.revive(model, relume.census(model, [x], min_inputs=1), other, batches=[x])


def test_an_optimizer_that_has_not_stepped_has_nothing_to_forget():
    model, _, x = trained(lambda p: torch.optim.SGD(p, 0.1))
    revival = relume.revive(
        model, relume.census(model, [x], min_inputs=1), torch.optim.Adam(model.parameters()), batches=[x]
    )
    assert revival.state == ()
