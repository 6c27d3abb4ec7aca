"""What lies below a site: the sites whose outputs its producers read, and those below them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from relume.sites import Site


class Flow:
    """Sites and producers of a network in the order of the data.

    Args:
        sites: of the network.
        producers: further producers of a site, by its name.
        layers: of the model, in order, as far as they are known.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        producers: Mapping[str, Iterable[str]] | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        self.sites = {site.name: site for site in sites}
        self._layers = tuple(layers)
        given = producers or {}
        self._producers = {site.name: tuple({*site.producers, *given.get(site.name, ())}) for site in sites}
        readers: dict[str, list[str]] = {}  # layers to the sites that they read
        for site in sites:
            for consumer in site.consumers:
                readers.setdefault(consumer, []).append(site.name)
        self._readers = readers
        order = {site.name: i for i, site in enumerate(sites)}
        # A module that is used again reads later sites as well; only what came before can have moved a site.
        self._below = {
            name: tuple(dict.fromkeys(s for p in own for s in readers.get(p, ()) if order[s] < order[name]))
            for name, own in self._producers.items()
        }

    def read_by(self, layer: str) -> tuple[str, ...]:
        """Sites whose output a layer reads."""
        return tuple(self._readers.get(layer, ()))

    def below(self, site: str) -> tuple[str, ...]:
        """Sites whose output the producers of this one read."""
        return self._below.get(site, ())

    def all_below(self, site: str) -> tuple[str, ...]:
        """Those, and all below them, nearest first."""
        found: dict[str, None] = {}
        waiting = list(self.below(site))
        while waiting:
            name = waiting.pop(0)
            if name not in found:
                found[name] = None
                waiting += self.below(name)
        return tuple(found)

    def producers_below(self, site: str) -> tuple[str, ...]:
        """Producers of all sites below, but for those of the site itself; of a site above none, layers before it."""
        own = set(self._producers.get(site, ()))
        if not self.below(site):
            return self.before(site)
        return tuple(dict.fromkeys(p for s in self.all_below(site) for p in self._producers[s] if p not in own))

    def before(self, site: str) -> tuple[str, ...]:
        """Layers that come before all producers of a site: they may feed it, as a residual stream does."""
        own = [self._layers.index(p) for p in self._producers.get(site, ()) if p in self._layers]
        return self._layers[: min(own)] if own else ()

    def at_input(self, site: str) -> bool:
        """Is it sure that nothing which is trained lies between the model's input and the producers of a site?"""
        if self.below(site) or self.before(site):
            return False
        known = any(p in self._layers for p in self._producers.get(site, ()))
        return known or next(iter(self.sites)) == site
