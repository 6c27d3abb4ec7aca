"""`relume.guard`: a watch that treats a network while it trains.

`policy.py` says what it may do, `choose.py` what a finding asks for, `guard.py` does it between two steps, `judge.py`
tells harm from help, `held.py` holds settings lower.
"""

from relume.treat.guard.act import Act as Act
from relume.treat.guard.function import guard as guard
from relume.treat.guard.guard import Guard as Guard
from relume.treat.guard.policy import POLICIES as POLICIES
from relume.treat.guard.policy import Policy as Policy
from relume.treat.guard.policy import policy_of as policy_of
