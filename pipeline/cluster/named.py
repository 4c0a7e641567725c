"""What sentences about a cluster call its nodes and sizes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from stillhouse.pipeline.run.ray_pool import MAX_NODES_NAMED

Facts = dict[str, Any]
"""About a cluster or a node of it: see `preflight`."""


class Named:
    """Nodes in a sentence: by address, or all of them."""

    def __init__(self, addresses: list[str]) -> None:
        self._num = len(addresses)

    def __call__(self, nodes: list[Facts]) -> str:
        # Several nodes of one machine have one address.
        addresses = list(dict.fromkeys(node["address"] for node in nodes))
        if len(nodes) == self._num:
            return "every node" if self._num > 1 else f"the only node ({addresses[0]})"
        more = f" and {len(addresses) - MAX_NODES_NAMED} more" if len(addresses) > MAX_NODES_NAMED else ""
        return f"node{'s'[: len(nodes) > 1]} {', '.join(addresses[:MAX_NODES_NAMED])}{more}"


def grouped(nodes: list[Facts], key: Callable[[Facts], Any]) -> Iterator[tuple[Any, list[Facts]]]:
    """Nodes of which `key` is the same and not None."""
    groups = defaultdict(list)
    for node in nodes:
        if (found := key(node)) is not None:
            groups[found].append(node)
    yield from groups.items()


def gigabytes(size: float) -> str:
    """Of a number of bytes."""
    return f"{size / 1e9:,.1f} GB"
