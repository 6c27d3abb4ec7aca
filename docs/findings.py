"""Makes docs/findings/: one page for each code of a finding. `python docs/findings.py [CODE…]`

Thresholds are read from relume's constants, examples are trained and diagnosed when this runs. With `--print` pages go
to standard output and nothing is written.
"""

import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from torch import nn

from relume.diagnose import cascades, death, deaths, findings, gradients, rules, states
from relume.diagnose.finding import Finding
from relume.diagnose.remedies import REMEDIES
from relume.diagnose.replay import confirming, plans
from relume.report.findings_terminal import findings_text
from relume.report.numbers import number, share
from relume.report.words import cause

HERE = Path(__file__).parent
CORPUS = HERE.parent / "tests" / "planted" / "causes" / "corpus.py"
FOLDER = HERE / "findings"
WIDTH = 96


def _arxiv(number: str) -> str:
    return f"([arXiv {number}](https://arxiv.org/abs/{number}))"


DYING = f"Douglas and Yu 2018, *Why ReLU units sometimes die* {_arxiv('1812.05981')}"
BORN = f"Lu, Shin, Su and Karniadakis 2019, *Dying ReLU and initialization* {_arxiv('1903.06733')}"
MOMENTUM = f"Arnekvist et al. 2020 {_arxiv('2005.06195')}: momentum goes on pushing after the gradient has gone"
DECOUPLED = f"Loshchilov and Hutter 2019, *Decoupled weight decay regularization* {_arxiv('1711.05101')}"
FILTERS = "Mehta, Kim and Theobalt 2019, *On implicit filter level sparsity in convolutional neural networks* (CVPR)"
PASCANU = (
    f"Pascanu, Mikolov and Bengio 2013, *On the difficulty of training recurrent neural networks* {_arxiv('1211.5063')}"
)
BALANCE = f"Du, Hu and Lee 2018 {_arxiv('1806.00900')}, for the second measure"
GLOROT = "Glorot and Bengio 2010, *Understanding the difficulty of training deep feedforward neural networks* (AISTATS)"
BIAS_SHIFT = f"Clevert, Unterthiner and Hochreiter 2016, on bias shift {_arxiv('1511.07289')}"
OWN = "relume's own rule, held to trainings whose cause is planted (`tests/planted/causes`)"
SPLIT = f"The split is the product rule of finite differences; the rest is {OWN}"


@dataclass(frozen=True)
class Page:
    """What is written by hand of one code.

    Attributes:
        what: it is.
        found: how it is detected; a function, since it reads the constants.
        example: name of a planted training, or a function that trains one.
        source: where the mechanism is described.
    """

    what: str
    found: Callable[[], str]
    example: str | Callable[[], Any]
    source: tuple[str, ...]


def _died() -> str:
    return (
        "relume keeps the mean, spread and maximum of each unit's pre-activation in every observed step, and splits "
        "each change of the mean exactly into what the bias, the weights, a normalization and the layers below did "
        "(Δm = Δb + Δw·μ + w·Δμ). A unit's *fall* reaches from the row with its highest maximum to the first in which "
        f"it is dead; its *last steps* are the {death.LAST_STEPS} before that. The mean fell when it did so by "
        f"{share(rules.MAJORITY)} of the fall of the maximum, or by the unit's whole spread."
    )


def _sudden() -> str:
    return (
        f"A fall is *sudden* when its last steps took at least {share(rules.SUDDEN_SHARE)} of it, cover at most "
        f"{rules.SUDDEN_STEPS} steps, and moved the mean by at least {number(rules.SUDDEN_DEPTH)} standard deviations "
        "between two observed steps. A step *throws* a unit when its own parameters move it by at least "
        f"{number(rules.THROW)} standard deviations, or by a third of that while the weights change by at least "
        f"{share(rules.LARGE_UPDATE)} of their norm. Where observed steps lie more than {rules.FINE} apart, single "
        "steps are not seen, and it takes both such an update and twice that throw between two of them."
    )


def _own_part() -> str:
    return (
        f"the unit's own bias and weights took at least {share(rules.MAJORITY)} of the fall of the mean, and no less "
        "than what came from below"
    )


