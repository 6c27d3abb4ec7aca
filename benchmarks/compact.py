"""What compaction gains: the forward pass of a half-dead network against its compacted copy, in one process.

    python benchmarks/compact.py [--rounds 15] [--threads 2]
    python benchmarks/compact.py --minima --rounds 60 --threads 1     # on a busy machine: ratios of shortest passes
    python benchmarks/compact.py --torch-pruning      # the same removals by torch-pruning's dependency graph

Half of the units of every hidden site are planted dead (bias −1000 before the activation), at random places. Each row
is one network: ratio of a pass before to one after (median, middle half of rounds), the control being a second copy of
the original; parameters and FLOPs before and after; the largest difference of outputs; seconds that `relume.compact`
took. `--torch-pruning` (extra "bench") takes the zoo of tests/prove/compact/test_zoo.py, removes the units that relume
removes by `DependencyGraph`, and says in how many models the outputs are the same.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import relume


def mlp(width: int, layers: int) -> nn.Module:
    hidden = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def cnn(width: int) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(3, width), *block(width, width), nn.MaxPool2d(2), *block(width, 2 * width),
        *block(2 * width, 2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 3×128, batch 256": (lambda: mlp(128, 3), (256, 128), 40),
    "MLP 3×256, batch 256": (lambda: mlp(256, 3), (256, 256), 20),
    "MLP 3×512, batch 256": (lambda: mlp(512, 3), (256, 512), 8),
    "MLP 4×1024, batch 256": (lambda: mlp(1024, 4), (256, 1024), 3),
    "MLP 3×2048, batch 256": (lambda: mlp(2048, 3), (256, 2048), 1),
    "MLP 3×1024, batch 1": (lambda: mlp(1024, 3), (1, 1024), 20),
    "CNN 32, 32 × 3×32×32": (lambda: cnn(32), (32, 3, 32, 32), 2),
    "CNN 64, 32 × 3×32×32": (lambda: cnn(64), (32, 3, 32, 32), 1),
}


def half_dead(model: nn.Module, draw: random.Random) -> nn.Module:
    """Half of the units of every layer before a ReLU, by the bias of the layer or of the norm after it."""
    layers = list(model)  # type: ignore[call-overload]
    with torch.no_grad():
        for layer, after in itertools.pairwise(layers):
            if isinstance(after, nn.ReLU):
                layer.bias[draw.sample(range(len(layer.bias)), len(layer.bias) // 2)] = -1000.0
    return model.eval()


def seconds(model: nn.Module, x: Tensor, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        model(x)
    return (time.perf_counter() - start) / repeats


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def row(name: str, rounds: int, minima: bool) -> None:
    make, shape, repeats = NETWORKS[name]
    repeats = 1 if minima else repeats
    torch.manual_seed(0)
    draw = random.Random(0)
    model, x = half_dead(make(), draw), torch.randn(shape)
    data = x if len(x) >= 256 else torch.randn(256, *shape[1:])
    census = relume.census(model, data.split(64))
    start = time.perf_counter()
    compaction = relume.compact(model, census, data.split(64))
    took = time.perf_counter() - start
    models = {"before": model, "control": copy.deepcopy(model), "after": compaction.model}
    times: dict[str, list[float]] = {which: [] for which in models}
    with torch.no_grad():
        for i in range(rounds + 2):
            for which in draw.sample(list(models), len(models)):
                found = seconds(models[which], x, repeats)
                if i >= 2:
                    times[which].append(found)
    gain = [a / b for a, b in zip(times["before"], times["after"], strict=True)]
    control = [a / b for a, b in zip(times["before"], times["control"], strict=True)]
    shown = [spread(control), spread(gain)]
    if minima:
        least = {which: min(found) for which, found in times.items()}
        shown = [f"{least['before'] / least['control']:.2f}", f"{least['before'] / least['after']:.2f}"]
    before, after = compaction.parameters
    flops = compaction.flops or (0, 0)
    print(
        f"| {name} | {(min if minima else statistics.median)(times['before']) * 1e3:.2f} | {shown[0]} | **{shown[1]}** "
        f"| {before / after:.2f} | {flops[0] / max(flops[1], 1):.2f} | {compaction.difference:.1e} | {took:.2f} |"
    )


def by_torch_pruning() -> None:
    """The zoo: the units that relume removed, by torch-pruning; equal outputs or not."""
    import torch_pruning as tp

    path = Path(__file__).parents[1] / "tests/prove/compact/test_zoo.py"
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    tally: dict[str, int] = {}
    for name, (build, removed, _) in zoo.ZOO.items():
        if not removed:
            continue
        torch.manual_seed(0)
        model, x = build()
        model.eval()
        inputs = x if isinstance(x, tuple) else (x,)
        verdict = _pruned(tp, model, inputs)
        tally[verdict.partition(":")[0]] = tally.get(verdict.partition(":")[0], 0) + 1
        print(f"| {name} | {verdict} |")
    print(tally)


def _pruned(tp: Any, model: nn.Module, inputs: tuple[Any, ...]) -> str:
    compaction = relume.compact(model, relume.census(model, [inputs], min_inputs=1), [inputs])
    with torch.no_grad():
        want = model(*inputs)
    rows: dict[str, tuple[int, tuple[int, ...]]] = {}  # what torch-pruning is to start from: layer, axis, units
    for name, axes in compaction.recipe.removed.items():
        layer_name, _, leaf = name.rpartition(".")
        axis = int(isinstance(model.get_submodule(layer_name), nn.ConvTranspose2d))
        if leaf == "weight" and axis in axes:
            rows[layer_name] = axis, axes[axis]
    small = copy.deepcopy(model)
    try:
        graph = tp.DependencyGraph().build_dependency(small, example_inputs=inputs)
        cut: set[str] = set()
        for name, (axis, units) in rows.items():
            layer = small.get_submodule(name)
            function = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
            wide = getattr(layer, "out_features", getattr(layer, "out_channels", None))
            if name in cut or not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
                continue
            if wide != compaction.model.get_submodule(name).weight.shape[axis]:  # not gone with an earlier group
                graph.get_pruning_group(layer, function, idxs=list(units)).prune()
            cut.add(name)
        with torch.no_grad():
            found = small(*inputs)
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:70] if str(error) else ''}"
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    a, b = first(want), first(found)
    if a.shape != b.shape:
        return "wrong: the output has another shape"
    scale = float(a.abs().max())
    off = float((a - b).abs().max()) / scale
    count = sum(p.numel() for p in small.parameters())
    if off > 1.2e-5:
        return f"wrong: the output differs by {off:.2g} of its largest value"
    if count != compaction.parameters[1]:
        return f"other: {count} parameters left, relume {compaction.parameters[1]}"
    return "same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minima", action="store_true")
    parser.add_argument("--torch-pruning", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.torch_pruning:
        by_torch_pruning()
        return
    print("| network | before, ms | control | before / after | parameters | FLOPs | max Δ | compact, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        row(name, options.rounds, options.minima)


if __name__ == "__main__":
    main()
