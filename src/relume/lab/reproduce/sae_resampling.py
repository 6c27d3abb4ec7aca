"""sae-resampling: dead latents of a sparse autoencoder, drawn anew towards inputs that it reconstructs badly.

Bricken et al. 2023, "Towards Monosemanticity" (Anthropic), appendix on neuron resampling. And mean-centring as a remedy
against dead latents, arXiv 2605.31518 (its abstract). Activations here are of a small network trained on digits.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.redo import network
from relume.lab.reproduce.reproduction import Progress, Row, Rows, statement
from relume.lab.stats import Interval, compare, interval
from relume.lab.verdicts import Claim
from relume.treat.revive import revive
from relume.watch import census

TITLE = "Dead latents of sparse autoencoders, and resampling"
SOURCE = "Bricken et al. 2023, Towards Monosemanticity"
CENTRED = "arXiv 2605.31518"
WIDTH, LATENTS, BATCH, LR, SPARSITY = 64, 256, 64, 0.002, 0.5
ARMS = {"plain": (False, False), "centred": (True, False), "resampled": (True, True)}


class Autoencoder(nn.Module):
    """x → ReLU encoder of x − b → linear decoder, b the decoder's bias; decoder columns start at length 1.

    Args:
        data: [inputs, features]; with `centred`, b starts at its mean, else at 0.
    """

    def __init__(self, data: Tensor, latents: int, centred: bool, generator: torch.Generator) -> None:
        super().__init__()
        features = data.shape[1]
        self.encoder, self.relu, self.decoder = nn.Linear(features, latents), nn.ReLU(), nn.Linear(latents, features)
        columns = F.normalize(torch.randn(features, latents, generator=generator), dim=0)
        with torch.no_grad():
            self.decoder.weight.copy_(columns)
            self.encoder.weight.copy_(columns.T)
            self.encoder.bias.zero_()
            self.decoder.bias.copy_(data.mean(0) if centred else torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.latents(x))
        return decoded

    def latents(self, x: Tensor) -> Tensor:
        """[inputs, latents], not negative."""
        found: Tensor = self.relu(self.encoder(x - self.decoder.bias))
        return found


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    seeds = range(seed, seed + max(3, int((20 if full else 6) * scale)))
    steps = max(16, int((20_000 if full else 2_000) * scale))
    latents = 4 * LATENTS if full else LATENTS
    found = {arm: np.zeros((len(seeds), 4)) for arm in ARMS}
    for k, one in enumerate(seeds):
        data = activations(one)
        for i, arm in enumerate(ARMS):
            progress((k + i / len(ARMS)) / len(seeds), f"{arm}, seed {one}")
            found[arm][k] = train(one, data, latents, steps, *ARMS[arm])
    ran = (
        f"{LATENTS if not full else latents} latents on the {WIDTH} activations of the second layer of a network "
        f"trained on scikit-learn digits (1787 inputs); loss: squared error + {SPARSITY} Σ latents; Adam with lr {LR}, "
        f"batches of {BATCH}, {steps:,} steps, decoder columns kept at length 1; resampled at 1/8, 2/8, 3/8 and 4/8 of "
        "the steps: latents that fire on no input, by relume.revive(method='resample', decoder=True); "
        f"{len(seeds)} seeds."
    )

    def row(text: str, source: str, support: str, effect: Interval) -> Row:
        return statement(Claim("sae", text, source, support), effect, ran)

    dead = {arm: f[:, 0] for arm, f in found.items()}
    loss = {arm: f[:, 1] for arm, f in found.items()}
    rows = (
        row("Resampling leaves fewer latents dead at the end of training.", SOURCE,
            "share of latents dead, without less with resampling",
            compare(dead["centred"], dead["resampled"]).difference),
        row("Resampling lowers the final loss.", SOURCE,
            "loss by the variance of the data, without less with resampling",
            compare(loss["centred"], loss["resampled"]).difference),
        row("Centring the activations on their mean leaves fewer latents dead.", CENTRED,
            "share of latents dead, b starting at 0 less at the mean",
            compare(dead["plain"], dead["centred"]).difference),
    )  # fmt: skip
    notes = (
        "The paper's dictionaries are of a transformer's activations, of up to 131,072 latents; here statements are "
        "tested in small. The step at which latents are counted as dead follows the data (no input), not the last "
        "12,500 steps.",
        *(
            f"{arm}: {interval(f[:, 0], 'mean')} of latents dead, loss {interval(f[:, 1], 'mean')}, of it squared "
            f"error {interval(f[:, 2], 'mean')} (both by the variance), {interval(f[:, 3], 'mean')} latents fire per "
            "input."
            for arm, f in found.items()
        ),
    )
    return rows, ran, notes


def activations(seed: int) -> Tensor:
    """[inputs, 64]: second-layer outputs of a network trained on digits, scaled to a mean length of √64."""
    images, labels, _, _ = digits([seed], 1787)
    x, y = images[0].flatten(1), labels[0]
    model = network(seed, (64, WIDTH, WIDTH, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(400):
        chosen = torch.randint(len(y), (64,), generator=generator)
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        h: Tensor = model[:4](x)
    scaled: Tensor = h * (WIDTH**0.5 / float(h.norm(dim=1).mean()))
    return scaled


def train(
    seed: int, data: Tensor, latents: int, steps: int, centred: bool, resample: bool
) -> tuple[float, float, float, float]:
    """Share of latents dead; loss and squared error, by the data's variance; latents that fire per input."""
    generator = torch.Generator().manual_seed(seed)
    model = Autoencoder(data, latents, centred, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    due = {steps * i // 8 for i in (1, 2, 3, 4)} if resample else set()
    for step in range(1, steps + 1):
        x = data[torch.randint(len(data), (BATCH,), generator=generator)]
        z = model.latents(x)
        loss = (model.decoder(z) - x).square().sum(1).mean() + SPARSITY * z.sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.decoder.weight.copy_(F.normalize(model.decoder.weight, dim=0))
        if step in due:
            revive(
                model, census(model, [data]), optimizer, "resample", "dead", False, [data], decoder=True,
                seed=seed * 100_000 + step,
            )  # fmt: skip
    with torch.no_grad():
        z = model.latents(data)
        spread = (data - data.mean(0)).square().sum(1).mean()
        error = (model.decoder(z) - data).square().sum(1).mean() / spread
        loss = error + SPARSITY * z.sum(1).mean() / spread
        fires = (z > 0).double()
    return float((fires.sum(0) == 0).double().mean()), float(loss), float(error), float(fires.sum(1).mean())
