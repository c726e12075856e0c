"""A disk whose writes survive the process, and a hand on the power switch at every one of them."""

from __future__ import annotations

from collections.abc import Callable


class PowerLost(BaseException):
    """The process is gone, in the middle of what it did."""


Verdict = str | None
"""``before`` or ``after`` the write, or None."""


class Disk:
    """Keys and values that survive.

    Attributes:
        data: what is on it.
        writes: how many writes there were.
        on_written: told of every write that has happened.
        power_switch: asked at every write, with its number (from 1) and key, whether the power goes.
    """

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.writes = 0
        self.on_written: Callable[[str, bytes | None], None] = lambda _key, _value: None
        self.power_switch: Callable[[int, str], Verdict] = lambda _number, _key: None

    def put(self, key: str, value: bytes | None) -> None:
        """Write a value; None deletes."""
        self.writes += 1
        verdict = self.power_switch(self.writes, key)
        if verdict == "before":
            raise PowerLost(key)
        if value is None:
            self.data.pop(key, None)
        else:
            self.data[key] = value
        self.on_written(key, value)
        if verdict == "after":
            raise PowerLost(key)

    def below(self, prefix: str) -> dict[str, bytes]:
        """Everything whose key starts with `prefix`."""
        return {key: value for key, value in self.data.items() if key.startswith(prefix)}