def _drift(part: str, other: str) -> str:
    return (
        f"{_died()} {_sudden()} It is this finding when {_own_part()}, the {part} more than the {other}; when the fall "
        f"was not sudden, no step threw the unit, and it took at least {rules.DRIFT} steps. Where single steps are not "
        f"seen, no step may have changed the weights by more than {share(rules.SMALL_UPDATE)} of their norm, unless "
        "what moved between two rows is too little for a throw. Anything between is [unknown-cause](unknown-cause.md)."
    )


def _spread_gone() -> str:
    return (
        "the mean did not fall but the spread went: at most "
        f"{share(rules.COLLAPSED)} of it is left, in the unit and in the whole site, while the steps of its own layer "
        f"add up to at most {share(rules.STILL)} of the norm of the weights"
    )


class Raw(nn.Module):
    """Its weights are used by an operator rather than by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 32) / 8)
        self.out = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((x @ self.w).relu())


def raw_weights() -> Any:
    torch.manual_seed(0)
    return corpus().train(Raw(), corpus().digits(), 0, lr=1.5)


def rare_units() -> Any:
    torch.manual_seed(0)
    model = corpus().mlp(64, 32, outputs=10)
    x = corpus().digits()[0]
    with torch.no_grad():  # each unit fires on the three inputs in a thousand that suit it best
        model[0].bias -= torch.quantile(model[0](x), 0.997, dim=0)
    return corpus().train(model, corpus().digits(), 0, lr=0.001, momentum=0.0)


def thrown_for_good() -> Any:
    torch.manual_seed(2)
    model = corpus().mlp(64, 16, 16, outputs=10)

    def spike(step: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 1000.0 if step == 30 else 0.05

    return corpus().train(model, corpus().digits(), 2, momentum=0.0, before_step=spike)


PAGES: dict[str, Page] = {
    "born-dead": Page(
        "Units that have not fired once since the training began: the initialization put their pre-activations below "
        "zero on every input (or above the ceiling of an activation that has one). Usual reasons: biases that start "
        "below zero; weights of one sign on inputs of one sign; a layer below that gives out nothing.",
        lambda: (
            "Dead in the first window and in every one since. The evidence is the first observed pass: the highest "
            "pre-activation, and what the bias and the weights (times the mean input) gave to the mean. In networks of "
            f"at least {cascades.DEEP} sites whose median width is at most {cascades.NARROW} units, with a whole site "
            "dead, it is [deep-narrow](deep-narrow.md)."
        ),
        "biases started far below zero",
        (BORN,),
    ),
    "deep-narrow": Page(
        "The network was born dead by chance: with many narrow layers above each other, it is likely that one of them "
        "lets nothing through, and then the network is a constant. A layer of N units with symmetric weights and no "
        "bias kills a ray of inputs with probability 2^(−N).",
        lambda: (
            f"At least {cascades.DEEP} sites that can die, of a median width of at most {cascades.NARROW} units, and "
            "at least one site whose units were all dead from the start. The site nearest to the input is the root, "
            "the others follow from it."
        ),
        "deep and narrow",
        (BORN,),
    ),
    "killed-by-step": Page(
        "One or a few steps of the optimizer were so large that they moved the unit past the range of its inputs: on "
        "no input does it fire any more, its gradient is zero, and it stays where it was thrown. Usual reasons: a "
        "learning rate too high, a spike of the gradient, the first steps of Adam, momentum after a large gradient.",
        lambda: (
            f"{_died()} {_sudden()} It is this finding when {_own_part()}, and the fall was sudden or a step threw the "
            "unit. It is, too, when γ and β of a normalization did so at once; when weights that were thrown turn what "
            "batches differ by into falls; and when the layers below were changed by at least "
            f"{share(rules.LARGE_UPDATE)} of their norm in one step and that buried the unit, with few deaths there."
        ),
        "one step at four hundred times the learning rate",
        (DYING, MOMENTUM),
    ),
    "bias-drift": Page(
        "Small steps, all in the same direction, carried the bias down until no input lifted the unit above zero. "
        "Usual reason: a term of the loss that rewards low activations, or a target that does.",
        lambda: _drift("bias", "weights"),
        "a term of the loss that pushes biases down",
        (MOMENTUM, DYING),
    ),
    "weight-drift": Page(
        "Small steps turned the weights against the mean of their inputs. Where inputs have a mean far from zero (raw "
        "data, the output of a ReLU layer), every step that lowers one input's pre-activation lowers all of them.",
        lambda: _drift("weights", "bias"),
        "weights without bias pushed down on inputs that are never negative",
        (BIAS_SHIFT, DYING),
    ),
    "weight-decay": Page(
        "The weights shrank until what is left of the input no longer outweighs a negative bias (which is often left "
        "out of the decay). The optimizer's weight decay does it, or a penalty on weights in the loss.",
        lambda: (
            f"The fall was not sudden, the bias did not make it, and the weights lost at least {share(rules.SHRUNK)} "
            "of their norm. It is this finding when weight decay alone, as the optimizer's settings have it (for SGD: "
            "learning rate × decay / (1 − momentum) a step; decoupled: learning rate × decay), makes up half of that; "
            f"or when at least {share(rules.PULLED)} of all that the steps did went straight towards zero, with a "
            f"decay set or at least {share(2 * rules.SHRUNK)} of the norm lost. With a decay set and more than "
            f"{share(rules.NOT_PULLED)} towards zero, but not so much, its share can't be told: "
            "[unknown-cause](unknown-cause.md)."
        ),
        "weight decay that leaves only negative biases",
        (DECOUPLED,),
    ),
    "norm-collapse": Page(
        "The scale γ or the shift β of a normalization buried the units: β pushed below zero, or γ gone so that "
        "nothing reaches above a negative β. Weight decay on γ and β is a usual reason.",
        lambda: (
            f"{_died()} It is this finding when γ and β together took at least {share(rules.MAJORITY)} of the fall of "
            f"the mean, not suddenly and not by {number(rules.THROW)} standard deviations in one step; or when the "
            f"mean did not fall but at most {share(rules.COLLAPSED)} of the spread is left, and the normalization "
            "moved the mean."
        ),
        "β of batch norm pushed down",
        (FILTERS,),
    ),
    "upstream-cascade": Page(
        "What the layers below send these units changed, since units there died or were moved; their own weights did "
        "little. It names the finding that it follows from; mend that one first.",
        lambda: (
            f"{_died()} It is this finding at a layer that reads what other sites give out, when what came in took at "
            f"least {share(rules.MAJORITY)} of the fall of the mean, and at least {share(rules.LOST)} of the units "
            f"below died meanwhile, or it was moved by at least {number(rules.SHIFTED)} standard deviations without a "
            f"large step there; or when {_spread_gone()}, or many units died below meanwhile. The root is a site below "
            "that was silent by then, or else the finding with the largest share of its site; further down where that "
            "has a root itself."
        ),
        "only the first layer thrown by a step",
        (SPLIT,),
    ),
    "input-shift": Page(
        "The data changed: scaled otherwise, from another source, no longer standardized. The weights are as they "
        "were, and what comes in lies where the unit does not fire.",
        lambda: (
            f"{_died()} It is this finding at a layer that reads the model's input, when what came in took at least "
            f"{share(rules.MAJORITY)} of the fall of the mean, moved it by at least {number(rules.SHIFTED)} standard "
            f"deviations and by {number(rules.UNUSUAL)} times as much as batches usually do, and moved the middle unit "
            f"of the site by {number(rules.SHIFTED)} as well; or when {_spread_gone()}. A cascade without a root below "
            "it is this, too, when the input moved the first site's middle unit by a whole standard deviation."
        ),
        "inputs moved in the middle of training",
        (SPLIT,),
    ),
    "silent-site": Page(
        "All units of a site are dead: nothing passes it, and no gradient comes back through it. What lies below "
        "learns nothing any more but by ways around it. It says where the signal is cut; the findings at that site say "
        "why.",
        lambda: (
            "Every unit of the site is dead in the latest window, and no site below it is silent as well: sites above "
            "are named with it. It follows from the cause of most of its units. Always an error."
        ),
        thrown_for_good,
        (OWN,),
    ),
    "saturation": Page(
        "Units of a smooth activation (tanh, sigmoid) lie so far out on every input that hardly any gradient passes: "
        "|f′| < 0.01. They can't be dead, and hardly learn.",
        lambda: (
            "Every sample of the last window had |f′| < 0.01, at a site whose activation has no flat zone. From "
            f"{share(findings.NOTABLE)} of a site's units on it is a warning, from {share(findings.GRAVE)} on an error."
        ),
        "tanh with weights thirty times too large",
        (GLOROT,),
    ),
    "vanishing-gradient": Page(
        "The gradient shrinks on its way down, so that the first layers learn far too slowly.",
        lambda: (
            f"Over at least {gradients.LAYERS} layers the gradient of the first is less than "
            f"{number(gradients.VANISHED)} of the largest of any, by one of two measures: the middle over recent steps "
            "of the gradient's norm by the weight's norm, or the gradient at what each layer gives out. Not said where "
            f"a silent site or a graver finding explains it, unless it was so in the first {gradients.EARLY} observed "
            "steps of the training: then it is the root of what died later."
        ),
        "many sigmoids",
        (PASCANU, GLOROT, BALANCE),
    ),
    "exploding-gradient": Page(
        "The gradient grows on its way down, or has become infinite or NaN: the training has diverged. Units are then "
        "neither dead nor alive.",
        lambda: (
            "An error where a gradient or a pre-activation was NaN or infinite, with the first such step. Else, over "
            f"at least {gradients.LAYERS} layers, the gradient of the first is more than {number(gradients.EXPLODED)} "
            "times that of the last, by either measure of [vanishing-gradient](vanishing-gradient.md), and no site is "
            f"silent: an error where it was so in the first {gradients.EARLY} observed steps, else a warning, unless a "
            "graver finding explains it."
        ),
        "weights five times too large through many layers",
        (PASCANU, BALANCE),
    ),
    "sparse": Page(
        "Units that fire on few inputs, and do fire: detectors of something rare. This is no illness, and never more "
        "than a note; it is named so that nobody takes them for dead.",
        lambda: (
            f"Fired at least once in the last window, on less than {share(states.SPARSE)} of its inputs, at a site "
            "whose activation can die."
        ),
        rare_units,
        ("Glorot, Bordes and Bengio 2011, *Deep sparse rectifier neural networks* (AISTATS)",),
    ),
    "unknown-cause": Page(
        "Units died, and the numbers do not decide why. relume says so rather than guess: the split is not known (an "
        "unknown producer, a layer used several times, weights used by an operator), no single part stands out, or two "
        "causes can't be told apart.",
        lambda: (
            "None of the rules of the other pages applies, or one does but for a number that is not clear enough. "
            "Units that lean to a cause which others of their site died of, and no fewer, within "
            f"{deaths.BESIDE} steps, go with those. Deaths where the signal has faded before it comes there are of "
            "unknown cause, too, and follow from [vanishing-gradient](vanishing-gradient.md). The evidence says which "
            "numbers there are, and why they do not decide."
        ),
        raw_weights,
        (OWN,),
    ),
}


#: What a replay does for each of its changes, by the key in `relume.diagnose.replay.plans`.
CHANGES = {
    "lr": "all learning rates are divided by ten",
    "lr_100": "all learning rates are divided by a hundred",
    "clip": "the gradient is clipped to norm 1",
    "bias": "the biases of the layer are held still",
    "weights": "the weights of the layer are held still",
    "centre": "the layer's inputs are centred",
    "decay": "weight decay is left out",
    "norm": "γ and β of the normalization are held still",
    "below": "everything below is held still",
    "standardize": "the model's input is brought back to the statistics of the batches before",
    "earlier": "the model is given once more what it was given before",
    "lsuv": "the network is initialized anew by `relume.init.lsuv_`",
    "he": "the network is initialized anew by `relume.init.he_`",
    "rai": "the network is initialized anew by `relume.init.rai_`",
    "identity": "the network is initialized anew by `relume.init.identity_`",
    "unit": "the model's input is standardized, batch by batch",
    "relu": "the activations are converted to ReLU and the network initialized anew by `relume.init.he_`",
}


def replayed(code: str) -> str:
    """What a replay changes to test a cause, as it is planned."""
    own, others = plans.OF_CAUSE.get(code, ()), code == "unknown-cause"
    if code == "silent-site":
        return "Nothing: what killed its units is tested where that is said."
    if not own and not others:
        return "Nothing: it is no illness."
    tried = "; ".join(CHANGES.get(key, key) for key in (own or plans.FOR_DEATHS))
    kept = f"{share(confirming.MOST)} of the units that died without it live with it"
    say = (
        "Each is tried, and what would have saved the units is said"
        if others
        else "It is confirmed by the first of them with which"
    )
    return f"{tried[0].upper()}{tried[1:]}. " + (f"{say}." if others else f"{say} more than {kept}.")


def corpus() -> ModuleType:
    """The planted trainings, which are no part of the package."""
    if "planted_causes" not in sys.modules:
        spec = importlib.util.spec_from_file_location("planted_causes", CORPUS)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules["planted_causes"]


def example(page: Page, code: str) -> str:
    """The training as code, and what relume says of it."""
    if isinstance(page.example, str):
        case = next(c for c in corpus().CASES if c.name == page.example)
        name, run, function = f"“{case.name}”", (lambda: case.run(0)), case.run
    else:
        name, run, function = page.example.__name__.replace("_", " "), page.example, page.example
    ran = run()
    found: list[Finding] = (ran[0] if isinstance(ran, tuple) else ran).diagnose()
    assert any(f.code == code for f in found), f"the example of {code} shows {[f.code for f in found]}"
    console = Console(width=WIDTH, no_color=True, highlight=False, file=(lines := _Lines()))
    console.print(findings_text(found, width=WIDTH))
    source = textwrap.dedent(inspect.getsource(function))
    if isinstance(page.example, str):
        source = source[source.index("def ") :].replace("def _(", "def run(")
        where = f"{name} of [the planted trainings](../../{CORPUS.relative_to(HERE.parent)}), seed 0:"
    else:
        where = "Trained when this page was made:"
    return f"{where}\n\n```python\n{source.strip()}\n```\n\n```text\n{lines.text()}\n```"


class _Lines:
    """A file that keeps what is written, without blanks at the ends of lines."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def write(self, text: str) -> int:
        self._parts.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in "".join(self._parts).splitlines()).strip("\n")


