"""Statistics of few runs: intervals, comparisons, effect sizes, corrections. Needs scipy (`pip install 'relume[lab]'`).

Scores are [runs] or [runs, tasks], higher is better. `benchmarks/coverage.py` measures on simulated data how often each
interval holds the true value.
"""

from relume.lab.stats.comparison import Comparison as Comparison
from relume.lab.stats.comparison import compare as compare
from relume.lab.stats.corrections import benjamini_hochberg as benjamini_hochberg
from relume.lab.stats.corrections import holm as holm
from relume.lab.stats.corrections import simultaneous as simultaneous
from relume.lab.stats.effects import cliffs_delta as cliffs_delta
from relume.lab.stats.effects import cohens_d as cohens_d
from relume.lab.stats.effects import probability_of_improvement as probability_of_improvement
from relume.lab.stats.interval import Interval as Interval
from relume.lab.stats.location import interval as interval
from relume.lab.stats.location import iqm as iqm
from relume.lab.stats.profiles import Profile as Profile
from relume.lab.stats.profiles import profile as profile
from relume.lab.stats.proportions import difference_of_proportions as difference_of_proportions
from relume.lab.stats.proportions import proportion as proportion
