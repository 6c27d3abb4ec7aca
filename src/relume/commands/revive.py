"""`relume revive`: the dead units of a checkpoint brought back, its function kept; the new weights in a file."""

from __future__ import annotations

import contextlib
import json
import sys
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


class Method(StrEnum):
    redo = "redo"
    recentre = "recentre"
    rescale = "rescale"
    resample = "resample"


class Units(StrEnum):
    dead = "dead"
    dormant = "dormant"


def revive(
    model: Annotated[str, typer.Argument(help="MODULE:NAME or FILE.py:NAME of a module, or of what makes one.")],
    data: Annotated[
        str,
        typer.Option(help="MODULE:NAME of a DataLoader, tensor or batches, or of what makes one: shows who is dead."),
    ],
    out: Annotated[Path, typer.Option(help="File for the new state dict: .safetensors, or else by torch.save.")],
    weights: Annotated[Path | None, typer.Option(help="State dict by torch.save, or a .safetensors file.")] = None,
    method: Annotated[Method, typer.Option(help="What the incoming weights become.")] = Method.redo,
    units: Annotated[Units, typer.Option(help="Dead, or dormant (score ≤ --tau).")] = Units.dead,
    tau: Annotated[float, typer.Option(min=0, help="Threshold of --units dormant.")] = 0.025,
    share: Annotated[
        float | None, typer.Option(help="Of inputs on which a unit is to fire, with --method recentre. Default 0.5.")
    ] = None,
    preserve: Annotated[
        bool, typer.Option("--preserve/--no-preserve", help="Keep what the model computes, or fail and write nothing.")
    ] = True,
    min_inputs: Annotated[int, typer.Option(min=1, help="Below it a silent unit is unknown, not dead.")] = 256,
    max_batches: Annotated[int | None, typer.Option(min=1, help="Take no more batches than this.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Shell pattern on site names; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of torch, before model and data are made, and of new weights.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Give the dead units of a trained model new incoming weights, and cut them off until training takes them up.

    Imports the modules that are named, so what they do when imported is done. Only weights are written: where training
    goes on with an optimizer's saved state, call relume.revive in the program, which resets the units' moments too.
    Exit code: 0 fine, also when nothing was dead (the weights are then written as they are); 2 error.
    """
    from relume.check.loading import InputError

    if share is not None and method is not Method.recentre:
        raise InputError("--share goes with --method recentre")
    options = {} if share is None else {"share": share}

    def wanted(name: str) -> bool:
        inside = not include or any(fnmatchcase(name, p) for p in include)
        return inside and not any(fnmatchcase(name, p) for p in exclude or ())

    with contextlib.redirect_stdout(sys.stderr):
        module, revival = _revived(
            model, data, weights, seed, max_batches, min_inputs, wanted, units=units.value, tau=tau,
            method=method.value, preserve=preserve, **options,
        )  # fmt: skip
        _save(module, out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "revival": revival.to_dict()}, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        console.print(str(revival), markup=False, soft_wrap=True)
        console.print(f"Saved: [bold]{out}[/]", soft_wrap=True)


def _revived(
    model: str,
    data: str,
    weights: Path | None,
    seed: int,
    max_batches: int | None,
    min_inputs: int,
    wanted: Any,
    *,
    units: str,
    tau: float,
    **options: Any,
) -> tuple[Any, Any]:
    import torch

    from relume.check.loading import Target, blamed, load_batches, load_model
    from relume.check.weights import load_weights
    from relume.treat.revive import revive as revived
    from relume.watch import census

    torch.manual_seed(seed)
    module = load_model(Target.find(model, "the model"))
    if weights is not None:
        load_weights(module, weights)
    found = load_batches(Target.find(data, "--data"), max_batches)
    batches = [found] if isinstance(found, torch.Tensor) else list(found)  # read once, for census and proof
    with blamed(f"running {model} on {data}"):
        counted = census(module, batches, min_inputs=min_inputs)
        masks = {s.name: s.dormant(tau) if units == "dormant" else s.dead for s in counted.sites if wanted(s.name)}
        chosen = {name: mask.nonzero().flatten() for name, mask in masks.items() if bool(mask.any())}
        return module, revived(module, counted, units=chosen, batches=batches, seed=seed, **options)


def _save(module: Any, out: Path) -> None:
    import torch

    from relume.errors import missing_extra

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        try:
            from safetensors.torch import save_model
        except ImportError as error:
            raise missing_extra("safetensors", "safetensors", f"--out {out.name}") from error
        save_model(module, str(out))
        return
    torch.save(module.state_dict(), out)
