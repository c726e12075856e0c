"""Who is in which cohort of a rollout: a keyed hash of the device's id, which both sides compute alike.

Devices below the share run the candidate; as many at the other end of the scale are compared with them. The salt is
drawn anew for each rollout, so that not the same few devices try everything first. It is public: cohorts are a sample,
and no secret.

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
        return "candidate"
    return "control" if place >= PPM - state.control_ppm else "rest"
