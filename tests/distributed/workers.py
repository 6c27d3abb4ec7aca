"""What each of several processes does in the tests of this folder: python workers.py FOLDER CASE…, under torchrun's
environment variables. The result of CASE on rank r is saved as FOLDER/CASE.r.

Weights and data are multiples of 1/4 and sums of their products are exact in float64, in whatever order they are
taken; so what is counted must not depend, not even in the last bit, on how the inputs are spread over processes.
"""

import contextlib
import gc
import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import relume
from relume.census.counts import ARRAYS
from relume.sites import tracker
from relume.watch import sync

FOLDER = Path(*sys.argv[1:2])
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Net(nn.Module):
    """A module and a function apply its activations; some units never fire, as their weights are negative."""

    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2, self.out = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Linear(9, 1)
        draw(self, 0)

    def forward(self, x):
        return self.out(F.relu(self.fc2(self.act(self.fc1(x)))))


class Branches(nn.Module):
    """The path is chosen by the caller, and the activations of all paths have the same name."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 7), nn.Linear(5, 1)
        draw(self, 0)

    def forward(self, x, path):
        total = 0
        for letter in path:
            h = F.relu(getattr(self, letter)(x))
            total = total + self.out(h[:, :5])
        return total


@torch.no_grad()
def draw(model, step):
    """New weights, the same on every rank, as if a step had been made; every third unit is dead at first."""
    model.double()
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.copy_(torch.randint(-4, 5, p.shape, generator=generator) / 4)
        if p.dim() == 2 and step < 8:
            p[::3] = -p[::3].abs()
        elif step < 8:
            p[::3] = -1


def batch(step, rank, rows=8):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(0, 5, (rows, 6), generator=generator).double() / 4


def table(census):
    """A census as plain tensors."""
    return {
        m.name: {
            "inputs": m.inputs, "samples": m.samples, "producers": m.site.producers, "consumers": m.site.consumers,
            "dead": m.dead, **{n: getattr(m.counts, n) for n in ARRAYS},
        }
        for m in census.sites
        if m.reached
    }  # fmt: skip


def told(watch, phases=("train",)):
    """All of a recording that ranks must agree on."""
    windows = [
        {"index": w.index, "steps": (w.first_step, w.last_step), "observed": w.observed, "complete": w.complete,
         **{p: table(watch.census_of(w, p)) for p in phases if p in w.counts}}
        for w in watch.windows
    ]  # fmt: skip
    return {"windows": windows, "sites": [s.to_dict() for s in watch.sites], "notes": watch.notes}


def trained(called, inputs, steps, watched=None, *, save=None, every=1, window=4, each=None, **more):
    """Train for some steps under watch; inputs(step) is a list of batches, whose gradients add up."""
    model = called.module if isinstance(called, DistributedDataParallel) else called
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with relume.watch(
        called if watched is None else watched, optimizer, every=every, window=window, min_inputs=1, save=save, **more
    ) as watch:
        for step in range(steps):
            parts = inputs(step)
            for i, x in enumerate(parts):
                last = i == len(parts) - 1 or not isinstance(called, DistributedDataParallel)
                with contextlib.nullcontext() if last else called.no_sync():
                    called(*(x if isinstance(x, tuple) else (x,))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if each is not None:
                each(step, watch)
            draw(model, step + 1)
    return watch


def joined(inputs):
    """The batches of all ranks as one, for one process."""
    return lambda step: [torch.cat([torch.cat(inputs(step, r)) for r in range(RANKS)])]


def alone(inputs, steps, **more):
    """What one process sees of the joined batches."""
    return told(trained(Net(), joined(inputs), steps, sync=False, **more))


# Cases, each run by all ranks


def ddp():
    """Uneven batches, none at all for the last rank in one step, and a window cut short."""

    def inputs(step, rank):
        return [batch(step, rank, 0 if rank and step == 5 else 8 - 3 * rank * (step == 9))]

    seen = []
    watch = trained(
        DistributedDataParallel(Net()), lambda step: inputs(step, RANK), 10, save=FOLDER / "run", every=2,
        on_window=lambda watch, window: seen.append(window.index),
    )  # fmt: skip
    result = told(watch), alone(inputs, 10, every=2), seen, watch.timeline("act").died_at
    dist.barrier()
    return (*result, told(relume.load(FOLDER / "run")), [p.name for p in FOLDER.rglob("*.sqlite")])


def accumulation():
    """Gradient accumulation under no_sync, the inner module watched."""

    def inputs(step, rank):
        return [batch(step, rank), batch(step + 50, rank, 3)]

    model = DistributedDataParallel(Net())
    return told(trained(model, lambda step: inputs(step, RANK), 8, model.module)), alone(inputs, 8)


def idle_rank():
    """The last rank makes its steps without calling the model, in the first window or in both."""

    def inputs(step, rank):
        return [batch(step, rank, 8)] if rank == 0 or step >= 4 else []

    def never(step, rank):
        return [batch(step, rank, 8)] if rank == 0 else []

    def one(inputs):
        joined_inputs = lambda step: [torch.cat([x for r in range(RANKS) for x in inputs(step, r)])]  # noqa: E731
        return told(trained(Net(), joined_inputs, 6, sync=False))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", relume.RelumeWarning)  # that it sees no calls is as it should be
        return [(told(trained(Net(), lambda step, i=i: i(step, RANK), 6)), one(i)) for i in (inputs, never)]


def branches():
    """Ranks take the paths in another order; one path is taken by one rank alone, and late."""
    paths = {0: ["a", "b", "ab", "b", "c", "a"], 1: ["b", "a", "ba", "a", "b", "b"]}
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    watch = trained(model, lambda step: [(batch(step, RANK), paths[RANK][step])], 6, window=2)
    both = trained(
        Branches(), lambda step: [(batch(step, r), paths[r][step]) for r in range(RANKS)], 6, window=2, sync=False
    )
    return told(watch), told(both)


def evaluation():
    """Only the first rank evaluates: within a window, and after the last step."""

    def inputs(step, rank):
        return [batch(step, rank)]

    def evaluate(model, watch):
        model.eval()
        with torch.no_grad():
            model(batch(77, 0, 20))
        model.train()

    def runs(called, watched_inputs, first, **more):
        each = lambda step, watch: evaluate(watch.model, watch) if step in (2, 8) and first else None  # noqa: E731
        return told(trained(called, watched_inputs, 9, each=each, **more), ("train", "eval"))

    mine = runs(DistributedDataParallel(Net()), lambda step: inputs(step, RANK), RANK == 0)
    return mine, runs(Net(), joined(inputs), True, sync=False)


def join():
    """Ranks of unequal numbers of steps, under DDP's join."""
    sync.PATIENCE = 0.4
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = {0: 10, 1: 7}
    with relume.watch(model, optimizer, every=1, window=4, min_inputs=1) as watch, model.join():
        for step in range(steps[RANK]):
            model(batch(step, RANK)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    sync.PATIENCE = 5.0
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with relume.watch(model, optimizer, every=1, window=4, min_inputs=1, sync=False) as one:
        for step in range(10):
            for r in range(RANKS):
                if step < steps[r]:
                    model(batch(step, r)).sum().backward()
            optimizer.step()
    return told(watch), {p: table(w.census("all")) for p, w in (("all", watch), ("one", one))}


def groups():
    """Added up by no group, by one that this rank is the only one of, and by one of all ranks."""
    small, whole = dist.new_group([0]), dist.new_group(list(range(RANKS)))
    return [
        table(trained(Net(), lambda step: [batch(step, RANK)], 4, sync=s).census()) for s in (False, small, whole)
    ]  # fmt: skip


def one_watches():
    """Only the first rank watches; afterwards the user makes a group of their own."""
    sync.PATIENCE = 0.3
    model = DistributedDataParallel(Net())
    began, caught, result = time.monotonic(), [], None
    if RANK == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", relume.RelumeWarning)
            result = told(trained(model, lambda step: [batch(step, RANK)], 8))
    else:
        for step in range(8):
            model(batch(step, RANK)).sum().backward()
    sync.PATIENCE = 5.0
    total = torch.ones(1)
    dist.all_reduce(total, group=dist.new_group(list(range(RANKS))))
    return result, [str(w.message) for w in caught], time.monotonic() - began, float(total)


def two_models():
    """Two watches at once, as of a GAN."""
    first, second = DistributedDataParallel(Net()), DistributedDataParallel(Net())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (first, second)]
    with (
        relume.watch(first, optimizers[0], every=1, window=2) as one,
        relume.watch(second, optimizers[1], every=1, window=3) as two,
    ):
        for step in range(6):
            for model, optimizer in zip((first, second), optimizers, strict=True):
                model(batch(step, RANK)).sum().backward()
                optimizer.step()
    return table(one.census("all")), table(two.census("all"))


