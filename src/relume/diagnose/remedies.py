"""What to do about each cause, with the call that does it."""

from __future__ import annotations

from collections.abc import Mapping

from relume.diagnose.finding import Remedy

_CALM = Remedy("lower the learning rate, or warm it up")
_CLIP = Remedy("clip the gradient", "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)")
_LEAKY = Remedy("take an activation whose negative side keeps a gradient", "relume.nn.DReLU()")
_CENTRE = Remedy("centre and scale the inputs of the layer, by standardizing the data or by a normalization")
_INIT = Remedy("initialize anew for the data", "relume.init.lsuv_(model, batches)")

#: What to do about each cause, best first.
REMEDIES: Mapping[str, tuple[Remedy, ...]] = {
    "born-dead": (_INIT, Remedy("start biases at zero or above"), _LEAKY),
    "deep-narrow": (Remedy("make the network wider, less deep, or residual"), _INIT, _LEAKY),
    "killed-by-step": (_CALM, _CLIP, _LEAKY),
    "bias-drift": (Remedy("look for a term of the loss that pushes activations down"), _CALM, _LEAKY),
    "weight-drift": (_CENTRE, _CALM, _LEAKY),
    "weight-decay": (Remedy("lower the weight decay, or leave this layer out of it"),),
    "norm-collapse": (Remedy("keep γ and β out of weight decay, and lower their learning rate"), _LEAKY),
    "upstream-cascade": (Remedy("mend the layer below first"), _LEAKY),
    "input-shift": (Remedy("standardize inputs in the same way throughout, and look at what changed in the data"),),
    "saturation": (_INIT, Remedy("scale the weights down, or normalize what comes in")),
    "vanishing-gradient": (
        Remedy("take ReLU-like activations, normalization or residual connections"),
        _INIT,
    ),
    "exploding-gradient": (_CALM, _CLIP, _INIT),
}
