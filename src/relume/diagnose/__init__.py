"""Why units died: what moved their pre-activations, which causes that speaks for, and what can be done."""

from relume.diagnose.diagnosis import diagnose as diagnose
from relume.diagnose.finding import Confirmation as Confirmation
from relume.diagnose.finding import Finding as Finding
from relume.diagnose.finding import Remedy as Remedy
