"""A signed policy: read, held to its site and version, and what it says about measurements.

Measurements of the configuration and of models are reported and not compared unless the policy lists them: they differ
from device to device, and change with every release. Everything else that a device measures must be listed, and
everything that is listed must be measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from vedette_core.attestation.keys import RawKeys
from vedette_core.attestation.rules import refusal
from vedette_schemas.attestation import (
    POLICY_ID,
    POLICY_TYPE,
    AttestationPolicy,
    BootLayer,
    Measurement,
    Pcr,
    Reference,
)
from vedette_schemas.envelope import unseal
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

REPORTED_ONLY: Final = ("configuration", "model/")
"""Beginnings of components that a policy need not list."""
HARDWARE: Final = ("boot/", "pcr/")
"""Beginnings of components that only evidence of tiers 1 and 2 has."""


def read_policy(data: bytes, key: bytes, site: str, *, version_min: int = 0) -> AttestationPolicy:
    """Open a policy.

    Args:
        data: the file.
        key: raw Ed25519 public key of whoever may write policies.
        site: the site that it must be for.
        version_min: newest version that was in force here: an older one is a roll-back.

    Raises:
        ConfigError: not a policy, another key's, or another site's.
        RefusedError: older than `version_min` (rule ``older-policy``).
    """
    try:
        policy, _ = unseal(AttestationPolicy, data, POLICY_TYPE, RawKeys({POLICY_ID: (key,)}), sender=POLICY_ID)
    except PeerError as fault:
        raise ConfigError(f"attestation policy: {fault}; make one with `vedette attest reference`") from fault
    if policy.site != site:
        raise ConfigError(f"attestation policy: found one of site {policy.site!r}, expected {site!r}")
    if policy.version < version_min:
        raise RefusedError(
            f"attestation policy: found version {policy.version}, expected {version_min} or newer: that one was in "
            "force here already",
            rule="older-policy",
        )
    return policy


def check_software(policy: AttestationPolicy, measured: Iterable[Measurement], whose: str) -> None:
    """Check what a device measured of itself.

    Raises:
        RefusedError: ``denied-software unknown-software old-software missing-software``.
    """
    references = {r.component: r for r in policy.references}
    left = {name for name in references if not name.startswith(HARDWARE)}
    for found in measured:
        _check_denied(policy, found.component, found.digest, whose)
        reference = references.get(found.component)
        if reference is None:
            if not found.component.startswith(REPORTED_ONLY):
                raise refusal("unknown-software", whose, found.component, "nothing that the policy does not list")
            continue
        left.discard(found.component)
        _check_version(reference, found.version, whose)
        _check_digest(reference, found.digest, "unknown-software", whose)
    if left:
        raise refusal("missing-software", whose, "no measurement of " + ", ".join(sorted(left)[:5]), "one each")


def check_layers(policy: AttestationPolicy, layers: Iterable[BootLayer], whose: str) -> None:
    """Check the layers of a boot chain; every layer must be listed, and every listed one be there, each once.

    A layer says itself what comes behind it: one that is not good could vouch for a good one of its own name.

    Raises:
        RefusedError: ``boot-chain denied-software unknown-software missing-software``.
    """
    found: dict[str, bytes] = {}
    for layer in layers:
        if f"boot/{layer.name}" in found:
            raise refusal("boot-chain", whose, f"layer {layer.name} twice", "each layer once")
        found[f"boot/{layer.name}"] = layer.measurement
    _check_hardware(policy, "boot/", found, "unknown-software", whose)


def check_registers(policy: AttestationPolicy, registers: Iterable[Pcr], whose: str) -> None:
    """Check the values of a TPM's registers: exactly those that the policy lists.

    Raises:
        RefusedError: ``denied-software wrong-pcr missing-software``.
    """
    found = {f"pcr/{pcr.index}": pcr.value for pcr in registers}
    _check_hardware(policy, "pcr/", found, "wrong-pcr", whose)


def _check_hardware(
    policy: AttestationPolicy, beginning: str, found: Mapping[str, bytes], rule: str, whose: str
) -> None:
    references = {r.component: r for r in policy.references if r.component.startswith(beginning)}
    if not references:
        raise refusal("missing-software", whose, f"a policy without {beginning}…", "reference values for this tier")
    for component, digest in found.items():
        _check_denied(policy, component, digest, whose)
        if component not in references:
            raise refusal(rule, whose, component, ", ".join(sorted(references)))
        _check_digest(references[component], digest, rule, whose)
    missing = sorted(references.keys() - found.keys())
    if missing:
        raise refusal("missing-software", whose, f"nothing about {', '.join(missing[:5])}", "it in the evidence")


def _check_denied(policy: AttestationPolicy, component: str, digest: bytes, whose: str) -> None:
    if digest in policy.denied:
        raise refusal("denied-software", whose, f"{component} {digest.hex()[:16]}…", "none that the policy denies")


def _check_digest(reference: Reference, digest: bytes, rule: str, whose: str) -> None:
    if digest not in reference.digests:
        good = ", ".join(f"{d.hex()[:16]}…" for d in reference.digests[:3])
        raise refusal(rule, whose, f"{reference.component} {digest.hex()[:16]}…", good)


def _check_version(reference: Reference, version: str, whose: str) -> None:
    if version in reference.versions_denied:
        raise refusal("denied-software", whose, f"{reference.component} {version}", "a version that is not denied")
    if reference.version_min and _numbers(version) < _numbers(reference.version_min):
        raise refusal("old-software", whose, f"{reference.component} {version!r}", f"{reference.version_min} or newer")


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, trailing zeros away; none for what begins with something else."""
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})*", version)
    numbers = [int(n) for n in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
