"""`relume.guard`: see `Guard`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from relume.treat.guard.guard import Guard
from relume.treat.guard.policy import Policy


def guard(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    policy: str | Policy = "gentle",
    loss: str = "loss",
    seed: int = 0,
    **options: Any,
) -> Guard:
    """Watch a model while it trains, and treat what diagnosis finds.

    At the end of each window it looks at the findings. Dead units are revived in place, so that the model computes what
    it computed before (`relume.revive`); under "full", what killed them is lowered as well. Each act is judged by the
    training loss a few windows later and undone where it harmed; a site whose units die again and again is left alone,
    or converted to another activation. What it did is in `guard.acts`, in the run file and in the report. Until it
    acts, the training is bitwise as without it; with the same seeds it acts in the same way.

        with relume.guard(model, optimizer) as guard:
            for x, y in loader:
                loss = criterion(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                guard.log(loss=loss)

    Args:
        model: the module that the loop calls.
        optimizer: that trains it; the guard acts after its step. Of several, after that of the first.
        policy: "gentle" revives and does no more; "full" also cuts the learning rate, clips the gradient, switches
            weight decay off where they killed, and converts sites that nothing else helps; "log" does nothing and
            writes down what "full" would do (but for conversions, which follow on revivals that did not last). Or a
            `relume.Policy`.
        loss: the name under which `guard.log(...)` gets the training loss. Without it acts can't be judged, and are
            kept.
        seed: of the weights that are drawn.
        **options: any setting of the `Policy` (`cooldown=5, method="recentre"`), and all that `relume.watch` takes.

    Returns:
        Guard: a `Watch` that has `.acts`.

    Raises:
        TypeError: no optimizer; else as `relume.watch`.
        ValueError: no such policy, or `diagnose=False`.
        RelumeError: several ranks train together: each would act by what it alone has seen.

    Settings are lowered while the guard is open: once it is closed, the optimizer's own hold again.
    """
    return Guard(model, optimizer, policy=policy, loss=loss, seed=seed, **options)
