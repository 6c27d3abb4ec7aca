"""Tools of the third and fourth sets of planted causes: real data, a plain loop, and checks that a plant holds.

A case is a function `(seed, planted) -> (watch, outcome)`. With `planted=False` the same seed trains with the one
planted thing changed back. The checks look at the trained model alone and know nothing of how relume diagnoses.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import sklearn.datasets
import torch
from torch import Tensor, nn

import relume

MODULES = (
    "argparse",
    "logging",
    "datetime",
    "pathlib",
    "statistics",
    "decimal",
    "asyncio",
    "unittest",
    "email.message",
)


def standardize(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-3)


@lru_cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """A data set as it comes: raw features [n, features] and classes (or, for diabetes, the target) [n]."""
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    target = torch.tensor(y, dtype=torch.float32 if name == "diabetes" else torch.long)
    return torch.tensor(np.asarray(x), dtype=torch.float32), target


@lru_cache
def words(vocabulary: int = 120) -> tuple[Tensor, Tensor]:
    """Bags of words: docstrings of the standard library [n, vocabulary], and the module each one is from [n]."""
    texts: list[tuple[list[str], int]] = []
    for label, name in enumerate(MODULES):
        module = importlib.import_module(name)
        for owner in [module, *[v for _, v in sorted(vars(module).items()) if inspect.isclass(v)]]:
            for _, value in sorted(vars(owner).items()):
                text = inspect.getdoc(value) if callable(value) else None
                if text and len(text) > 40:
                    texts.append(("".join(c if c.isalpha() else " " for c in text.lower()).split(), label))
    counts: dict[str, int] = {}
    for tokens, _ in texts:
        for token in set(tokens):
            counts[token] = counts.get(token, 0) + 1
    place = {w: i for i, w in enumerate(sorted(counts, key=lambda w: (-counts[w], w))[:vocabulary])}
    bags = torch.zeros(len(texts), vocabulary)
    for row, (tokens, _) in enumerate(texts):
        for token in tokens:
            if token in place:
                bags[row, place[token]] += 1
    return bags, torch.tensor([label for _, label in texts])


def data(name: str, form: str = "std") -> tuple[Tensor, Tensor]:
    """A data set in the form asked for.

    `form`: raw; std (each feature centred and scaled); tame (std, cut off at ±2); unit (divided by the feature's
    maximum); image (1×8×8, -1..1).
    """
    x, y = words() if name == "words" else table(name)
    if form in ("std", "tame"):
        return standardize(x).clamp(*((-2, 2) if form == "tame" else (-99, 99))), y
    if form == "unit":
        return x / x.abs().amax(0).clamp(min=1e-6), y
    return (x.view(-1, 1, 8, 8) / 8 - 1 if form == "image" else x), y


def mlp(
    sizes: list[int],
    act: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    bias: bool = True,
) -> nn.Sequential:
    """Linear (norm) act (dropout) … Linear."""
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        parts += [nn.Linear(a, b, bias=bias), *([norm(b)] if norm else []), act()]
        parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts, nn.Linear(sizes[-2], sizes[-1], bias=bias))


def initialize(model: nn.Module, gain: float = 1.0, how: str = "he") -> nn.Module:
    """He or Glorot weights times `gain`, biases zero."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            if how == "he":
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(m.weight)
            with torch.no_grad():
                m.weight.mul_(gain)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return model


def set_bias(layer: nn.Module, value: float, share: float = 1.0) -> None:
    """Set the first `share` of a layer's biases to `value`."""
    with torch.no_grad():
        layer.bias[: round(share * len(layer.bias))] = value  # type: ignore[index,arg-type,union-attr]


def freeze(*layers: nn.Module) -> None:
    for layer in layers:
        layer.requires_grad_(False)


class Tap(nn.Module):
    """Passes on its input and remembers it, so that a loss can speak of it."""

    value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.value = x
        return x


