"""Surgery: single units of a live model written to, their weights, what reads them, and the optimizer's state.

`trace.py` sees the products and norms of a forward pass, `labels.py` which rows make a unit, `cut.py` what reads it;
`edits.py` writes and takes back; `optimizers.py` resets what is remembered of the entries written.
"""

from relume.treat.surgery.anatomy import Anatomy as Anatomy
from relume.treat.surgery.cut import Consumer as Consumer
from relume.treat.surgery.cut import Cut as Cut
from relume.treat.surgery.cut import find_cut as find_cut
from relume.treat.surgery.edits import Edits as Edits
from relume.treat.surgery.mixing import mixers as mixers
from relume.treat.surgery.optimizers import OptimizerStates as OptimizerStates
