"""What each torch function does to slots and constants: the table of rules, by the function's name."""

from __future__ import annotations

from typing import Any

import torch

from relume.activations.registry import registered_functions
from relume.prove.compact.rules import moves, pointwise, weights
from relume.prove.compact.rules.common import name_of, normalizes, opaque
from relume.prove.compact.trace import Rule

_POINTWISE = """
    add sub subtract rsub mul multiply div divide true_divide neg negative abs absolute exp exp2 log log1p log2
    expm1 sqrt rsqrt square reciprocal pow float_power sin cos tan erf erfc maximum minimum clamp clamp_min
    clamp_max clip lerp addcmul addcdiv relu relu6 leaky_relu elu selu celu gelu silu mish softplus hardtanh
    hardswish hardsigmoid sigmoid expit special_expit tanh atan sinh cosh logsigmoid log_sigmoid softsign tanhshrink
    softshrink hardshrink threshold floor ceil round trunc xlogy atan2 hypot __add__ __radd__ __sub__ __rsub__
    __mul__ __rmul__ __truediv__ __rtruediv__ __rdiv__ __pow__ __rpow__ __neg__ __abs__ __iadd__ __isub__ __imul__
    __itruediv__ __ipow__
"""
_LABELS_ONLY = """
    gt ge lt le eq ne greater greater_equal less less_equal equal not_equal __gt__ __ge__ __lt__ __le__ __eq__
    __ne__ logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __and__
    __or__ __xor__ __invert__ isnan isinf isfinite sign sgn nan_to_num heaviside fmax fmin remainder fmod
    floor_divide __mod__ __floordiv__ rrelu copysign bernoulli
"""
_MOVES = """
    view view_as reshape reshape_as flatten unflatten ravel permute transpose swapaxes swapdims t adjoint movedim
    moveaxis squeeze unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave cat concat concatenate
    stack hstack vstack unbind select narrow __getitem__ chunk split split_with_sizes tensor_split hsplit vsplit
    flip roll rot90 pad pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold index_select
    gather take_along_dim broadcast_tensors atleast_2d
"""
_REDUCTIONS = "sum mean amax amin max min prod std var norm logsumexp any all median argmax argmin count_nonzero"
_ALONG = "softmax log_softmax softmin cumsum cumprod sort normalize"
_LIKE = "zeros_like ones_like full_like empty_like rand_like randn_like randint_like"
_DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout"
_ATTENTION = "scaled_dot_product_attention multi_head_attention_forward"
_RECURRENT = "lstm gru rnn_relu rnn_tanh lstm_cell gru_cell rnn_relu_cell rnn_tanh_cell"
_SAME = "to type type_as float double half bfloat16 clone detach contiguous cpu cuda int long bool alias requires_grad_"
_FACTORIES = """
    zeros ones full empty rand randn randint arange linspace eye tensor as_tensor new_zeros new_ones new_full
    new_empty new_tensor scalar_tensor from_numpy randperm tril_indices triu_indices
"""
# About a tensor, not from it.
_IGNORED = """
    size dim stride numel nelement is_floating_point is_complex element_size get_device __len__ storage_offset
    is_contiguous ndimension register_hook _set_grad_enabled set_grad_enabled is_autocast_enabled is_same_size
    has_names is_inference untyped_storage data_ptr __hash__ is_nonzero_ dense_dim __format__ __repr__
"""
_GETTERS = {"T": moves.move, "mT": moves.move, "H": moves.move, "mH": moves.move, "data": pointwise.same,
            "real": pointwise.same}  # fmt: skip


_TABLE: dict[str, Rule | None] = {
    **dict.fromkeys(_POINTWISE.split(), pointwise.pointwise),
    **dict.fromkeys(_LABELS_ONLY.split(), pointwise.labels_only),
    **dict.fromkeys(("where", "masked_fill"), pointwise.where),
    **dict.fromkeys(_MOVES.split(), moves.move),
    **dict.fromkeys(_REDUCTIONS.split(), moves.reduce),
    **dict.fromkeys(_ALONG.split(), moves.along_dim),
    **dict.fromkeys(_SAME.split(), pointwise.same),
    **dict.fromkeys(_FACTORIES.split(), pointwise.factory),
    **dict.fromkeys(_IGNORED.split(), None),
    **dict.fromkeys(_DROPOUT.split(), pointwise.dropout),
    **dict.fromkeys(_LIKE.split(), pointwise.like),
    "prelu": pointwise.prelu,
    "glu": pointwise.glu,
    "__setitem__": pointwise.setitem,
    **{
        f"{kind}_pool{d}d": moves.windows(d)
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
        for d in (1, 2, 3)
    },
    **{f"max_pool{d}d_with_indices": moves.windows(d) for d in (1, 2, 3)},
    **dict.fromkeys(("interpolate", "upsample", "upsample_nearest", "upsample_bilinear"), moves.windows(0)),
    "linear": weights.linear,
    **{f"conv{d}d": weights.conv(d) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": weights.conv(d, transposed=True) for d in (1, 2, 3)},
    **dict.fromkeys(("embedding", "embedding_bag"), weights.embedding),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), weights.product),
    "__rmatmul__": moves.matmul,
    "addmm": weights.addmm,
    "batch_norm": weights.by_channel(5),
    "instance_norm": weights.by_channel(-1),
    **dict.fromkeys(("layer_norm", "group_norm", "rms_norm", "local_response_norm"), normalizes),
    **dict.fromkeys(_ATTENTION.split(), opaque("attention reads it ({})")),
    **dict.fromkeys(_RECURRENT.split(), opaque("a recurrent layer reads it ({})")),
    "bilinear": opaque("{} multiplies it with other units"),
    "einsum": opaque("{} is not followed"),
}  # fmt: skip
_unknown: Rule = opaque("{} is not followed")


def rule_for(func: Any) -> Rule | None:
    """The rule of a torch function; None: it leaves nothing to follow."""
    name = name_of(func)
    if name == "__get__":
        return _GETTERS.get(getattr(func.__self__, "__name__", ""))
    if name in ("__set__", "__delete__"):
        return None
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = name.partition(".")[0]
    for spelling in (name, name.rstrip("_") if not name.endswith("__") else name, name.lstrip("_")):
        if spelling in _TABLE:
            return _TABLE[spelling]
    return pointwise.pointwise if func in registered_functions() else _unknown
