"""`Observer`: what follows a watch's observed training passes beside its meters, such as a record for diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from relume.sites import Plan, Site

if TYPE_CHECKING:
    from relume.watch.recording import Window
    from relume.watch.watch import Watch


class Observer(Protocol):
    """Called by a watch in this order; whatever it does must leave the training bitwise as it is."""

    def begin(self, step: int) -> None:
        """An observed training pass begins."""

    def see(self, site: Site, x: Tensor, plan: Plan) -> None:
        """A site of it is about to be applied to x."""

    def end(self) -> None:
        """The pass is over, or has failed."""

    def stepped(self, step: int) -> None:
        """The optimizer has made a step, its gradients are still there; `step` as the pass before it was told."""

    def window(self, watch: Watch, window: Window) -> None:
        """A window has ended, and is in the timelines."""
