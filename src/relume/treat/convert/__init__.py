"""`relume.convert`: other activations in a live model.

`capture.py` sees where activations are called; `plan.py` decides what becomes of each; `steps.py` does it, `source.py`
and `rewrite.py` where a function is called in a method; `changes.py` takes it back.
"""

from relume.treat.convert.blend import Blend as Blend
from relume.treat.convert.conversion import Conversion as Conversion
from relume.treat.convert.conversion import Converted as Converted
from relume.treat.convert.function import convert as convert
