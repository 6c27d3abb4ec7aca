"""redo: dormant units gather when the target moves, and recycling them brings the network back.

Sokar, Agarwal, Castro and Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", arXiv 2302.12902.
Here their supervised setting (section 3.1): labels that are shuffled again and again, against labels that stay.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.reproduction import Progress, Rows, statements
from relume.lab.stats import compare, interval
from relume.treat.revive import revive
from relume.watch import census

TITLE = "Dormant units gather when the target moves; recycling (ReDo) restores"
SOURCE = "Sokar, Agarwal, Castro and Evci 2023, arXiv 2302.12902"
WIDTH, LR, BATCH, TRAIN, TAU, EVERY = 128, 0.003, 64, 1400, 0.025, 100
ARMS = {"still": (False, False), "moving": (True, False), "recycled": (True, True)}


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    seeds = range(seed, seed + max(3, int((20 if full else 6) * scale)))
    targets = max(2, int((30 if full else 8) * scale))
    steps = max(EVERY, int((600 if full else 300) * scale))
    dormant = {arm: np.zeros((len(seeds), targets)) for arm in ARMS}
    loss = {arm: np.zeros((len(seeds), targets)) for arm in ARMS}
    for i, arm in enumerate(ARMS):
        for k, one in enumerate(seeds):
            progress((i + k / len(seeds)) / len(ARMS), f"{arm} labels, seed {one}")
            dormant[arm][k], loss[arm][k] = train(one, *ARMS[arm], targets, steps)
    ran = (
        f"scikit-learn digits, {TRAIN} images, two hidden layers of {WIDTH}, Adam with lr {LR}, batches of {BATCH}; "
        f"{targets} sets of labels, each a fresh shuffle, {steps} steps each; dormant: score ≤ {TAU} over 512 inputs; "
        f"recycled every {EVERY} steps by relume.revive(units='dormant', method='redo', preserve=False); "
        f"{len(seeds)} seeds."
    )

    last = {arm: d[:, -1] for arm, d in dormant.items()}
    rise = {arm: d[:, -1] - d[:, 0] for arm, d in dormant.items()}
    row = statements("redo", SOURCE, ran)
    rows = (
        row("The share of dormant units grows when targets move.",
            "dormant share after the last labels less that after the first", interval(rise["moving"], "mean")),
        row("It does not grow when targets stay.",
            "dormant share at the end less that after as many steps as the first labels had, labels that stay",
            interval(rise["still"], "mean"), "same", 0.05),
        row("Moving targets make more units dormant than targets that stay.",
            "dormant share at the end, labels that move less labels that stay",
            compare(last["moving"], last["still"]).difference),
        row("Recycling (ReDo) keeps the share of dormant units low.",
            "dormant share at the end, without less with recycling",
            compare(last["moving"], last["recycled"]).difference),
        row("Recycling restores the ability to fit new targets.",
            "training loss on the last labels, without less with recycling",
            compare(loss["moving"][:, -1], loss["recycled"][:, -1]).difference),
    )  # fmt: skip
    notes = (
        "The paper shows this for CIFAR-10 and for value networks on Atari; here the statements are tested on digits.",
        *(
            f"Labels {arm}: dormant share {interval(d[:, 0], 'mean')} after the first labels, "
            f"{interval(d[:, -1], 'mean')} after the last; loss on the last {interval(loss[arm][:, -1], 'mean')}."
            for arm, d in dormant.items()
        ),
    )
    return rows, ran, notes


def train(seed: int, moving: bool, recycle: bool, targets: int, steps: int) -> tuple[list[float], list[float]]:
    """Dormant share and training loss after each set of labels."""
    images, labels, _, _ = digits([seed], TRAIN)
    x, y = images[0].flatten(1), labels[0]
    generator = torch.Generator().manual_seed(seed)
    model = network(seed, (64, WIDTH, WIDTH, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    seen = x[:512]
    dormant, losses = [], []
    for number in range(targets):
        target = y[torch.randperm(len(y), generator=generator)] if moving else y
        for step in range(1, steps + 1):
            chosen = torch.randint(len(y), (BATCH,), generator=generator)
            loss = F.cross_entropy(model(x[chosen]), target[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if recycle and step % EVERY == 0:
                revive(
                    model, census(model, [seen]), optimizer, "redo", "dormant", False, [seen], tau=TAU,
                    seed=seed * 100_000 + number * 1000 + step,
                )  # fmt: skip
        dormant.append(float(dormant_share(model, seen)))
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model(x), target)))
    return dormant, losses


def network(seed: int, sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers as torch draws them from this seed, ReLU between; the global random state stays as it is."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, (n_in, n) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.Linear(n_in, n)] + ([nn.ReLU()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def dormant_share(model: nn.Module, inputs: Tensor, tau: float = TAU) -> Tensor:
    """Share of all units of all sites that are dormant."""
    found = census(model, [inputs])
    marks = torch.cat([site.dormant(tau) for site in found.sites])
    return marks.double().mean()
