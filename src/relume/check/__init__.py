"""A check for CI: the census of a trained model that is named on the command line, its limits, and reports of it."""

from relume.check.limits import Limits as Limits
from relume.check.loading import InputError as InputError
from relume.check.loading import Target as Target
from relume.check.markdown import markdown as markdown
from relume.check.running import axes as axes
from relume.check.running import run as run
from relume.check.running import write as write
from relume.check.sarif import sarif as sarif
