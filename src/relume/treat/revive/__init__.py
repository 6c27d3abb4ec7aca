"""`relume.revive`: units of a live model brought back, without a change to what the model computes.

`function.py` is the call; `redo.py`, `recentre.py`, `rescale.py` and `resample.py` say what a unit's incoming weights
become; `chains.py` does without batches; `revival.py` is what is returned. `continual.py` chooses units by itself.
"""

from relume.treat.revive.continual import Continual as Continual
from relume.treat.revive.function import revive as revive
from relume.treat.revive.revival import Act as Act
from relume.treat.revive.revival import Revival as Revival
