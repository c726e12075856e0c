"""Who is in which cohort of a rollout: a keyed hash of the device's id, which both sides compute alike.

Devices below the share run the candidate; as many at the other end of the scale are compared with them. A share says
nothing about devices that nobody counted when it was set, so small cohorts are named as well. The salt is drawn anew
for each rollout, so that not the same few devices try everything first. It is public: cohorts are a sample, and no
secret.

Source: RFC 2104 (HMAC); ADR 0020.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from typing import Final, Literal

from vedette_schemas.rollout import PPM, RolloutState

_CONTEXT: Final = b"vedette-rollout-1\0"

Cohort = Literal["candidate", "control", "rest", "pinned"]


def bucket(salt: bytes, device: str) -> int:
    """A device's place on the scale of shares, 0 to `PPM` − 1."""
    digest = hmac.new(salt, _CONTEXT + device.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") * PPM >> 64


def share_of(salt: bytes, devices: Collection[str], wanted: int) -> int:
    """The largest share, in ppm, below which no more than `wanted` of these devices are.

    Devices that are not known yet fall below it in the same proportion.
    """
    places = sorted(bucket(salt, device) for device in devices)
    return PPM if wanted >= len(places) else places[max(0, wanted)]


def members_of(salt: bytes, devices: Collection[str], wanted: int, before: Collection[str], below: int) -> list[str]:
    """A cohort by name: those that were in it, and the lowest of these devices up to a number; sorted.

    Args:
        salt: of the rollout.
        devices: that may come in.
        wanted: how many it has in the end, if there are so many.
        before: who was in it, and stays.
        below: nobody comes in from this place on, in ppm.
    """
    places = sorted((place, d) for d in set(devices) - set(before) if (place := bucket(salt, d)) < below)
    return sorted([*before, *(d for _, d in places[: max(0, wanted - len(before))])])


def control_of(salt: bytes, devices: Collection[str], wanted: int) -> int:
    """The largest share at the upper end, in ppm, that no more than `wanted` of these devices are in."""
    places = sorted(PPM - 1 - bucket(salt, device) for device in devices)
    return PPM if wanted >= len(places) else places[max(0, wanted)]


def cohort(state: RolloutState, device: str) -> Cohort:
    """Which cohort of a rollout a device is in, whatever the rollout's phase."""
    if any(pin.device == device for pin in state.pins):
        return "pinned"
    place = bucket(state.salt, device)
    if place < state.share_ppm:
        return "candidate" if not state.members or device in state.members else "rest"
    return "control" if place >= PPM - state.control_ppm else "rest"