def severity() -> str:
    return (
        f"**error**: the signal is cut, {share(findings.GRAVE)} or more of a site's units are lost, or the training "
        f"has diverged; **warning**: {share(findings.NOTABLE)} or more of a site; **note**: less, which sound "
        "trainings lose as well."
    )


def prose(code: str) -> str:
    """All of a page but its example."""
    page = PAGES[code]
    remedies = REMEDIES.get(code, ())
    listed = "\n".join(
        f"{i}. {r.text[0].upper()}{r.text[1:]}" + (f": `{r.call}`" if r.call else "") for i, r in enumerate(remedies, 1)
    )
    sections = [
        f"# {cause(code).title}: `{code}`",
        page.what,
        "## How it is found",
        page.found(),
        "## Example",
        "{example}",
        "## What a replay changes",
        replayed(code),
        "## What to do",
        listed or "Nothing."
        if code == "sparse"
        else listed or "Look at the evidence; the other pages say what each number speaks for.",
        "## Source",
        "\n".join(f"- {s}" for s in page.source),
        "[All findings](README.md) · made by `python docs/findings.py`",
    ]
    return "\n\n".join(sections) + "\n"


def index() -> str:
    """The list of all pages."""
    rows = "\n".join(
        f"| [{code}]({code}.md) | {page.what.split('. ')[0].split(': ')[0].rstrip('.')} |"
        for code, page in PAGES.items()
    )
    return f"""# Findings: what each one means

`watch.diagnose()`, `relume diagnose RUN` and the report say what killed a network's units. Each finding has a code, the
numbers that it rests on, and what can be done. What the numbers do not decide is
[unknown-cause](unknown-cause.md).

{severity()}

| code | what it is |
|---|---|
{rows}

Each page says how the cause is found, with the thresholds that are in force, shows a training that has it and what
relume says of it, and what a replay changes to test it (`relume.watch(..., replay=True)`, then `finding.confirm()`).

What is said is arithmetic about means, exact as such; the tails of a distribution can differ. A replay is the test.

Made by `python docs/findings.py`.
"""


def main(wanted: list[str], *, to_print: bool) -> None:
    torch.set_num_threads(1)
    for code, page in PAGES.items():
        if wanted and code not in wanted:
            continue
        text = prose(code).replace("{example}", example(page, code))
        if to_print:
            print(text)
        else:
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / f"{code}.md").write_text(text, encoding="utf-8")
    if to_print:
        print(index())
    else:
        (FOLDER / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main([a for a in sys.argv[1:] if not a.startswith("-")], to_print="--print" in sys.argv[1:])
