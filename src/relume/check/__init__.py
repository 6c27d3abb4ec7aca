"""Checks for CI: the census of a trained model that is named on the command line, with its limits, and the findings of
a run; reports of both for machines."""

from relume.check.findings import findings_json as findings_json
from relume.check.findings import findings_sarif as findings_sarif
from relume.check.limits import Limits as Limits
from relume.check.loading import InputError as InputError
from relume.check.loading import Target as Target
from relume.check.markdown import markdown as markdown
from relume.check.running import axes as axes
from relume.check.running import run as run
from relume.check.running import write as write
from relume.check.sarif import sarif as sarif
