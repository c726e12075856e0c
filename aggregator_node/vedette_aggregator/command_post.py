"""Numbers, seals and sends commands: one count over all of an aggregator's commands, whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vedette_core.machine import Publish
from vedette_core.runtime.identity import NodeIdentity
from vedette_core.runtime.storage import StateStore
from vedette_schemas.command import COMMAND_TYPE, Command
from vedette_schemas.envelope import seal
from vedette_schemas.topics import Topics

SEQUENCE_KEY: Final = "command/seq"
COMMAND_LIFETIME_S: Final = 600.0


class CommandPost:
    """Sends commands to devices.

    Args:
        topics: the site's topics.
        node: own id and signer.
        store: where the count is kept.
        publish: puts a message on its way.
    """

    def __init__(
        self, topics: Topics, node: NodeIdentity, store: StateStore, publish: Callable[[Publish], None]
    ) -> None:
        self._topics, self._node, self._store, self._publish = topics, node, store, publish

    def send(self, device: str, now: float, **fields: Any) -> None:
        """Send one command; its number is on disk before it leaves.

        Args:
            device: whom it is for.
            now: epoch seconds.
            fields: action, task and what else belongs to it, as in `Command`.

        Raises:
            TransientError: the disk is full.
        """
        stored = self._store.get(SEQUENCE_KEY)
        # From the clock, so that an aggregator restored from an old backup is not taken for a repetition.
        sequence = max(int(stored or b"0") + 1, int(now * 1000))
        self._store.put(SEQUENCE_KEY, str(sequence).encode())
        command = Command(device=device, seq=sequence, issued_s=now, expires_s=now + COMMAND_LIFETIME_S, **fields)
        sealed = seal(command, COMMAND_TYPE, self._node.id, self._node.signer)
        self._publish(Publish(self._topics.command(device), sealed, qos=0))
