"""More of the synthetic spoken digits than come with relume: as many as you let espeak-ng say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from relume.lab.tasks.networks import Choice
from relume.lab.tasks.real.source import Brought, MissingDataError, folder
from relume.lab.tasks.speech import SpokenDigitsCnn
from relume.lab.tasks.task import Kind, Split

_FILE = "spoken-digits.npz"


@dataclass(frozen=True)
class MoreSpokenDigits(Brought):
    """`spoken-digits-cnn` on a file that you made yourself."""

    name: str = "spoken-digits-more"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = 10
    about: str = (
        "as many spoken digits as you make, synthetic: `python -m relume.lab.tasks.speech`; a convolutional network"
    )

    def files(self) -> Path | None:
        file = folder() / _FILE
        return file if file.is_file() else None

    def data(self, seed: int = 0) -> Split:
        file = self.files()
        if file is None:
            raise MissingDataError(
                f"the data of {self.name!r} are not here; make them, and their folder if need be: "
                f"python -m relume.lab.tasks.speech {folder() / _FILE} --renditions 40 "
                "(the environment variable RELUME_DATA says where they are looked for)"
            )
        return SpokenDigitsCnn(file=file).data(seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return SpokenDigitsCnn().network(choice, width, depth)


TASKS = (MoreSpokenDigits(),)
