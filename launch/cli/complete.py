"""What a shell offers where a name is typed: of the catalogue, or of a few kinds.

Each function takes what is typed so far and gives (name, description) of what begins with it. Where
nothing does, shells offer files: `-m` and `-c` take these too.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

Offers = list[tuple[str, str]]


def models(incomplete: str) -> Offers:
    """Catalogued models."""
    from profiler.catalog.load import list_models

    return _beginning(incomplete, ((i.name, i.description) for i in list_models()))


def clusters(incomplete: str) -> Offers:
    """Catalogued clusters, and one node of each node type and of eight of each device."""
    from profiler.catalog import list_clusters, list_devices, list_nodes

    named = ((i.name, i.description) for i in list_clusters())
    nodes = ((f"{i.name}-1", f"1 x {i.description}") for i in list_nodes())
    devices = ((f"{i.name}-1x8", f"8 x {i.description}") for i in list_devices())
    return _beginning(incomplete, chain(named, nodes, devices))


def among(known: Mapping[str, str]) -> Callable[[str], Offers]:
    """Of these names with their descriptions."""

    def offered(incomplete: str) -> Offers:
        return _beginning(incomplete, known.items())

    return offered


def _beginning(incomplete: str, items: Iterable[tuple[str, str]]) -> Offers:
    return [(name, text) for name, text in items if name.startswith(incomplete)]
