"""Compares a transcript with the one in ``golden/``, which is part of the protocol's documentation.

After a change that is meant: ``REGENERATE_GOLDEN=1 pytest tests/scenarios`` writes them anew; read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def assert_golden(name: str, lines: Sequence[str]) -> None:
    """Compare lines with ``golden/{name}.txt``."""
    path = GOLDEN / f"{name}.txt"
    text = "\n".join(lines) + "\n"
    if os.environ.get("REGENERATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"the transcript differs from {path.name}"