@dataclass
class Outcome:
    """What a training left behind, for the checks."""

    model: nn.Module
    inputs: Callable[[int], Tensor]
    losses: list[float]
    snapshots: dict[int, dict[str, Tensor]]
    gradients: dict[str, list[float]] = field(repr=False)

    def dead(self, site: str | None = None, step: int = -1) -> float:
        """Share of dead units before `step` (-1: at the end); of the worst site if none is named."""
        self.model.load_state_dict(self.snapshots[step])
        census = relume.census(self.model, [self.inputs(step)], phase="train", min_inputs=64)
        shares = {s.name: s.dead.float().mean().item() for s in census.values()}
        return max(shares.values()) if site is None else shares[site]

    def saturated(self) -> float:
        """Share of (input, unit) pairs with a derivative below 0.01, over the worst sigmoid or tanh."""
        self.model.load_state_dict(self.snapshots[-1])
        shares: list[float] = []

        def look(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            slope = 1 - out**2 if isinstance(module, nn.Tanh) else out * (1 - out)
            shares.append((slope < 0.01).float().mean().item())

        hooks = [m.register_forward_hook(look) for m in self.model.modules() if isinstance(m, nn.Tanh | nn.Sigmoid)]
        with torch.no_grad():
            self.model(self.inputs(-1))
        for hook in hooks:
            hook.remove()
        return max(shares)

    def ratio(self) -> float:
        """First weight matrix's gradient norm over the last one's, median over the run."""
        names = list(self.gradients)
        first, last = (float(np.median(self.gradients[n])) for n in (names[0], names[-1]))
        return first / max(last, 1e-30)

    def largest(self) -> float:
        """Largest gradient norm of any weight, median over the first ten steps."""
        return max(float(np.median(norms[:10])) for norms in self.gradients.values())

    def spread(self) -> float:
        """Standard deviation of the model's output over inputs, before the first step."""
        self.model.load_state_dict(self.snapshots[0])
        with torch.no_grad():
            return float(self.model(self.inputs(-1)).std(0).mean())


Result = tuple[relume.Watch, Outcome]
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def train(
    seed: int,
    model: nn.Module,
    xy: tuple[Tensor, Tensor],
    optimizer: str = "sgd",
    *,
    lr: float = 0.05,
    groups: Iterable[dict[str, object]] | None = None,
    steps: int = 200,
    batch: int = 64,
    every: int = 1,
    window: int = 20,
    clip: float | None = None,
    penalty: Callable[[], Tensor] | None = None,
    change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    before: Callable[[int, torch.optim.Optimizer], None] | None = None,
    marks: tuple[int, ...] = (),
    **settings: object,
) -> Result:
    """Train in a plain loop under a watch. `change` gives a step's batch, `before` acts before the batch is seen."""
    x, y = xy
    generator = torch.Generator().manual_seed(1000 + seed)
    parameters = groups or [{"params": [p for p in model.parameters() if p.requires_grad]}]
    opt = OPTIMIZERS[optimizer](parameters, lr=lr, **settings)  # type: ignore[arg-type]
    criterion = nn.MSELoss() if y.is_floating_point() else nn.CrossEntropyLoss()
    keep = {0, *marks, *range(0, steps, max(1, steps // 10))}

    def inputs_before(step: int) -> Tensor:
        """All training inputs as the step before `step` would see them; -1: the last step."""
        return change((steps if step < 0 else step) - 1, x, y)[0] if change else x

    outcome = Outcome(
        model, inputs_before, [], {}, {n: [] for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
    )
    named = dict(model.named_parameters())
    order = torch.empty(0, dtype=torch.long)
    with relume.watch(model, opt, every=every, window=window, min_inputs=256) as watch:
        for step in range(steps):
            if step in keep:
                outcome.snapshots[step] = {k: v.clone() for k, v in model.state_dict().items()}
            if before:
                before(step, opt)
            if len(order) < batch:
                order = torch.cat([order, torch.randperm(len(x), generator=generator)])
            picked, order = order[:batch], order[batch:]
            inputs, targets = x[picked], y[picked]
            if change:
                inputs, targets = change(step, inputs, targets)
            out = model(inputs)
            loss = criterion(out.squeeze(1) if y.is_floating_point() else out, targets)
            if penalty:
                loss = loss + penalty()
            opt.zero_grad()
            loss.backward()
            for name, norms in outcome.gradients.items():
                gradient = named[name].grad
                norms.append(0.0 if gradient is None else float(gradient.norm()))
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            outcome.losses.append(loss.item())
    outcome.snapshots[-1] = {k: v.clone() for k, v in model.state_dict().items()}
    return watch, outcome


Check = Callable[[Outcome, Outcome, str | None], None]


def kills(planted: Outcome, control: Outcome, site: str | None) -> None:
    """At the end ≥ 25 % of the site are dead; without the plant fewer than 15 %."""
    dead, spared = planted.dead(site), control.dead(site)
    assert dead >= 0.25, f"only {dead:.0%} dead"
    assert spared < 0.15, f"{spared:.0%} dead without the plant"


def born(planted: Outcome, control: Outcome, site: str | None) -> None:
    kills(planted, control, site)
    assert planted.dead(site, 0) >= 0.25, f"only {planted.dead(site, 0):.0%} born dead"


def drifts(planted: Outcome, control: Outcome, site: str | None) -> None:
    """They die in the course of training: alive at the start, and not at one blow."""
    kills(planted, control, site)
    curve = [planted.dead(site, s) for s in sorted(s for s in planted.snapshots if s >= 0)] + [planted.dead(site)]
    assert curve[0] < 0.15, f"{curve[0]:.0%} dead at the start"
    assert curve[1] < 0.5 * curve[-1], f"at once: {curve}"


def after(step: int, within: int = 3) -> Check:
    """Alive before `step`, dead `within` steps later."""

    def check(planted: Outcome, control: Outcome, site: str | None) -> None:
        kills(planted, control, site)
        before, then = planted.dead(site, step), planted.dead(site, step + within)
        assert before < 0.15, f"{before:.0%} dead before step {step}"
        assert then >= 0.25, f"only {then:.0%} dead {within} steps after {step}"

    return check


def cut(planted: Outcome, control: Outcome, site: str | None) -> None:
    """Before the first step the output no longer depends on the input; without the plant it does."""
    assert planted.spread() < 1e-6, f"output still varies by {planted.spread():.1e}"
    assert control.spread() > 1e-3, f"output varies by {control.spread():.1e} without the plant"
    assert planted.dead() >= 0.25


def saturates(planted: Outcome, control: Outcome, site: str | None) -> None:
    assert planted.saturated() >= 0.9, f"only {planted.saturated():.0%} saturated"
    assert control.saturated() < 0.5, f"{control.saturated():.0%} saturated without the plant"


def vanishes(planted: Outcome, control: Outcome, site: str | None) -> None:
    assert planted.ratio() < 1e-3, f"first gradient is {planted.ratio():.1e} of the last"
    assert control.ratio() > 0.02, f"first gradient is {control.ratio():.1e} of the last without the plant"


def explodes(planted: Outcome, control: Outcome, site: str | None) -> None:
    assert planted.largest() > 1e3, f"largest gradient norm {planted.largest():.1e}"
    assert control.largest() < 50, f"largest gradient norm {control.largest():.1e} without the plant"


def healthy(planted: Outcome, control: Outcome, site: str | None) -> None:
    assert planted.dead() < 0.1, f"{planted.dead():.0%} dead"
    assert np.isfinite(planted.losses).all()


@dataclass(frozen=True)
class Case:
    """`accepted`: right codes (None: no illness). `site`: whose finding is asked for; None, the first finding's."""

    name: str
    accepted: frozenset[str] | None
    make: Callable[[int, bool], Result]
    site: str | None
    check: Check

    def run(self, seed: int, planted: bool = True, check: bool = False) -> relume.Watch:
        """Train and return the closed watch; `check` trains the control too and asserts that the plant holds."""
        torch.manual_seed(seed)
        watch, outcome = self.make(seed, planted)
        if check:
            torch.manual_seed(seed)
            _, control = self.make(seed, False)
            self.check(outcome, control, self.site)
        return watch


Register = Callable[[Callable[[int, bool], Result]], Callable[[int, bool], Result]]


def registry(cases: list[Case]) -> Callable[..., Register]:
    """The decorator `@case(name, accepted, site, check=…)` that adds to `cases`."""

    def case(name: str, accepted: set[str] | None, site: str | None = None, *, check: Check = kills) -> Register:
        def register(make: Callable[[int, bool], Result]) -> Callable[[int, bool], Result]:
            cases.append(Case(name, None if accepted is None else frozenset(accepted), make, site, check))
            return make

        return register

    return case
