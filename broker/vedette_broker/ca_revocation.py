"""What the authority takes back: revocations, and the numbered list that says so.

The index is written before the list: after a crash between the two the next list has a higher number, and nobody ever
sees two lists of one number.

While one authority takes another's place (`ca_authority`), the newest that has its key here makes the list, which names
both. The earlier one's serial number is put on the list once its last leaf has ended; only then its certificate leaves
``ca.crt`` and its key is removed. Each step is taken again if a crash came before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509

from vedette_broker.ca_store import (
    EARLIER_KEY,
    ISSUING_KEY,
    NEXT_KEY,
    Index,
    Issued,
    Leaf,
    Revoked,
    issuing,
    load_chain,
    locked,
    over,
    pem,
    read_index,
    with_key,
    write_index,
    writing,
)
from vedette_core.crypto.certificates import LEAF_DAYS, Issuer
from vedette_core.crypto.published_list import LIST_FILE_BYTES_MAX, join_der, join_pem
from vedette_core.crypto.revocation import (
    LIST_DAYS,
    Revocation,
    RevocationList,
    RevocationReason,
    make_list,
    read_list,
)
from vedette_core.runtime.durable import remove_durable, replace_file
from vedette_core.runtime.identity import Bundle, read_file
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

LIST_FILE: Final = "crl.pem"
LEAF_S: Final = LEAF_DAYS * 86_400.0
RETIRED: Final = "online-authority"
"""Whose serial number it is, in the index, when an authority is on the list; no node is looked up by it."""
REFRESH_S: Final = LIST_DAYS * 86_400 / 2
"""A list is made anew at half of its life, so that nobody's becomes stale while the authority works."""


def revoke(directory: Path, holder: str, reason: RevocationReason, *, now: float) -> RevocationList:
    """Revoke every certificate of an id that has not ended, and every open token for it, or a token; and make a list.

    Args:
        directory: the certificate authority's.
        holder: a node's id, or a token's.
        reason: why.
        now: epoch seconds.

    Returns:
        The new list.

    Raises:
        ConfigError: no certificate authority there, or it never issued anything to that id.
        RefusedError: everything of that id has ended or is revoked already, or the list is full.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        line = index.issued.get(holder)
        # An invitation that is still open would bring back who was just thrown out.
        invitations = [t for t in index.tokens.values() if t.id == holder or (t.holder == holder and not t.used_for)]
        leaves = [Leaf(token.bootstrap, token.not_after) for token in invitations]
        for token in invitations:
            del index.tokens[token.id]
        if line is not None:
            leaves += [*line.earlier, *(Leaf(serial, line.not_after) for serial in line.serials)]
        elif not invitations:
            raise ConfigError(
                f"{holder}: found no certificate of it in {directory}, expected an id of `vedette ca list`"
            )
        fresh = [leaf for leaf in leaves if leaf.not_after > now and leaf.serial not in index.revoked]
        if not fresh:
            raise RefusedError(
                f"{holder}: found all of its certificates ended or revoked, expected one in force", rule="revoked"
            )
        for leaf in fresh:
            index.revoked[leaf.serial] = Revoked(leaf.serial, holder, now, reason, leaf.not_after)
        return publish_list(directory, index, now)


def refresh(directory: Path, *, now: float) -> RevocationList:
    """Make a new list, whether or not there is news.

    Raises:
        ConfigError: no certificate authority there, or it cannot be written.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        return publish_list(directory, index, now)


