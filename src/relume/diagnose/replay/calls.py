"""`Kind`: what a torch function does beside returning something, told by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_RANDOM = re.compile(
    "dropout|rand|bernoulli|multinomial|normal|uniform|exponential_|cauchy_|geometric_|poisson|gumbel|binomial|"
    "orthogonal_|sparse_|scaled_dot_product|multi_head_attention|rrelu"
)
_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
)
_IN_PLACE = {f"__i{name}__" for name in _OPERATORS}
_WRITES = {"__setitem__", "batch_norm", "instance_norm", "set_", *_IN_PLACE}
_EFFECTS = {"backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad", "requires_grad_"}
# Properties whose value shares memory or a gradient with the tensor; others are mere descriptions.
_PROPERTIES = {"grad", "data", "T", "mT", "H", "mH", "real", "imag"}
_ASIDE = {"_set_grad_enabled", "_record_function_enter_new", "__hash__", "__repr__", "__len__", "size", "dim", "numel"}


@dataclass(frozen=True, slots=True)
class Kind:
    """Of one function.

    Attributes:
        name: the function's, or the property's.
        ignored: it tells of a tensor what no replay needs.
        writes: it may write to its arguments.
        own: only to the first of them.
        effect: it is done for what it does, whatever becomes of the result.
        random: it may draw random numbers.
        backward: it fills gradients.
        reads_grad: it reads a gradient.
    """

    name: str
    ignored: bool
    writes: bool
    own: bool
    effect: bool
    random: bool
    backward: bool
    reads_grad: bool


def kind_of(func: Any) -> Kind:
    """What a function of torch does."""
    name = getattr(func, "__name__", "")
    reads = name == "__get__"
    sets = name in ("__set__", "__delete__")
    if reads or sets:
        of = getattr(getattr(func, "__self__", None), "__name__", "")
        return Kind(of, reads and of not in _PROPERTIES, sets, True, sets, False, False, reads and of == "grad")
    in_place = name.endswith("_") and not name.endswith("__")
    writes = in_place or name in _WRITES
    return Kind(
        name=name,
        ignored=name in _ASIDE or name.startswith("_record_function") or "_record_function_" in name,
        writes=writes,
        own=(in_place and not name.startswith("_")) or name in _IN_PLACE or name == "__setitem__",
        effect=writes or name in _EFFECTS,
        random=bool(_RANDOM.search(name)),
        backward=name == "backward",
        reads_grad=False,
    )
