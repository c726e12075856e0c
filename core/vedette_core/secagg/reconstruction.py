"""From shares back to secrets, although some members lie: commitments tell right from wrong.

The shares of as many members as needed are tried for everything at once. A secret that does not match its commitment
is tried with other subsets of members, until one matches: then it is right, whatever the members said.

Who lied is another question. A subset that matches lies on one polynomial; the others' shares do or do not. But it need
not be the polynomial that was dealt: wrong shares can add up to the right secret, by chance or on purpose. Of an honest
device, all members but `corrupt_max` agree on one polynomial that matches, so that a **device is to blame** where all
subsets were tried and there is none. Where there is one, members beside it gave wrong shares **or were dealt them**,
which nothing in a share tells: who is beside it for most devices is named, as a suspicion, to be looked at by a person.

Source: Shamir 1979; the search is bounded, so that a handful of liars are found, not any number (`docs/protocol.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from math import comb
from typing import Final

import numpy as np

from vedette_core.crypto.shamir import combine, share_at
from vedette_core.secagg.secrets import commitment
from vedette_schemas.secagg import SECRET_BYTES

SUBSETS_MAX: Final = 20_000
"""Subsets that are tried for one secret: all 3,003 of 10 in 15, and more than five liars in 32 need (about 800)."""
SUBSETS_MAX_IN_ALL: Final = 60_000
"""Subsets that are tried for all secrets of a group together: some seconds, however many devices and members lie."""
OMITTED_MAX: Final = 2
"""Where there are too many subsets, those that leave out so few members are tried first, all of them: liars are few."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What there is to open of one survivor.

    Attributes:
        device: whose secrets they are.
        indices: places of the secrets in the device's commitments.
        commitments: the device's commitments at those places.
        shares: by member number from 1, the shares of those secrets, concatenated, 16 bytes each.
        complaints: members that say that their box did not open, and give no shares. If the device is honest, they are
            corrupt, and as many less among those who give shares.
    """

    device: str
    indices: tuple[int, ...]
    commitments: tuple[bytes, ...]
    shares: Mapping[int, bytes] = field(repr=False)
    complaints: int = 0


@dataclass
class Reconstruction:
    """Opens claims of one group.

    Attributes:
        transcript: of the group.
        threshold: shares that open a secret.
        corrupt_max: members that may lie.
        disputes: by device, the numbers of members whose shares contradict what most others agree on.
        failed: devices whose secrets could not be opened.
        dealt_wrong: devices that are to blame, because no `corrupt_max` members can have made it look so.
    """

    transcript: bytes
    threshold: int
    corrupt_max: int
    disputes: dict[str, set[int]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    dealt_wrong: set[str] = field(default_factory=set)
    _opened: set[str] = field(default_factory=set)
    _left: int = SUBSETS_MAX_IN_ALL

    @property
    def liars(self) -> set[int]:
        """Numbers of members that contradict more than half of the devices whose secrets were opened, those that are
        to blame themselves left out. A few devices cannot make an honest member look so; liars that conspire can."""
        believed = self._opened - self.dealt_wrong
        times = [x for device, numbers in self.disputes.items() if device in believed for x in numbers]
        return {x for x in times if 2 * times.count(x) > len(believed)}

    def open(self, claims: Sequence[Claim]) -> dict[str, tuple[bytes, ...]]:
        """Open as many claims as possible; those that stay closed are in `failed`.

        Returns:
            The secrets, by device, in the order of the claim's indices.
        """
        opened = {}
        for claim in claims:
            secrets = self._open(claim)
            if secrets is None:
                self.failed.add(claim.device)
            else:
                self._opened.add(claim.device)
                opened[claim.device] = secrets
        return opened

    def _open(self, claim: Claim) -> tuple[bytes, ...] | None:
        order = self._by_trust(claim)
        if len(order) < self.threshold:
            return None
        base = {x: claim.shares[x] for x in order[: self.threshold]}
        secrets = _cut(combine(base))
        right = all(self._matches(claim, place, secret) for place, secret in enumerate(secrets))
        if right and self._agree(claim, base, claim.shares):
            return tuple(secrets)
        for place in range(len(secrets)):
            secret = self._search(claim, place, {x: _piece(claim.shares[x], place) for x in self._by_trust(claim)})
            if secret is None:
                return None
            secrets[place] = secret
        return tuple(secrets)

    def _by_trust(self, claim: Claim) -> list[int]:
        """Members that gave shares, those first whom nobody contradicts."""
        times = {x: sum(x in numbers for numbers in self.disputes.values()) for x in claim.shares}
        return sorted(claim.shares, key=lambda x: (times[x], x))

    def _agree(self, claim: Claim, right: Mapping[int, bytes], given: Mapping[int, bytes]) -> bool:
        """Whether all but as many members as can be corrupt are on the polynomial; then the others are beside it."""
        beside = {x for x in given if x not in right and share_at(right, x) != given[x]}
        if len(beside) > self._corrupt_in(claim):
            return False
        if beside:
            self.disputes.setdefault(claim.device, set()).update(beside)
        return True

    def _corrupt_in(self, claim: Claim) -> int:
        """Members that may have given wrong shares of an honest device."""
        return max(0, self.corrupt_max - claim.complaints)

    def _matches(self, claim: Claim, place: int, secret: bytes) -> bool:
        return commitment(self.transcript, claim.device, claim.indices[place], secret) == claim.commitments[place]

    def _search(self, claim: Claim, place: int, pieces: Mapping[int, bytes]) -> bytes | None:
        """One secret, from the shares of members by trust; None if no subset that was tried opens it."""
        numbers = list(pieces)
        # On one polynomial, all subsets open to the same.
        base = {x: pieces[x] for x in numbers[: self.threshold]}
        on_one = all(share_at(base, x) == pieces[x] for x in numbers[self.threshold :])
        all_tried = on_one or comb(len(numbers), self.threshold) <= min(SUBSETS_MAX, self._left)
        found = None
        for subset in self._subsets(numbers, only_first=on_one):
            right = {x: pieces[x] for x in subset}
            secret = combine(right)
            if self._matches(claim, place, secret):
                found = secret
                if self._agree(claim, right, pieces) or claim.device in self.dealt_wrong:
                    return secret
        if all_tried and len(numbers) >= self.threshold + self._corrupt_in(claim):
            self.dealt_wrong.add(claim.device)
        return found

    def _subsets(self, numbers: Sequence[int], *, only_first: bool) -> Iterator[tuple[int, ...]]:
        limit = min(1 if only_first else SUBSETS_MAX, self._left)
        for subset in islice(self._all_subsets(numbers), limit):
            self._left -= 1
            yield subset

    def _all_subsets(self, numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
        yield tuple(numbers[: self.threshold])
        suspects = numbers[::-1]
        if comb(len(numbers), self.threshold) <= SUBSETS_MAX:
            for left_out in islice(combinations(suspects, len(numbers) - self.threshold), 1, None):
                yield tuple(x for x in numbers if x not in left_out)
            return
        for omitted in range(1, OMITTED_MAX + 1):
            for left_out in combinations(suspects, omitted):
                yield tuple(x for x in numbers if x not in left_out)[: self.threshold]
        # From the transcript: the same search for whoever repeats it, and another one in every group.
        rng = np.random.default_rng(int.from_bytes(self.transcript[:16], "big"))
        while True:
            yield tuple(int(x) for x in rng.choice(np.array(numbers), self.threshold, replace=False))


def _cut(secrets: bytes) -> list[bytes]:
    return [secrets[i : i + SECRET_BYTES] for i in range(0, len(secrets), SECRET_BYTES)]


def _piece(shares: bytes, place: int) -> bytes:
    return shares[place * SECRET_BYTES : (place + 1) * SECRET_BYTES]
