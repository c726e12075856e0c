"""Which clients a topic goes to: a tree of filter levels, so that one client's many filters do not slow everybody down.

Source: MQTT 3.1.1 §4.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_ONE: Final = "+"
_REST: Final = "#"


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)


class Routes:
    """Subscriptions of all clients. Filters must be valid (`vedette_schemas.topics.is_filter`)."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, topic_filter: str, client: str, qos: int) -> None:
        """Subscribe a client, or change the QoS of its subscription."""
        node = self._root
        for level in topic_filter.split("/"):
            node = node.children.setdefault(level, _Node())
        node.clients[client] = qos

    def remove(self, topic_filter: str, client: str) -> None:
        """Take a subscription away, if it is there, with every branch that is empty then."""
        node, way = self._root, list[tuple[_Node, str]]()
        for level in topic_filter.split("/"):
            way.append((node, level))
            found = node.children.get(level)
            if found is None:
                return
            node = found
        node.clients.pop(client, None)
        for parent, level in reversed(way):
            child = parent.children[level]
            if child.clients or child.children:
                return
            del parent.children[level]

    def subscribers(self, topic: str) -> dict[str, int]:
        """Each client with a filter that matches, once, with the highest QoS of its filters that match.

        Clients of equal rank come in the order of their ids, so that a run can be repeated.
        """
        found: dict[str, int] = {}
        nodes = [self._root]
        hidden = topic.startswith("$")
        for depth, level in enumerate(topic.split("/")):
            wild = not (hidden and depth == 0)
            onward: list[_Node] = []
            for node in nodes:
                if wild and (rest := node.children.get(_REST)) is not None:
                    _merge(found, rest)
                if wild and (one := node.children.get(_ONE)) is not None:
                    onward.append(one)
                if level not in (_ONE, _REST) and (exact := node.children.get(level)) is not None:
                    onward.append(exact)
            nodes = onward
        for node in nodes:
            _merge(found, node)
            if (rest := node.children.get(_REST)) is not None:
                _merge(found, rest)  # ``a/#`` also matches ``a`` (§4.7.1.2)
        return dict(sorted(found.items()))

    def __len__(self) -> int:
        """Number of branches and leaves."""
        waiting, count = [self._root], 0
        while waiting:
            node = waiting.pop()
            count += len(node.children)
            waiting += node.children.values()
        return count


def _merge(found: dict[str, int], node: _Node) -> None:
    for client, qos in node.clients.items():
        found[client] = max(found.get(client, 0), qos)
