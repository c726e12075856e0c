"""Light nodes hold what real nodes hold: rows that are cut without overlap, lies that the protocol lets pass."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from vedette.demo.lies import attack_on_deltas, poisoned, unclipped_levels
from vedette.demo.light_node import RoundWatch
from vedette.demo.light_rows import BenignWindows, LightRows, cut, synthetic
from vedette.demo.plain_mean import plain_mean
from vedette.demo.swarm import vanishing
from vedette.demo.swarm_settings import SwarmSettings, VanishSection
from vedette_aggregator.round_settings import RoundSettings
from vedette_core.learning.encoding import Encoding, aggregate, encode
from vedette_core.learning.local_training import TrainingResult
from vedette_core.learning.network import build_network
from vedette_core.learning.spec import flow_spec
from vedette_schemas.errors import ConfigError
from vedette_schemas.features import NETWORK_FLOWS
from vedette_schemas.round import Phase, RoundOpen

SHAPE = NETWORK_FLOWS.input_shape
NETWORK = build_network(flow_spec(*SHAPE))


def numbered(gateways: int, rows: int) -> BenignWindows:
    """Each row is filled with its own number."""
    made = tuple(
        np.broadcast_to((g * 1000 + np.arange(rows, dtype=np.float32))[:, None, None], (rows, *SHAPE)).copy()
        for g in range(gateways)
    )
    return BenignWindows(made, made)


def numbers(x: np.ndarray) -> set[int]:
    return {int(row[0, 0]) for row in x}


@pytest.mark.parametrize("nodes", [1, 3, 4, 7, 8])
def test_no_row_is_given_twice_and_the_root_set_is_nobodys(nodes: int) -> None:
    pieces, root = cut(numbered(4, 60), nodes)
    held = [numbers(piece) for piece in (*pieces, root)]
    assert len(pieces) == nodes
    assert all(held)
    assert sum(map(len, held)) == len(set.union(*held))
    assert all(len({n // 1000 for n in piece}) == 1 for piece in held), "a node's rows are of one gateway"
    assert {n // 1000 for n in held[-1]} == {0}


def test_too_few_rows_are_an_error() -> None:
    with pytest.raises(ConfigError, match="too few windows of 2 gateways for 8 nodes"):
        cut(numbered(2, 3), 8)


def test_rows_are_what_a_participation_asks_for() -> None:
    rows = LightRows("network", synthetic(1, 5)[0])
    assert rows.detector.training_rows == 5
    assert rows.detector.training_matrix(NETWORK).shape == (5, *SHAPE)
    assert rows.schema is NETWORK_FLOWS


def test_who_vanishes_is_drawn_anew_for_every_round_and_is_a_fixed_share() -> None:
    devices = tuple(f"d{i}" for i in range(30))
    vanishes, again = vanishing(devices, 0.2, 1), vanishing(devices, 0.2, 1)
    drawn = [{d for d in devices if vanishes(d, number)} for number in range(1, 20)]
    assert {len(gone) for gone in drawn} == {6}
    assert len({frozenset(gone) for gone in drawn}) > 10
    assert drawn == [{d for d in devices if again(d, number)} for number in range(1, 20)]
    assert not any(vanishing(devices, 0.0, 1)(d, 1) for d in devices)


def opened(number: int, attempt: int, phase: Phase) -> RoundOpen:
    return RoundOpen(
        task="network",
        round=number,
        attempt=attempt,
        model="a" * 64,
        model_version=0,
        plan="b" * 64,
        phase=phase,
        checkin_until_s=0.0,
        deadline_s=0.0,
        groups=1,
    )


@pytest.mark.parametrize(
    ("heard", "over"),
    [
        ((2, 1, Phase.UNMASK), False),
        ((2, 1, Phase.DONE), True),
        ((2, 1, Phase.FAILED), True),
        ((2, 2, Phase.CHECKIN), True),
        ((3, 1, Phase.CHECKIN), True),
        ((1, 3, Phase.FAILED), False),
    ],
)
def test_a_vanished_node_comes_back_when_its_attempt_is_over(heard: tuple[int, int, Phase], over: bool) -> None:
    async def scenario() -> None:
        watch = RoundWatch()
        watch.take(opened(2, 1, Phase.COLLECT))
        waiting = asyncio.create_task(watch.wait_over((2, 1)))
        await asyncio.sleep(0)
        watch.take(opened(*heard))
        for _ in range(3):
            await asyncio.sleep(0)
        assert waiting.done() is over
        waiting.cancel()

    asyncio.run(scenario())


# -- lies -------------------------------------------------------------------------------------------------------------

ENCODING = Encoding(4096, 3.0, b"seed")


def a_delta(norm: float) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    return np.asarray(x * np.float32(norm / np.linalg.norm(x)))


def decoded(levels: np.ndarray) -> np.ndarray:
    return aggregate(levels[None], np.ones(1, np.int64), ENCODING)


def test_a_client_that_does_not_clip_reaches_the_ends_of_the_levels_and_no_further() -> None:
    delta = a_delta(20 * 3.0)
    sent = decoded(unclipped_levels(delta, ENCODING, np.random.default_rng(1)))
    honest = decoded(np.asarray(encode(delta, ENCODING, np.random.default_rng(1)).levels))
    cosine = float(sent @ delta / np.linalg.norm(sent) / np.linalg.norm(delta))
    assert np.linalg.norm(honest) < 3.1
    assert 3.5 * 3.0 < np.linalg.norm(sent) <= 4.5 * 3.0 + 1e-3
    assert cosine > 0.7


def test_what_is_short_enough_is_sent_as_it_is() -> None:
    delta = a_delta(2.0)
    sent = decoded(unclipped_levels(delta, ENCODING, np.random.default_rng(1)))
    assert np.linalg.norm(sent - delta) < 0.05 * np.linalg.norm(delta)


def test_a_lie_changes_the_update_and_nothing_that_is_said_about_it() -> None:
    result = TrainingResult(a_delta(1.0), 2.0, 1.0, 60, {"input": (0.0, 1.0)})
    sent = poisoned(result, attack_on_deltas("sign-flip"), 3.0, np.random.default_rng(0))
    assert np.linalg.norm(sent.delta) == pytest.approx(3.0, rel=1e-5)
    assert float(sent.delta @ result.delta) < 0
    assert (sent.loss_before, sent.loss_after, sent.num_examples) == (2.0, 1.0, 60)


@pytest.mark.parametrize("name", ["label-flip", "backdoor", "no-such-attack"])
def test_an_attack_that_a_light_node_cannot_do_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        attack_on_deltas(name)


def test_a_plain_mean_learns_and_lies_hold_it_back() -> None:
    settings = RoundSettings(
        checkin_s=1.0,
        collect_s=1.0,
        interval_s=1.0,
        quorum=5,
        checkins_max=8,
        group_size=8,
        clip_norm=3.0,
        weight_max=8,
        examples_reference=64,
        local_epochs=2,
        batch_size=16,
        learning_rate=0.003,
        examples_min=16,
    )
    plan = settings.plan(
        "network",
        version=1,
        feature_schema=NETWORK_FLOWS.digest,
        network=NETWORK.spec.digest,
        dimension=NETWORK.layout.size,
    )
    rows = synthetic(6, 32)
    start = NETWORK.initial_weights(np.random.default_rng(1))
    x = np.concatenate(rows)

    def loss(*attacks: str) -> float:
        return NETWORK.loss(x, plain_mean(plan, NETWORK, start, rows, attacks, 3))

    honest = loss(*["none"] * 6)
    assert honest < NETWORK.loss(x, start)
    assert loss(*["none"] * 5, "boost") > honest


# -- settings ---------------------------------------------------------------------------------------------------------


def test_a_share_above_one_is_no_share() -> None:
    with pytest.raises(ValidationError):
        VanishSection(share=1.5)


def test_a_swarm_without_nodes_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nodes"):
        SwarmSettings(site="s", state_dir=tmp_path, trust_root=tmp_path, nodes=())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [((), 2, "usage:"), (("absent.toml",), 1, "no such file")],
)
def test_the_swarm_says_what_it_lacks(arguments: tuple[str, ...], status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vedette.demo.swarm", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
