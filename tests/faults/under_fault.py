"""Trains a small model while something goes wrong, and says what came of it; as a program, faults of a whole process.

python under_fault.py full FOLDER        the process may write no file beyond 400 kB
python under_fault.py read-only FOLDER   as a user who may not write there
python under_fault.py kill FOLDER N      N runs in FOLDER, each ended by kill -9 at a moment of its own
"""

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
import warnings

import torch
from torch import nn

import relume

STEPS, WINDOW, BATCH = 30, 3, 16


def train(save, meanwhile=None):
    """Train for 30 steps, watched if `save` is a folder; `meanwhile(step, watch)` is called before each step.

    Returns:
        digest: of parameters, gradients, optimizer state and random state at the end.
        warnings: of relume.
        windows, inputs: that the watch itself kept.
    """
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = None if save is None else relume.watch(model, optimizer, every=1, window=WINDOW, save=save)
        for step in range(STEPS):
            if meanwhile is not None:
                meanwhile(step, watch)
            optimizer.zero_grad()
            model(torch.randn(BATCH, 6)).square().mean().backward()
            optimizer.step()
        if watch is not None:
            watch.close()
    said = [str(w.message) for w in caught if issubclass(w.category, relume.RelumeWarning)]
    return {
        "digest": _digest(model, optimizer),
        "warnings": said,
        "windows": 0 if watch is None else len(watch.windows),
        "inputs": 0 if watch is None else watch.census("all")["1"].inputs,
    }


def _digest(model, optimizer):
    tensors = [torch.get_rng_state(), *model.state_dict().values(), *(p.grad for p in model.parameters())]
    for state in optimizer.state_dict()["state"].values():
        tensors += [v for v in state.values() if isinstance(v, torch.Tensor)]
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def full(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    print(json.dumps(train(folder)))


def read_only(folder):
    train(None)  # what torch and relume import lazily another user may not read
    _ = relume.watch
    os.chmod(folder, 0o555)
    if os.getuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        train(os.path.join(folder, "run"))
    except relume.RelumeError as error:
        print(json.dumps({"error": str(error)}))


def kill(folder, runs):
    """Fork, so that torch is imported once."""
    chance = random.Random(0)
    told = []
    for i in range(runs):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _endless(os.path.join(folder, str(i)), writing)
        os.close(writing)
        if i % 5:  # the others at a moment of their start
            os.read(reading, 1)
            time.sleep(chance.random() * 0.1)
        else:
            time.sleep(chance.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        windows = 1 if i % 5 else 0
        while data := os.read(reading, 65536):
            windows += len(data)
        os.close(reading)
        told.append(windows)
    print(json.dumps(told))


def _endless(folder, pipe):
    """Windows without end, and a byte down the pipe after each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
    x = torch.randn(8, 4)
    watch = relume.watch(model, every=1, window=2, save=folder, on_window=lambda *_: os.write(pipe, b"."))
    try:
        while watch.step < 1_000_000:
            model(x)
    finally:
        os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where, *rest = sys.argv[1:]
    {"full": full, "read-only": read_only, "kill": kill}[what](where, *map(int, rest))
