"""torch.func: training by `functional_call` and `grad` is counted; inside `vmap` nothing is, which is said at once."""

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, grad_and_value, jvp, stack_module_state, vmap

import relume
from relume.errors import RelumeWarning


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(3, 6), nn.Linear(6, 1)
        with torch.no_grad():
            self.fc.bias[4] = -50.0

    def forward(self, x):
        return self.out(F.relu(self.fc(x)))


def fired(parameters, x):
    return (F.linear(x, parameters["fc.weight"], parameters["fc.bias"]) > 0).sum(0)


def test_functional_call_in_a_loop_is_counted_with_the_weights_it_is_given():
    model = Net()
    with relume.watch(model, every=1) as watch:
        expected = 0
        parameters = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
        for _ in range(3):
            x = torch.randn(16, 3)
            expected = expected + fired(parameters, x)
            loss = functional_call(model, parameters, (x,)).square().mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            parameters = {k: p - 0.5 * g for (k, p), g in zip(parameters.items(), gradients, strict=True)}
    census = watch.census("all")[":relu"]
    assert census.fired.tolist() == expected.tolist()
    assert census.inputs == 48
    assert census.site.producers == ("fc",)


@pytest.mark.parametrize("transform", [grad, lambda f: lambda *a: grad_and_value(f)(*a)[0]])
def test_a_training_by_func_grad_is_counted_and_unchanged(transform):
    def train(watched):
        torch.manual_seed(0)
        model = Net()
        watch = relume.watch(model, every=1) if watched else None
        parameters = {k: v.detach() for k, v in model.named_parameters()}
        expected = torch.zeros(6, dtype=torch.long)

        def loss(p, x):
            return functional_call(model, p, (x,)).square().mean()

        for _ in range(3):
            x = torch.randn(16, 3)
            expected += fired(parameters, x)
            gradients = transform(loss)(parameters, x)
            parameters = {k: p - 0.5 * gradients[k] for k, p in parameters.items()}
        if watch:
            watch.close()
        return {k: p.tolist() for k, p in parameters.items()}, expected.tolist(), watch

    bare, _, _ = train(False)
    got, expected, watch = train(True)
    assert got == bare
    census = watch.census("all")[":relu"]
    assert census.fired.tolist() == expected
    assert census.inputs == 48
    assert watch.step == 3


def test_an_input_that_a_gradient_is_taken_of_is_counted():
    model = Net()
    x = torch.randn(16, 3)
    with relume.watch(model, every=1) as watch:
        grad(lambda x: model(x).sum())(x)
        grad(lambda x: grad(lambda y: model(y).sum())(x).sum())(x)
    assert watch.census("all")[":relu"].fired.tolist() == (2 * fired(dict(model.named_parameters()), x)).tolist()


def test_an_ensemble_under_vmap_is_said_at_once_to_be_out_of_sight_and_no_number_is_given():
    members = [Net() for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    base = members[0]
    x = torch.randn(8, 3)
    bare = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    with relume.watch(base, every=1) as watch:
        with pytest.warns(RelumeWarning, match=r"Net is called inside torch\.vmap.*relume\.census.*each member"):
            watched = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RelumeWarning)
            vmap(grad(lambda p, x: functional_call(base, p, (x,)).sum()), (None, 0))(dict(base.named_parameters()), x)
            jvp(lambda x: base(x), (x,), (x,))
    assert torch.equal(bare, watched)
    assert not watch.sites
    assert len(watch.notes) == 1


def test_several_optimizers_frozen_parts_and_an_averaged_copy():
    model = Net()
    model.out.requires_grad_(False)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizers = [torch.optim.SGD([model.fc.weight], 0.1), torch.optim.Adam([model.fc.bias], 0.1)]
    with relume.watch(model, optimizers, every=1) as watch, relume.watch(average, every=1) as averaged:
        late = copy.deepcopy(model)  # a copy taken under watch is not watched
        for _ in range(3):
            model(torch.randn(8, 3)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
            average.update_parameters(model)
            late(torch.randn(8, 3))
        average.eval()
        average(torch.randn(5, 3))
    assert watch.step == 3
    assert watch.census("all")[":relu"].inputs == 24
    assert averaged.census("all", phase="eval")["module:relu"].inputs == 5


class Digits(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return torch.full((3,), float(i))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_that_load_data_know_nothing_of_the_watch(start):
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"{start} is not there on this system")
    model = Net()
    # A spawned worker would have to import this file.
    data = torch.utils.data.TensorDataset(torch.randn(32, 3)) if start == "spawn" else Digits()
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=1, multiprocessing_context=start)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with relume.watch(model, optimizer, every=1) as watch:
        for x in loader:
            model(x[0] if isinstance(x, list) else x).sum().backward()
            optimizer.step()
    assert watch.census("all")[":relu"].inputs == 32


def test_replicas_called_in_several_threads_are_counted_by_whole_passes_and_leave_no_mode():
    model = Net()
    x = [torch.randn(8, 3) for _ in range(4)]
    with torch.no_grad():
        expected = [model(v) for v in x]
    with relume.watch(model, every=1) as watch, torch.no_grad():
        results = [None] * 4

        def call(i):
            with torch.no_grad():
                results[i] = model(x[i])

        threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(map(torch.equal, results, expected))
    assert watch.census("all", phase="eval")[":relu"].inputs in (8, 16, 24, 32)
