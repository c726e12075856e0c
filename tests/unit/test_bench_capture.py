"""The capture benchmark measures what it says: the same synthetic capture every time, read by all sides alike."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    for needed in ("ai_edge_quantizer", "ai_edge_litert"):
        pytest.importorskip(needed, reason=f"the benchmark scores with an INT8 model, and {needed} is not installed")
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("bench_capture", BENCH / "capture.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_capture"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


def test_the_capture_is_the_same_every_time(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PACKETS", 500)
    for name in ("a", "b"):
        bench.write_capture(tmp_path / name, 10)
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a", "b")}
    assert len(digests) == 1


def test_all_sides_read_the_same_packets_and_the_result_has_the_promised_keys(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in ("dpkt", "scapy"):
        pytest.importorskip(peer, reason="a peer of the benchmark is not installed")
    monkeypatch.setattr(bench, "PACKETS", 2_000)
    monkeypatch.setattr(bench, "PEER_PACKETS", {"dpkt": 2_000, "scapy": 200})
    monkeypatch.setattr(bench, "DEVICE_COUNTS", (1, 10))
    path = tmp_path / "a.pcap"
    bench.write_capture(path, 10)
    assert bench.parse_only(path) == bench.dpkt_parse(path) == 2_000
    assert bench.scapy_parse(path) == 200
    windows = [window for batch in bench.windows_of(path) for window in batch]
    assert len({window.entity for window in windows}) >= 10
    result = bench.measure(tmp_path, repetitions=1)
    assert result["packets_per_second"] == result["by_devices"]["10"] > 0
    assert set(result["peers"]) == {"dpkt", "scapy"}
    assert result["ratio_dpkt"] > 0
    assert result["ratio_scapy"] > 0
    assert result["scores_by_devices"]["10"] > 0