# Training with floats, watched and bare: the same bits


def bits(model, wrap, watched, **more):
    """Train a network with dropout and Adam; all that training leaves."""
    torch.manual_seed(RANK)
    called = wrap(model)
    optimizer = torch.optim.Adam(called.parameters(), lr=0.01)
    watch = relume.watch(called, optimizer, every=2, window=3, **more) if watched else contextlib.nullcontext()
    with watch:
        for _ in range(8):
            loss = called(torch.randn(16, 6)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t  # noqa: E731
    state = [whole(v) for s in optimizer.state.values() for v in s.values()]
    census = table(watch.census("all")) if watched else None
    return [whole(p).detach().clone() for p in called.parameters()] + state + [torch.get_rng_state()], census


def floats():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))


def unchanged():
    """Whether parameters, optimizer state and random state are the same bits with a watch as without."""
    from torch.distributed.fsdp import fully_shard

    def sharded(model):
        for layer in (model[0], model[3]):
            fully_shard(layer)
        return fully_shard(model)

    def one(wrap):
        bare, watched = bits(floats(), wrap, False)[0], bits(floats(), wrap, True)[0]
        return len(bare), all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))

    return {
        "ddp": one(DistributedDataParallel),
        "static": one(lambda m: DistributedDataParallel(m, static_graph=True)),
        "fsdp": one(sharded),
    }


