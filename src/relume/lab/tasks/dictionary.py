"""A sparse autoencoder on the activations of a small transformer that was trained on real text.

Latents of such dictionaries die in great numbers, which is why resampling was invented (Bricken et al. 2023).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relume.lab.tasks.networks import Choice, Transformer, mlp
from relume.lab.tasks.task import Kind, Part, Split, Task
from relume.lab.tasks.text import DocstringsTransformer

# The transformer that is looked into: one layer, whose feed-forward part has four times its width.
WIDTH = 32
_STEPS, _BATCH, _LR = 150, 64, 3e-3
# Tokens whose activations a part holds.
_TOKENS = (9000, 3000, 3000)


@dataclass(frozen=True)
class SparseAutoencoder(Task):
    """Activations of a transformer's feed-forward part at single tokens, from a sparse code of `width` latents.

    The transformer has one layer and 128 units, and is trained on the task `docstrings-transformer` when data are first
    asked for, which takes a few seconds. The activations are those at tokens of texts that it has not seen, each text
    in one part alone, divided by one number so that their variance is 1 on average. They are rounded otherwise on
    another kind of processor, and training makes more of it.

    The network is encoder → activation → linear decoder; with a depth above 1 the latents are the last hidden layer.
    Its loss is the squared error, mean over features, plus `sparsity` · Σ |latent| · ‖its decoder column‖, so that a
    latent can't pass for small by growing its column. The score is the share of variance that is left unexplained.

    With Adam at a learning rate of 0.003 and a width of 256 it learns in 1000 steps, and about half the latents die;
    `sae-centred` is the same with the mean taken off, and there hardly any dies.

    Attributes:
        centred: take the mean of the training part off the activations.
        sparsity: weight of the code's burden.

    Source: Bricken et al. 2023, "Towards Monosemanticity" (activations, architecture); Conerly et al. 2024,
    "Circuits Updates, April" (a burden that is weighed by the decoder's columns).
    """

    name: str = "sae"
    kind: Kind = "reconstruction"
    metric: str = "unexplained"
    higher_is_better: bool = False
    outputs: int = 4 * WIDTH
    about: str = "activations of a small transformer trained on docstrings (real text), from a sparse code"
    centred: bool = False
    sparsity: float = 0.01

    def data(self, seed: int = 0) -> Split:
        return _split(seed, self.centred)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, self.outputs, self.outputs, width, depth)

    def batch_loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        decoder = model.get_submodule("out")
        read: list[Tensor] = []
        with _told(decoder, read):
            losses = self.losses(model(x), y)
        return (losses + self.burden(read[0], decoder.get_parameter("weight"))).mean()

    def burden(self, code: Tensor, decoder: Tensor) -> Tensor:
        columns = torch.linalg.vector_norm(decoder, dim=-2, keepdim=True)
        weighed: Tensor = (code.abs() * columns).sum(-1)
        return self.sparsity * weighed


@contextlib.contextmanager
def _told(module: nn.Module, read: list[Tensor]) -> Iterator[None]:
    """Append what a module reads."""
    handle = module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        yield
    finally:
        handle.remove()


@functools.lru_cache(maxsize=64)
def _split(seed: int, centred: bool) -> Split:
    texts, found = _activations()
    of_texts = torch.arange(int(texts.max()) + 1)
    parts = Split.of(of_texts, of_texts, seed)
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for part, tokens in zip((parts.train, parts.validation, parts.test), _TOKENS, strict=True):
        own = torch.isin(texts, part.x).nonzero().flatten()
        rows.append(found[own[torch.randperm(len(own), generator=draw)[:tokens]]])
    mean = rows[0].mean(0)
    spread = (rows[0] - mean).square().mean().sqrt()
    origin = mean if centred else torch.zeros_like(mean)
    return Split(*(Part(x, x) for x in ((part - origin) / spread for part in rows)))


@functools.cache
def _activations() -> tuple[Tensor, Tensor]:
    """Of each token of the texts that the transformer has not seen: the number of its text, and its activations."""
    task = DocstringsTransformer()
    split = task.data(0)
    unseen = torch.unique(torch.cat([split.validation.x, split.test.x]), dim=0)
    with _settled():
        model = _trained(task, split.train).eval()
        read: list[Tensor] = []
        with torch.no_grad(), _told(model.get_submodule("blocks.0.down"), read):
            for some in unseen.split(512):
                model(some)
    real = unseen != 0
    return real.nonzero()[:, 0], torch.cat(read)[real]


def _trained(task: Task, data: Part) -> Transformer:
    model = task.model(width=WIDTH, depth=1, norm="layer")
    assert isinstance(model, Transformer)
    optimizer = torch.optim.Adam(model.parameters(), lr=_LR)
    draw = torch.Generator().manual_seed(0)
    for _ in range(_STEPS):
        rows = torch.randint(len(data.x), (_BATCH,), generator=draw)
        optimizer.zero_grad()
        task.loss(model(data.x[rows]), data.y[rows]).backward()
        optimizer.step()
    return model


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """One thread, float32 and gradients: what the transformer becomes is not to depend on who asks first."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


_PLAIN = SparseAutoencoder()
TASKS = (_PLAIN, SparseAutoencoder(name="sae-centred", about=f"{_PLAIN.about}; centred", centred=True))
