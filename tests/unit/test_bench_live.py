"""The live benchmark sends, listens and adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_what_is_sent_is_counted_at_the_other_end() -> None:
    command = [sys.executable, str(ROOT / "bench/live.py"), "--json", "--seconds", "6", "--rate", "500"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if "Operation not permitted" in found.stderr:
        pytest.skip("no network namespaces here")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert result["sent"] == 3000
    assert 0 < result["packets"] <= result["sent"]
    assert result["lost"] == result["sent"] - result["packets"]
    assert result["windows"] >= result["scores"] > 0
