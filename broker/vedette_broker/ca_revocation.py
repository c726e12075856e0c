"""What the authority takes back: revocations, and the numbered list that says so.

The index is written before the list: after a crash between the two the next list has a higher number, and nobody ever
sees two lists of one number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vedette_broker.ca_store import (
    Index,
    Issued,
    Leaf,
    Revoked,
    load_chain,
    load_issuer,
    locked,
    read_index,
    write_index,
    writing,
)
from vedette_core.crypto.certificates import LEAF_DAYS, Issuer
from vedette_core.crypto.revocation import (
    LIST_DAYS,
    LIST_FILE_BYTES_MAX,
    Revocation,
    RevocationList,
    RevocationReason,
    make_list,
    read_list,
)
from vedette_core.runtime.durable import replace_file
from vedette_core.runtime.identity import Bundle, read_file
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

LIST_FILE: Final = "crl.pem"
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
        issuer, _ = load_issuer(directory, now)
        return publish_list(directory, index, issuer, now)


def refresh(directory: Path, *, now: float) -> RevocationList:
    """Make a new list, whether or not there is news.

    Raises:
        ConfigError: no certificate authority there, or it cannot be written.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        issuer, _ = load_issuer(directory, now)
        return publish_list(directory, index, issuer, now)


def refresh_if_due(directory: Path, *, now: float) -> RevocationList:
    """The newest list, made anew if half of its life is over.

    Raises:
        ConfigError: no certificate authority there, or it cannot be written.
    """
    with writing(directory), locked(directory):
        index = read_index(directory)
        if not refresh_due(index, directory, now):
            return newest_list(directory)
        issuer, _ = load_issuer(directory, now)
        return publish_list(directory, index, issuer, now)


def newest_list(directory: Path) -> RevocationList:
    """The list that was made last.

    Raises:
        ConfigError: no certificate authority there, no list, or a damaged one.
    """
    read_index(directory)
    root, online = load_chain(directory)
    path = directory / LIST_FILE
    if not path.exists():
        raise ConfigError(f"{path}: not found; make a revocation list with `vedette ca crl`")
    try:
        return read_list(read_file(path, LIST_FILE_BYTES_MAX), root, [online])
    except PeerError as fault:
        raise ConfigError(f"{path}: {fault}; make a new one with `vedette ca crl`") from fault


def refresh_due(index: Index, directory: Path, now: float) -> bool:
    """Tell whether a new list is due: there is none, it is not the index's, or half of its life is over."""
    try:
        newest = newest_list(directory)
    except ConfigError:
        return True
    return newest.number != index.list_number or now >= newest.issued_at + REFRESH_S


def publish_list(directory: Path, index: Index, issuer: Issuer, now: float) -> RevocationList:
    """Make the next list and put it where it is looked for: beside the index, and into every bundle here.

    The caller holds the lock; the index is written.

    Raises:
        RefusedError: the list is full.
    """
    _catch_up(directory, index)
    index.forget_ended(now)
    index.list_number += 1
    entries = [Revocation(int(r.serial, 16), r.at, r.reason) for r in index.revoked.values() if r.not_after > now]
    der = make_list(issuer, index.list_number, entries, now=now)
    made = read_list(der, load_chain(directory)[0], [issuer.certificate])
    write_index(directory, index)
    pem = made.pem
    replace_file(directory / LIST_FILE, pem, 0o644)
    for bundle in sorted((directory / "bundles").iterdir()):
        if bundle.is_dir() and not bundle.name.startswith("."):
            replace_file(Bundle(bundle).crl, pem, 0o644)
    return made


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
    holders = {serial: line.id for line in index.issued.values() for serial in line.serials}
    for number, entry in newest.entries.items():
        serial = f"{number:x}"
        ends = entry.at + LEAF_DAYS * 86_400  # at the latest
        found = Revoked(serial, holders.get(serial, ""), entry.at, entry.reason, ends)
        index.revoked.setdefault(serial, found)


def status_of(line: Issued, index: Index, now: float) -> str:
    """What an id's certificates are: ``valid``, ``expired`` or ``revoked``."""
    if any(serial in index.revoked for serial in line.serials):
        return "revoked"
    return "expired" if line.not_after <= now else "valid"
