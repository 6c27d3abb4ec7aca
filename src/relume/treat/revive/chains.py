"""Without batches: stretches of `nn.Sequential` from producer to consumer, in which the structure alone says enough.

Such a stretch is run by itself on made-up inputs, the dead units held at their constant, and shows what reads them as
the whole model would on data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import Census
from relume.errors import RelumeError
from relume.init.layers import layer_of
from relume.treat.surgery import Anatomy

_SIZES = (8, 16, 32, *range(1, 65), 96, 112, 128, 160, 192, 224, 256)
_INPUTS = 16


def anatomies(
    model: nn.Module, census: Census | None, chosen: Mapping[str, Sequence[int]], generator: torch.Generator
) -> Iterator[tuple[Anatomy, dict[str, list[int]]]]:
    """The stretches that hold the sites, with their share of the units.

    Raises:
        RelumeError: a site does not lie between neighbours in an `nn.Sequential`, or a unit is not dead by the census.
        CensusMismatchError: there is no such site, or one of other size.
    """
    if census is None:
        raise RelumeError("without a census, pass batches= (one example will do): nothing else shows the structure")
    chains = _chains(model)
    spans: dict[str, list[tuple[str, int, int, int]]] = {}
    for name in chosen:
        if not any(name == n for chain in chains.values() for n, _ in chain):
            raise _needs_batches(name, "it is no module in an nn.Sequential")
        root, at = next((r, i) for r, chain in chains.items() for i, (n, _) in enumerate(chain) if n == name)
        spans.setdefault(root, []).append((name, at, *_neighbours(model, census, name, chains[root], at)))
    for root, sites in spans.items():
        first, last = min(s[2] for s in sites), max(s[3] for s in sites)
        chain = chains[root][first : last + 1]
        part = nn.Sequential(*(m for _, m in chain))
        names = {str(i): n for i, (n, _) in enumerate(chain)}
        held = {name: _held(census, name, chosen[name]) for name, *_ in sites}
        yield (
            Anatomy(part, [_made_up(part, generator)], owner=model, names=names, held=held),
            {name: list(chosen[name]) for name, *_ in sites},
        )


def _needs_batches(site: str, why: str) -> RelumeError:
    return RelumeError(
        f"without batches nothing shows what reads '{site}' ({why}): pass batches=, of which one example will do"
    )


def _chains(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """The leaves of every outermost `nn.Sequential`, in order, with their names."""

    def leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for child, inner in module._modules.items():
            path = f"{name}.{child}" if name else child
            if inner is not None and _plain(inner):
                yield from leaves(path, inner)
            elif inner is not None:
                yield path, inner

    chains: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{r}.") or (r == "" and name) for r in chains if _within(model, r, name))
        if _plain(module) and not inside:
            chains[name] = list(leaves(name, module))
    return chains


def _plain(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not hooked


def _within(model: nn.Module, root: str, name: str) -> bool:
    """Do only plain sequences lie between the two?"""
    rest = name[len(root) :].strip(".").split(".")[:-1]
    module = model.get_submodule(root)
    for step in rest:
        module = module.get_submodule(step)
        if not _plain(module):
            return False
    return True


def _neighbours(
    model: nn.Module, census: Census, name: str, chain: list[tuple[str, nn.Module]], at: int
) -> tuple[int, int]:
    """Where in the chain the producer and the consumer of a site are."""
    site = census[name].site
    weighted = [i for i, (n, m) in enumerate(chain) if layer_of(n, m) is not None]
    before, after = [i for i in weighted if i < at], [i for i in weighted if i > at]
    if not before or not after:
        raise _needs_batches(name, "its producer or its consumer lies outside the nn.Sequential")
    first, last = before[-1], after[0]
    if site.producers != (chain[first][0],) or site.consumers != (chain[last][0],):
        seen = ", ".join((*site.producers, *site.consumers)) or "nothing"
        raise _needs_batches(name, f"its neighbours there are not all that the census saw beside it: {seen}")
    members = {id(m) for _, m in chain[first : last + 1]}
    registered = [id(m) for _, m in model.named_modules(remove_duplicate=False) if id(m) in members]
    parameters = {id(p) for _, m in chain[first : last + 1] for p in m.parameters()}
    tied = [n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in parameters]
    if len(registered) != len(members) or len(tied) != len(parameters):
        raise _needs_batches(name, "a module or parameter beside it is used in several places")
    strange = [n for n, m in chain[first : last + 1] if not type(m).__module__.startswith(("torch.nn.", "relume."))]
    if strange or any(m._forward_hooks or m._forward_pre_hooks for _, m in chain[first : last + 1]):
        raise _needs_batches(name, f"'{(strange or [name])[0]}' may do anything")
    return first, last


def _held(census: Census, name: str, units: Sequence[int]) -> Tensor:
    one = census[name]
    alive = [u for u in units if not 0 <= u < one.units or not (bool(one.dead[u]) or one.state[u] == "stuck-at-top")]
    if alive:
        raise RelumeError(
            f"without batches the function can only be kept for dead units, and unit {alive[0]} of '{name}' is not: "
            "pass batches="
        )
    held = torch.full((one.units,), math.nan, dtype=torch.float64)
    held[list(units)] = one.mean[list(units)]
    return held


def _made_up(part: nn.Sequential, generator: torch.Generator) -> Tensor:
    """An input that the stretch takes."""
    first: Any = part[0]
    if isinstance(first, nn.Linear):
        shapes: list[tuple[int, ...]] = [(_INPUTS, first.in_features)]
    elif isinstance(first, nn.modules.conv._ConvNd):
        spatial = len(first.kernel_size)
        shapes = [(2, first.in_channels, *[s] * spatial) for s in _SIZES]
    else:
        raise RelumeError(f"without batches relume makes no input for {type(first).__name__}: pass batches=")
    weight = first.weight
    draws = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
    training = [(m, m.training) for m in part.modules()]
    part.eval()
    try:
        for shape in shapes:
            x = torch.randn(shape, generator=draws).to(weight)
            try:
                with torch.no_grad():
                    part(x)
            except RuntimeError:
                continue
            return x
    finally:
        for module, mode in training:
            module.training = mode
    raise RelumeError("without batches no input was found that this nn.Sequential takes: pass batches=")
