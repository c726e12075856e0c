"""The scenario ``tampered-device``: what it alters, what it reads from the log, and which broken promises it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vedette.demo import tampered_device
from vedette.demo.diary import Diary
from vedette.demo.tampered_device import ALTERED_FILE, alter, broken_tampered, refusals

LOG = """\
11:31:13 info    vedette.shell: light-11: attested, tier 0, boot 1
11:31:13 info    vedette.aggregator: vedette/1/s/device/light-07/up/fl/network/checkin: passport-missing: found no …
11:31:13 warning vedette.shell: attestation of light-07: unknown-software: found vedette de1c…, expected 8b5d…
11:31:14 warning vedette.shell: attestation of light-08: boot-count: found boot 1, expected 2 or higher
11:31:16 warning vedette.shell: attestation of light-07: unknown-software: found vedette de1c…, expected 8b5d…
"""
GOOD: dict[str, Any] = {
    "devices": 12,
    "tampered": "light-07",
    "tampered_is_refused": True,
    "rule_of_its_evidence": ["unknown-software"],
    "rule_of_its_check_in": ["passport-missing"],
    "tampered_was_attested": False,
    "tampered_in_rosters": 0,
    "devices_attested": 11,
    "rounds_wanted": 3,
    "rounds_completed": 3,
    "updates_in_release": [11, 11, 11],
}


def test_the_rules_are_read_from_the_aggregators_log() -> None:
    assert refusals(LOG, "light-07") == {"evidence": ["unknown-software"], "check_in": ["passport-missing"]}
    assert refusals(LOG, "light-08") == {"evidence": ["boot-count"], "check_in": []}
    assert refusals(LOG, "light-11") == {"evidence": [], "check_in": []}


def test_what_was_promised() -> None:
    assert broken_tampered(GOOD) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tampered_is_refused": False}, "was not refused"),
        ({"rule_of_its_evidence": ["stale"]}, "expected unknown-software"),
        ({"tampered_was_attested": True}, "took part"),
        ({"tampered_in_rosters": 1}, "took part"),
        ({"devices_attested": 10}, "expected the 11 others"),
        ({"rounds_completed": 2}, "2 of 3 rounds"),
        ({"updates_in_release": [11, 12]}, "12 updates"),
    ],
)
def test_a_broken_promise_is_said(changes: dict[str, Any], says: str) -> None:
    (said,) = broken_tampered({**GOOD, **changes})
    assert says in said


def test_the_copy_differs_in_one_line_of_one_file(tmp_path: Path) -> None:
    alter(tmp_path)
    import vedette_device

    original = Path(vedette_device.__path__[0]).parent / ALTERED_FILE
    before, after = (p.read_text().splitlines() for p in (original, tmp_path / ALTERED_FILE))
    different = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(different) == 1
    assert different[0][1].strip() == tampered_device.ALTERATION


def test_the_diary_knows_who_was_attested() -> None:
    diary = Diary()
    diary.take('{"what": "attested", "device": "light-01"}')
    diary.take('{"what": "attested", "device": "light-01"}')
    assert diary.attested == {"light-01"}
