"""Retained messages of the embedded broker, within limits in all and for each client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vedette_broker.limits import CLIENT_RETAINED_BYTES_MAX, CLIENT_RETAINED_MAX, RETAINED_BYTES_MAX, RETAINED_MAX
from vedette_broker.store import Kept
from vedette_schemas.topics import matches


@dataclass(slots=True)
class _Share:
    messages: int = 0
    payload_bytes: int = 0


class Retained:
    """The last message of each topic that has one."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self._shares: dict[str, _Share] = {}
        self._all = _Share()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        return self._all.payload_bytes

    def put(self, topic: str, kept: Kept, *, limited: bool) -> bool:
        """Keep a message in the place of the one before; tells whether there was room.

        Without room nothing is kept on the topic any more: the older message would be taken for the newest.

        Args:
            topic: its topic.
            kept: the message.
            limited: whether a share of its owner's is all that it may use.
        """
        self.remove(topic)
        share, size = self._shares.setdefault(kept.owner, _Share()), len(kept.payload)
        full = self._all.messages >= RETAINED_MAX or self._all.payload_bytes + size > RETAINED_BYTES_MAX
        used_up = share.messages >= CLIENT_RETAINED_MAX or share.payload_bytes + size > CLIENT_RETAINED_BYTES_MAX
        if full or (limited and used_up):
            self._drop_empty(kept.owner)
            return False
        self._kept[topic] = kept
        for each in (share, self._all):
            each.messages += 1
            each.payload_bytes += size
        return True

    def remove(self, topic: str) -> bool:
        """Keep nothing on a topic; tells whether something was."""
        kept = self._kept.pop(topic, None)
        if kept is None:
            return False
        for each in (self._shares[kept.owner], self._all):
            each.messages -= 1
            each.payload_bytes -= len(kept.payload)
        self._drop_empty(kept.owner)
        return True

    def below(self, topic_filter: str) -> Iterator[tuple[str, Kept]]:
        """What is kept under a filter now."""
        if "+" in topic_filter or "#" in topic_filter:
            yield from [(t, k) for t, k in self._kept.items() if matches(topic_filter, t)]
        elif (kept := self._kept.get(topic_filter)) is not None:
            yield topic_filter, kept

    def _drop_empty(self, owner: str) -> None:
        if not self._shares[owner].messages:
            del self._shares[owner]
