"""Makes docs/tasks.md: `python docs/tasks.py` (some minutes on one core). All of it is measured; `--print` prints."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

# Nobody wants gigabytes for having made a page: what isn't here is listed as such.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import torch

from relume.lab import Member, run_member, tasks
from relume.lab.tasks import Part, Split, Task

HERE = Path(__file__).parent
SEEDS = 3
SETTINGS = {"optimizer": "adam", "lr": 0.003, "steps": 500, "width": 32, "depth": 2}

PAGE = """# Tasks

Made by `python docs/tasks.py`. What `relume.lab` can teach a network: `tasks.get(name)`, or `Member(task=name)` in a
study. A task gives the same data for the same seed, in three parts that share no input; scales and vocabularies are
those of the training part alone. No task downloads anything unless you have Hugging Face's `datasets` and ask for data
that it knows.

## At hand

{table}

- **inputs → outputs**: shape of one input (tokens are whole numbers), and how many numbers a model gives.
- **parts**: inputs to train on, to validate and to test by.
- **constant**: what one answer for all inputs scores on the test part, the best on the training part; of `cartpole`,
  what the network scores before it has learnt.
- **ReLU 2 × 32**: test score after {steps} steps of Adam with learning rate {lr}, batches of 64, two hidden layers (or
  blocks) of 32 units with He's initialization; mean of {seeds} seeds, least and largest. Nothing was tuned: it says
  that a task can be learnt, not how well.
- **dead**: of that network's units, those that fire on no training input at the end.

Measured on {machine}.

## What the data are, plainly

- **Spoken digits** are synthetic. espeak-ng says "zero" to "nine" in 40 of its voices, each time in one of 8 English
  accents, at 130 to 210 words a minute, at another pitch, beginning somewhere in 0.96 s of white or pink noise 5 to
  30 dB below the word. The split is by voice: those of the test are heard in no other part. Inputs are energies in 20
  mel bands and 24 frames, in decibels. The features come with relume; `python -m relume.lab.tasks.speech OUT.npz` makes
  more (`apt-get install espeak-ng`), which `spoken-digits-more` learns from.
- **Complaints** are the nearest to sentiment that ships with Python: is a sentence the message of an exception, or the
  beginning of a docstring? Both kinds have equally many sentences of each length; what a program puts into a message is
  left out. The split is by file. Tone is only part of it: the two kinds also differ in grammar.
- **Permuted digits** score the permutation that holds at the end: after 500 steps the third, for 100 steps so far. How
  accuracy falls from one permutation to the next is in `Result.curves.validation`, at the end of each window.
- **Docstrings** are split at random: near-copies within a module may lie in two parts. They are those of the Python
  that runs, as complaints are, so figures differ a little between versions.

## Data that you bring

{brought}

They are looked for in the folder that `RELUME_DATA` names, else in `relume/data` in your cache folder, in the formats
in which they were published:

{where}

Where `datasets` is installed (`pip install 'relume[data]'`) and there are no files, it loads all of these but
`speech-commands` from its cache or its hub. The split is the same either way: inputs are put in an order of their own
before it is drawn. Of equal inputs one is kept, in the test part if it is there. The published test part is the test
part; a tenth of the rest, drawn by the seed, is for validation, where no validation part was published.

## The next task

A class in a file of `src/relume/lab/tasks`, its file's name in the list of `__init__.py`, then `python docs/tasks.py`.
"""


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def constant(task: Task, split: Split) -> float:
    """The test score of the best single answer."""
    if task.kind == "control":
        return run_member(Member(task.name, **{**SETTINGS, "steps": 1, "lr": 0.0}), diagnose=False).scores["test"]
    train, test = split.train.y, split.test
    if task.kind == "classification":
        answer = torch.nn.functional.one_hot(train.mode().values, task.outputs).double()
    else:
        answer = train.double().mean(0)
    return task.score(answer.expand(len(test.y), -1), test.y)


def shape(part: Part) -> str:
    tokens = "" if part.x.is_floating_point() else " tokens"
    return " × ".join(map(str, part.x.shape[1:])) + tokens


def row(task: Task, split: Split) -> list[str]:
    results = [run_member(Member(task.name, **SETTINGS, seed=seed), diagnose=False) for seed in range(SEEDS)]
    scores = [result.scores["test"] for result in results]
    digits = 1 if task.kind == "control" else 3
    mean, least, most = (f"{value:.{digits}f}" for value in (sum(scores) / SEEDS, min(scores), max(scores)))
    return [
        f"`{task.name}`",
        task.about,
        f"{shape(split.train)} → {task.outputs}",
        ", ".join(str(len(part.y)) for part in (split.train, split.validation, split.test)),
        task.metric + (" ↑" if task.higher_is_better else " ↓"),
        f"{constant(task, split):.{digits}f}",
        f"**{mean}** ({least} … {most})",
        f"{sum(r.dead for r in results) / SEEDS:.1f} of {results[0].units}",
    ]


def page() -> str:
    known = [tasks.get(name) for name in tasks.names()]
    brought = [task for task in known if isinstance(task, tasks.real.Brought)]
    rows = []
    for task in known:
        print(task.name, file=sys.stderr)
        try:
            split = task.data(0)
        except tasks.real.MissingDataError:
            continue
        rows.append(row(task, split))
    header = ["", "data", "inputs → outputs", "parts", "metric", "constant", "ReLU 2 × 32", "dead"]
    return PAGE.format(
        table=markdown(header, rows),
        brought=markdown(["", "data", "outputs"], [[f"`{t.name}`", t.about, str(t.outputs)] for t in brought]),
        where="\n".join(
            f"- `{t.name}`: {' or '.join(f'`{p}`' for p in t.places)}. Download {t.download}."
            for t in brought
            if t.places
        ),
        steps=SETTINGS["steps"],
        lr=SETTINGS["lr"],
        seeds=SEEDS,
        machine=f"{platform.machine()}, one thread, torch {torch.__version__}, Python {platform.python_version()}",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = page()
    if "--print" in sys.argv[1:]:
        print(found, end="")
    else:
        (HERE / "tasks.md").write_text(found, encoding="utf-8")