def refresh_if_due(directory: Path, *, now: float) -> RevocationList:
    """The newest list, made anew if half of its life is over.

    Raises:
        ConfigError: no certificate authority there, or it cannot be written.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        if not refresh_due(index, directory, now):
            return newest_list(directory)
        return publish_list(directory, index, now)


def newest_list(directory: Path) -> RevocationList:
    """The list that was made last.

    Raises:
        ConfigError: no certificate authority there, no list, or a damaged one.
    """
    read_index(directory)
    root, authorities = load_chain(directory)
    path = directory / LIST_FILE
    if not path.exists():
        raise ConfigError(f"{path}: not found; make a revocation list with `vedette ca crl`")
    try:
        return read_list(read_file(path, LIST_FILE_BYTES_MAX), root, authorities)
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}; make a new one with `vedette ca crl`") from fault


def refresh_due(index: Index, directory: Path, now: float) -> bool:
    """Tell whether a new list is due.

    There is none, it is not the index's, half of its life is over, or it does not name the authorities in force.
    """
    try:
        newest = newest_list(directory)
    except ConfigError:
        return True
    if newest.number != index.list_number or now >= newest.issued_at + REFRESH_S:
        return True
    authorities = load_chain(directory)[1]
    if set(newest.authorities) != set(authorities):
        return True
    return any(now >= index.retiring.get(f"{c.serial_number:x}", now) for c in earlier_ones(directory, authorities))


def publish_list(directory: Path, index: Index, now: float) -> RevocationList:
    """Make the next list and put it where it is looked for: beside the index, and into every bundle here.

    The caller holds the lock; the index is written. The authorities in force go into the list and into every
    ``ca.crt`` here; an earlier one whose last leaf has ended is taken out of service.

    Raises:
        RefusedError: the list is full.
        ConfigError: no authority's key is here, or the certificate of the newest has ended.
    """
    _catch_up(directory, index)
    index.forget_ended(now)
    root, authorities = load_chain(directory)
    signer, *others = _signers(directory, authorities, now)
    _retire(directory, index, authorities, now)
    in_force = tuple(c for c in authorities if f"{c.serial_number:x}" not in index.revoked)
    index.list_number += 1
    entries = [Revocation(int(r.serial, 16), r.at, r.reason) for r in index.revoked.values() if r.not_after > now]
    der = make_list(signer, index.list_number, entries, now=now)
    made = read_list(join_der(der, in_force), root, authorities)
    # For programs that want a list of each leaf's own issuer; whoever wants one list takes the first.
    rest = [make_list(o, index.list_number, entries, now=now) for o in others if o.certificate in in_force]
    write_index(directory, index)
    anchors, listed = pem(root, *in_force), join_pem(der, in_force, tuple(rest))
    if in_force != authorities:
        replace_file(directory / "online" / "ca.crt", anchors, 0o644)
    if not earlier_ones(directory, in_force):
        remove_durable(directory / "online" / EARLIER_KEY)
    for folder in sorted((directory / "bundles").iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            bundle = Bundle(folder)
            # A broker that looks at this moment shall know the authority before it sees its list.
            if not bundle.ca.exists() or bundle.ca.read_bytes() != anchors:
                replace_file(bundle.ca, anchors, 0o644)
            replace_file(bundle.crl, listed, 0o644)
    # Last: as long as this is not the index's, another list is due, and goes into every bundle.
    replace_file(directory / LIST_FILE, listed, 0o644)
    return made


def earlier_ones(directory: Path, authorities: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Authorities of ``ca.crt`` that issue no more.

    Raises:
        ConfigError: a key is damaged, or not that of one of them.
    """
    issuer = issuing(directory, authorities).certificate
    place = authorities.index(issuer)
    return tuple(authorities[place + 1 :])


def _signers(directory: Path, authorities: Sequence[x509.Certificate], now: float) -> list[Issuer]:
    """Authorities whose keys are here, the newest first."""
    here = {}
    for name in (EARLIER_KEY, ISSUING_KEY, NEXT_KEY):
        if (directory / "online" / name).exists():
            found = with_key(directory, name, authorities)
            if found is not None:
                here[found.certificate] = found
    signers = [here[c] for c in authorities if c in here]
    if not signers:
        issuing(directory, authorities)  # says what is wrong
        raise AssertionError("the authority that issues has its key here")
    if now >= signers[0].certificate.not_valid_after_utc.timestamp():
        raise over(directory, signers[0].certificate)
    return signers


def _retire(directory: Path, index: Index, authorities: Sequence[x509.Certificate], now: float) -> None:
    """Say until when earlier authorities count, and put those on the list whose last leaf has ended."""
    earlier = {f"{c.serial_number:x}": c for c in earlier_ones(directory, authorities)}
    # One whose time is not known yet issued until now at the latest.
    index.retiring = {serial: index.retiring.get(serial, now + LEAF_S) for serial in earlier}
    for serial, certificate in earlier.items():
        ends = certificate.not_valid_after_utc.timestamp()
        if now >= index.retiring[serial]:
            index.revoked[serial] = Revoked(serial, RETIRED, now, RevocationReason.SUPERSEDED, ends)


def _catch_up(directory: Path, index: Index) -> None:
    """Take over what the list on disk knows and the index does not: the index was restored from an older backup.

    Else the next lists would have numbers that nodes have seen, and nobody would believe them.
    """
    try:
        newest = newest_list(directory)
    except ConfigError:
        return
    if newest.number <= index.list_number:
        return
    index.list_number = newest.number
    authorities = {c.serial_number: c for c in load_chain(directory)[1]}
    holders = {serial: line.id for line in index.issued.values() for serial in line.serials}
    for number, entry in newest.entries.items():
        serial = f"{number:x}"
        ends = entry.at + LEAF_S  # at the latest
        if number in authorities:
            holders[serial], ends = RETIRED, authorities[number].not_valid_after_utc.timestamp()
        found = Revoked(serial, holders.get(serial, ""), entry.at, entry.reason, ends)
        index.revoked.setdefault(serial, found)


def status_of(line: Issued, index: Index, now: float) -> str:
    """What an id's certificates are: ``valid``, ``expired`` or ``revoked``."""
    if any(serial in index.revoked for serial in line.serials):
        return "revoked"
    return "expired" if line.not_after <= now else "valid"