def fsdp():
    """Parameters spread over ranks, once as a whole and once leaf by leaf."""
    from torch.distributed.fsdp import fully_shard

    def run(model, inputs, **more):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with relume.watch(model, optimizer, every=1, window=3, min_inputs=1, **more) as watch:
            for step in range(5):
                model(inputs(step)).sum().backward()
                optimizer.step()
        return told(watch)

    results = []
    for shard in (lambda m: [fully_shard(m)], lambda m: [fully_shard(x) for x in (m.fc1, m.fc2, m)]):
        model = Net()
        shard(model)
        results.append(run(model, lambda step: batch(step, RANK)))
    one = run(Net(), lambda step: torch.cat([batch(step, r) for r in range(RANKS)]), sync=False)
    return results, one


def tensor_parallel():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = Net()
    plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (RANKS,)), plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", relume.RelumeWarning)
        with relume.watch(model, optimizer, every=1, window=2, min_inputs=1) as watch:
            for step in range(2):
                model(batch(step, 0)).sum().backward()
                optimizer.step()
    units = {name: len(row["fired"]) for name, row in table(watch.census()).items()}
    return watch.notes, [str(w.message) for w in caught], units


# Cases in which a rank fails; the others make steps of their own, so that nothing but relume could make them wait


def _alone_after(name, fail):
    waited = []
    dist.barrier()

    def each(step, watch):
        if step == 6 and fail():
            raise ValueError("out of data")
        waited.append(time.monotonic())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", relume.RelumeWarning)
        watch = trained(
            nn.Sequential(Net()), lambda step: [batch(step, RANK)], 40, save=FOLDER / f"{name}{RANK}", each=each
        )
    longest = max(b - a for a, b in itertools.pairwise(waited))
    saved = told(relume.load(FOLDER / f"{name}0")) if RANK == 0 else None
    return told(watch), [str(w.message) for w in caught], longest, saved


def raises():
    try:
        return _alone_after("raises", lambda: RANK == 1)
    except ValueError:
        time.sleep(2)  # it lives on: the others must not need its end to go on
        return (FOLDER / "raises1").exists()


def second_dies():
    return _alone_after("second", lambda: RANK == 1 and os.kill(os.getpid(), signal.SIGKILL))


def first_dies():
    return _alone_after("first", lambda: RANK == 0 and os.kill(os.getpid(), signal.SIGKILL))


def left_open():
    """Nobody closes the watch: it ends with the program."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = relume.watch(model, optimizer, every=1, window=4, save=FOLDER / "open")
    for step in range(6):
        model(batch(step, RANK)).sum().backward()
        optimizer.step()
    sys.kept = watch  # as a script's own variables are kept to its end
    return table(watch.census())


def dropped():
    """One rank loses its watch, unclosed; the other closes."""
    watch = relume.watch(Net(), every=1, window=4)
    watch.model(batch(0, RANK))
    began = time.monotonic()
    if RANK == 1:
        del watch
        gc.collect()
        dist.barrier()
        return None
    dist.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", relume.RelumeWarning)
        watch.close()
    return watch.notes, time.monotonic() - began


def lightning():
    import lightning as L
    from torch.utils.data import DataLoader, TensorDataset

    class Lit(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = floats()

        def forward(self, x):
            return self.net(x)

        def training_step(self, rows, index):
            return self(rows[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    class Watching(L.Callback):
        def on_train_start(self, trainer, module):
            self.watch = relume.watch(module, trainer.optimizers[0], every=1, window=4)

        def on_train_end(self, trainer, module):
            self.watch.close()

    torch.manual_seed(3)
    data = DataLoader(TensorDataset(torch.randn(96, 6)), 8)
    watching, lit = Watching(), Lit()
    trainer = L.Trainer(
        accelerator="cpu", strategy="ddp", devices=RANKS, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watching],
    )  # fmt: skip
    trainer.fit(lit, data)
    return told(watching.watch)


def accelerate():
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(3)
    model = floats()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = DataLoader(TensorDataset(torch.randn(96, 6)), 8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with relume.watch(model, optimizer, every=1, window=2) as watch:
        for (x,) in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    return told(watch)


def main():
    tracker.STRICT = True
    torch.set_num_threads(1)
    warnings.simplefilter("error", relume.RelumeWarning)
    if sys.argv[2] not in ("lightning", "accelerate"):
        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    for name in sys.argv[2:]:
        try:
            result = globals()[name]()
        except Exception:
            result = traceback.format_exc()
        torch.save(result, FOLDER / f"{name}.{RANK}")


if __name__ == "__main__":
    main()
