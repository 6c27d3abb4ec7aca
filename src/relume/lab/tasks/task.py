"""`Task`: what a network is to learn, its data honestly split, and by what it is judged. Tasks are in the files beside.

A task gives the same data for the same seed, and the same model for the same arguments, on every machine with the same
versions of torch and of where its data come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.lab.tasks.initialize import initialize
from relume.lab.tasks.networks import Choice

Kind = Literal["classification", "regression", "reconstruction", "control"]
PartName = Literal["train", "validation", "test"]
PARTS: tuple[PartName, ...] = ("train", "validation", "test")
# Inputs that a data-dependent initialization looks at.
_LOOKED_AT = 256
_FEW = 256


class Part(NamedTuple):
    """Some of a task's inputs, and what is to be said of them: axis 0 counts inputs in both."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Split:
    """A task's data in three parts that share no input.

    Attributes:
        train: to fit parameters by.
        validation: to choose settings by (learning rate, when to stop).
        test: to be looked at once, at the end.
    """

    train: Part
    validation: Part
    test: Part

    @classmethod
    def of(cls, x: Tensor, y: Tensor, seed: int, shares: tuple[float, float] = (0.6, 0.2)) -> Split:
        """Split at random into train, validation and what is left.

        Args:
            shares: of train and of validation.
        """
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        a = round(shares[0] * len(x))
        b = a + round(shares[1] * len(x))
        return cls(*(Part(x[rows], y[rows]) for rows in (order[:a], order[a:b], order[b:])))


class Lesson(Protocol):
    """One model's training: the batch of each step, how the model is judged, what the census at the end looks at."""

    def loss(self, step: int) -> Tensor:
        """The mean loss of a step's batch, by one forward pass of the model with gradients. Steps come in order."""

    def score(self, part: PartName, step: int) -> float:
        """The task's metric on a part, as the task stands at a step. The model is left in the mode it was in."""

    def inputs(self, step: int) -> Tensor:
        """All inputs that training has drawn its batches from, as they are at a step."""


@dataclass(frozen=True)
class Task:
    """What a network is to learn.

    Attributes:
        name: by which `tasks.get` finds it.
        kind: "classification", "regression", "reconstruction" or "control".
        metric: what `score` is: "accuracy", "rmse", "unexplained" (share of the variance), or "return" (of an episode).
        higher_is_better: of the metric.
        outputs: numbers that a model gives for an input: classes, or values.
        about: the data and where they come from, in a sentence or two.
    """

    name: str
    kind: Kind
    metric: str
    higher_is_better: bool
    outputs: int
    about: str

    def data(self, seed: int = 0) -> Split:
        """The data, split by the seed. Inputs are standardized where that is usual, by the training part alone.

        Raises:
            MissingExtraError: what the data come from is not installed.
        """
        raise NotImplementedError

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        """The architecture, with torch's own initial weights.

        Args:
            choice: which activation and normalization it applies.
            width: units of a hidden layer.
            depth: hidden layers.
        """
        raise NotImplementedError

    def model(
        self,
        activation: str = "relu",
        *,
        width: int = 32,
        depth: int = 2,
        norm: str = "none",
        init: str = "he",
        seed: int = 0,
        batch: Tensor | None = None,
    ) -> nn.Module:
        """A model with initial weights, the same for the same arguments. The global random state is left as it was.

        Args:
            activation: by name, as `relume.convert` takes it: "relu", "leaky_relu(0.2)", "drelu", …
            width: units of a hidden layer.
            depth: hidden layers.
            norm: "none", "batch" or "layer": between a layer and its activation.
            init: "torch" for what torch does, else a name of `relume.init` without its `_`.
            seed: of the weights.
            batch: inputs for an initialization that looks at data; the first 256 to train on of split 0 if left out.

        Raises:
            UnknownActivationError: there is no such activation.
            ValueError: no such norm or initialization, or a size below 1.
        """
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth are at least 1, not {width} and {depth}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.network(Choice(activation, norm), width, depth)
            look = self.data(0).train.x if batch is None else batch
            look = look[:_LOOKED_AT]
            initialize(model, init, look.to(torch.get_default_dtype()) if look.is_floating_point() else look, seed)
        return model

    def at(self, x: Tensor, step: int) -> Tensor:
        """Inputs as they are at a training step; a continual task changes them as it goes on. Any leading axes."""
        return x

    def lesson(self, model: nn.Module, *, batch: int, steps: int, seed: int, split: int) -> Lesson | None:
        """How a model is taught where its batches come from what it does; None where they are rows of the data.

        Args:
            batch: inputs in a step.
            steps: that there will be.
            seed: of the training.
            split: seed of what it is judged by, as in `data`.
        """
        return None

    def burden(self, code: Tensor, decoder: Tensor) -> Tensor | None:
        """What is added to each input's loss for what the output layer reads; None: nothing.

        Args:
            code: that it reads, [..., inputs, width].
            decoder: its weights, [..., outputs, width].
        """
        return None

    def batch_loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch, its burden included, by one forward pass."""
        return self.loss(model(x), y)

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """What training lowers the mean of, for each input: shape [inputs]."""
        if self.kind == "classification":
            if len(output) <= _FEW:
                return F.cross_entropy(output, y, reduction="none")
            # Classes first: for many inputs torch's softmax over a short last axis takes four times as long.
            across = output.t().contiguous().unsqueeze(0)
            return F.cross_entropy(across, y.unsqueeze(0), reduction="none").squeeze(0)
        return (output - y).square().flatten(1).mean(1)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """The mean of `losses`."""
        return self.losses(output, y).mean()

    def score(self, output: Tensor, y: Tensor) -> float:
        """The metric. NaN where the output is not finite."""
        output = output.detach()
        if not bool(torch.isfinite(output).all()):
            return float("nan")
        if self.kind == "classification":
            return float((output.argmax(1) == y).double().mean())
        error = float((output - y).double().square().mean())
        if self.metric == "unexplained":
            return error / float(y.double().var(0, unbiased=False).mean())
        return math.sqrt(error)
