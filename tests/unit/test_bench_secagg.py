"""The secure-aggregation benchmark plays whole rounds on both sides, and its sums are right on both."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench import flower_peer, secagg, secagg_exact  # noqa: E402
from bench.masked_group import Costs, MaskedGroup  # noqa: E402
from bench.masked_site import GroupShape, Node  # noqa: E402

from vedette_core.crypto.signing import Ed25519Signer  # noqa: E402
from vedette_core.learning.update_vector import RingArray, decode_group_mean  # noqa: E402
from vedette_core.secagg.aggregator import Unmasking  # noqa: E402
from vedette_schemas.errors import PeerError  # noqa: E402

SHAPE = GroupShape(members_max=8, survivors_min=3, committee=4, votes_min=3, threshold=2, corrupt_max=1)


def group(d: int = 700, shape: GroupShape = SHAPE) -> MaskedGroup:
    return MaskedGroup(shape, 7, d, gid=1, groups=2, rng=np.random.default_rng(1))


def test_a_group_is_opened_without_those_that_vanished_and_everything_is_timed() -> None:
    played, costs = group(), Costs()
    gone = [node.name for node in played.devices[2:5]]
    result = played.run(gone, costs, answering=3)
    assert result.survivors == 4
    assert result.weight == sum(m.weight for m in played.roster.members if m.device not in gone)
    assert np.isfinite(decode_group_mean(result, played.encoding)).all()
    assert len(costs.devices_s) == len(costs.upload_bytes) == 4
    assert len(costs.members_s) == 3
    assert set(costs.devices_s[0]) == {"check-in", "roster", "encode", "mask", "sign and seal"}
    assert costs.server_s == pytest.approx(sum(costs.server_steps_s.values()))
    assert costs.plain_s > 0


def test_signatures_are_verified() -> None:
    played = group()
    victim = played.devices[0]
    other = Ed25519Signer.from_seed(bytes(32))
    played.devices[0] = Node(victim.name, other, victim.pair, victim.offer)
    with pytest.raises(PeerError, match="a signature that its key did not make"):
        played.run((), Costs())


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Unmasking.unmask

    def unmask(unmasking: Unmasking, total: RingArray) -> None:
        honest(unmasking, total)
        total[0] += 1

    monkeypatch.setattr(Unmasking, "unmask", unmask)


def test_a_sum_that_is_not_the_survivors_is_not_passed_off_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_one(monkeypatch)
    with pytest.raises(AssertionError, match="not that of the survivors"):
        group().run((), Costs())


def test_large_vectors_are_measured_without_an_envelope() -> None:
    played = group(d=130_000)
    costs = Costs()
    assert not played.enveloped
    played.run([n.name for n in played.devices[3:]], costs)
    assert min(costs.upload_bytes) > 2 * 130_000


def test_whoever_vanishes_leaves_every_group_enough() -> None:
    groups = [group(), group()]
    rng = np.random.default_rng(2)
    for _ in range(20):
        gone, _ = secagg.draw_missing(groups, 0.5, rng)
        assert len(gone) == 7
        assert all(7 - sum(name.startswith(f"{g}/") for name in gone) >= SHAPE.survivors_min for g in range(2))


def test_exact_rounds_of_every_kind() -> None:
    counts = secagg_exact.campaign((3, 0, 16))
    assert counts["rounds"] == 16
    assert counts["mismatches"] == counts["unopened"] == counts["refused"] == 0
    assert all(counts[kind] > 0 for kind in ("ring 16", "ring 32", "helpers", "inline", "with dropout"))


def test_an_exact_round_would_notice_one_wrong_element(monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_one(monkeypatch)
    counts = secagg_exact.campaign((3, 0, 4))
    assert counts["mismatches"] == counts["rounds"] == 4


def test_drawn_sizes_stay_within_their_limits() -> None:
    rng = np.random.default_rng(4)
    drawn = [secagg_exact.draw(rng) for _ in range(2000)]
    assert {d.members for d in drawn} >= {2, 3, 64}
    assert {d.shape.committee for d in drawn} >= {2, 3, 60}
    for sizes in drawn:
        shape = sizes.shape
        assert 2 * shape.votes_min > shape.committee + shape.corrupt_max
        assert shape.corrupt_max < shape.threshold <= shape.votes_min <= sizes.answering <= shape.committee
        assert sizes.members - sizes.missing >= 1
        assert sizes.missing <= 0.7 * sizes.members + 1


def test_a_liar_is_found_and_the_sum_is_right_all_the_same() -> None:
    shape = GroupShape(members_max=6, survivors_min=1, committee=5, votes_min=4, threshold=3, corrupt_max=2)
    sizes = secagg_exact.Draw(shape, members=6, missing=2, length=9, answering=5, lying=True)
    found = 0
    for seed in range(8):
        total, expected, liars = secagg_exact.play(sizes, np.random.default_rng(seed))
        np.testing.assert_array_equal(total, expected)
        found += liars
    assert 1 <= found <= 8


def test_processes_count_alike() -> None:
    alone, together = (secagg_exact.measure(4, 9, processes) for processes in (1, 2))
    for changing in ("seconds", "processes"):
        del alone[changing], together[changing]
    assert alone == together


def test_one_process_aggregates_on_its_own_and_says_what_it_needed() -> None:
    command = [sys.executable, str(ROOT / "bench" / "secagg.py"), "--aggregate", "50", "--scale-d", "100"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["devices"] == 50
    assert result["server_s"] > 0
    assert result["peak_bytes"] > 0


def test_without_the_peer_its_rows_are_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(secagg, "CASES", {name: secagg.Case(1, 8, 8) for name in ("4x25", "3x32")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    missing = tmp_path / "nothing"
    monkeypatch.setattr(
        sys, "argv", ["secagg.py", "--d", "64", "--repetitions", "1", "--scale", "--json", "--flower", str(missing)]
    )
    secagg.main()
    figures = json.loads(capsys.readouterr().out)
    assert (
        figures["flower"] == f"skipped: not installed: no flwr here and nothing at {missing}, see bench/flower_peer.txt"
    )
    assert figures["ratio_server"] is None
    assert figures["ours"]["4x25"]["0.0"]["server_ms"] > 0
    assert figures["plain"]["0.3"]["server_ms"] > 0


def test_the_peer_is_given_only_rounds_that_can_end() -> None:
    ring = {i: {(i + k) % 20 for k in range(-2, 3)} for i in range(20)}
    missing, redraws = flower_peer.draw_missing(ring, 0.3, 3, np.random.default_rng(1))
    assert len(missing) == 6
    assert redraws >= 0
    assert all(len(known - missing) >= 3 for known in ring.values())
    with pytest.raises(flower_peer.UnavailableError, match="no round could end"):
        flower_peer.draw_missing({0: {0, 1}, 1: {0, 1}}, 0.5, 2, np.random.default_rng(1))


def test_payload_counts_byte_strings_only() -> None:
    record = {"a": b"123", "b": [b"45", b"6"], "c": [1, 2], "d": 3}
    assert flower_peer._payload(record) == 6


def test_a_function_of_the_peer_is_timed_and_put_back() -> None:
    ticks = iter(range(10))
    module = SimpleNamespace(double=lambda x: 2 * x)
    original = module.double
    timed = flower_peer._Timed(original, lambda: float(next(ticks)))
    with timed.installed(module, "double"):
        assert module.double(4) == 8
    assert module.double is original
    assert timed.seconds == 1.0


@pytest.fixture(scope="module")
def flower() -> flower_peer.Flower:
    try:
        return flower_peer.load()
    except flower_peer.UnavailableError as error:
        pytest.skip(f"the benchmark's peer: {error}")


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_peer_computes_the_mean_of_those_that_stayed(flower: flower_peer.Flower, dropout: float) -> None:
    d = 50
    cost = flower_peer.run_round(flower, d, dropout, np.random.default_rng(1), clients=12, num_shares=7, threshold=3)
    assert len(cost.stayed) == 12 - round(12 * dropout)
    np.testing.assert_allclose(cost.mean, flower_peer.expected_mean(cost.stayed, d), atol=flower_peer.MEAN_ERROR_MAX)
    assert set(cost.device_stages_s) == {"setup", "share_keys", "collect_masked_vectors", "unmask"}
    assert 0 < cost.combine_s < cost.server_s
    assert cost.vector_bytes == 8 * d + 128, "int64, behind numpy's header"


def test_the_benchmark_prints_both_sides(
    flower: flower_peer.Flower, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(secagg, "DEVICES", 22)
    monkeypatch.setattr(secagg, "CASES", {name: secagg.Case(1, 8, 8) for name in ("4x25", "3x32")})
    monkeypatch.setattr(secagg, "DROPOUTS", (0.0, 0.05))
    monkeypatch.setattr(sys, "argv", ["secagg.py", "--d", "64", "--repetitions", "2", "--scale", "25", "50", "--json"])
    secagg.main()
    figures = json.loads(capsys.readouterr().out)
    keys = ("ratio_server", "ratio_device", "bytes_per_param")
    assert all(figures[key] > 0 for key in keys)
    assert figures["flower"]["version"] == flower.version
    assert figures["flower"]["0.0"]["server_ms"] > figures["flower"]["0.0"]["server combine shares ms"] > 0
    assert set(figures["growth"]["server_s"]) == set(figures["memory"]["peak_mb"]) == {"25", "50"}
