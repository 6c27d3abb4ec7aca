"""Published data too large to come with relume. They are read when first asked for, from the folder that `RELUME_DATA`
names or through Hugging Face's `datasets`; until then an error says what to download and where to put it."""

from relume.lab.tasks.real import commands, images, reviews, spoken
from relume.lab.tasks.real.source import Brought as Brought
from relume.lab.tasks.real.source import MissingDataError as MissingDataError

TASKS = (*images.TASKS, *commands.TASKS, *reviews.TASKS, *spoken.TASKS)
