"""DistributedDataParallel around a compiled model, or compiled itself: the look aside talks to no other rank."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import relume

FULL = {"backend": "aot_eager"}


@pytest.fixture(autouse=True)
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def around(model):
    ddp = DistributedDataParallel(torch.compile(model, **FULL))
    return ddp, ddp


def compiled(model):
    ddp = torch.compile(DistributedDataParallel(model), **FULL)
    return ddp, ddp


def compiled_and_only_the_inner_watched(model):
    return torch.compile(DistributedDataParallel(model), **FULL), model


@pytest.mark.parametrize("how", [around, compiled, compiled_and_only_the_inner_watched])
def test_census_as_eager_and_each_pass_calls_other_ranks_once(lab, how, monkeypatch):
    calls = []
    pre_forward = DistributedDataParallel._pre_forward
    monkeypatch.setattr(
        DistributedDataParallel, "_pre_forward", lambda self, *a, **k: (calls.append(1), pre_forward(self, *a, **k))[1]
    )
    expected = {(phase, name): row[:3] for (phase, name), row in lab.eager().items()}

    def run(watching):
        torch._dynamo.reset()
        calls.clear()
        model = lab.make()
        optimizer = lab.adam(model)
        call, watched = how(model)
        watch = relume.watch(watched, optimizer, every=2) if watching else None
        outcome = lab.train(model, call, optimizer)
        if watch is not None:
            watch.close()
        return outcome, len(calls), watch

    bare, bare_calls, _ = run(False)
    got, got_calls, watch = run(True)
    assert lab.same(bare, got)
    assert got_calls == bare_calls
    found = {}
    for (phase, name), row in lab.counted(watch).items():
        found[phase, name.removeprefix("module").removeprefix(".")] = row[:3]
    assert found == expected
