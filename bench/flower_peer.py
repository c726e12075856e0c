"""Flower's SecAgg+ as a peer: its own client modifier and its own server workflow, in one process, timed apart.

Nothing of the protocol is written here. `SecAggPlusWorkflow` runs its four stages against a grid that hands every
message to `secaggplus_mod` of the device it is for; the grid's time is the devices', the rest is the server's. Local
training is replaced by vectors that are made on the spot, and that time counts for nobody.

Its distribution cannot be installed next to this project's, so it is looked for at the end of the path: see
``flower_peer.txt``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CLIENTS: Final = 100
NUM_SHARES: Final = 21
"""Each device shares with 20 neighbours, about 3 log₂ 100, and keeps one."""
THRESHOLD: Final = 11
"""A majority of the shares."""
MAX_WEIGHT: Final = 1000.0
"""The workflow's default, as are the clipping range (8.0), the quantisation (2²²) and the modulus (2³²)."""
WEIGHTS: Final = 8
"""Devices weigh 1 to 8 eighths of `MAX_WEIGHT`: the same spread as on our side."""
MEAN_ERROR_MAX: Final = 1e-5
"""Its quantisation has steps of 3.8e-6 for an update of full weight: at most 2 of them in a mean over our weights."""
DROPOUT_DRAWS_MAX: Final = 10_000
PATH_VARIABLE: Final = "BENCH_FLOWER"

FloatVector = npt.NDArray[np.float32]
Clock = Callable[[], float]


class UnavailableError(RuntimeError):
    """The peer cannot run here; the text says why."""


def default_folder() -> Path:
    """Where ``make bench`` puts the peer."""
    return Path(os.environ.get(PATH_VARIABLE) or Path(sys.prefix) / "flower")


@dataclass(frozen=True, slots=True)
class Flower:
    """The parts of an installed Flower that a round calls."""

    version: str
    app: Any
    typing: Any
    compat: Any
    parameters: Any
    client: Any
    server: Any
    legacy_context: Any


def load(path: Path | None = None) -> Flower:
    """Import Flower from a folder or wheel, put last on the path so that it replaces nothing of this environment.

    Raises:
        UnavailableError: it is not there, or something that it imports is not.
    """
    path = path or default_folder()
    if importlib.util.find_spec("flwr") is None:
        if not path.exists():
            raise UnavailableError(f"not installed: no flwr here and nothing at {path}, see bench/flower_peer.txt")
        sys.path.append(str(path))
        importlib.invalidate_caches()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    try:
        flwr = importlib.import_module("flwr")
        flower = Flower(
            version=str(flwr.__version__),
            app=importlib.import_module("flwr.app"),
            typing=importlib.import_module("flwr.compat.common.typing"),
            compat=importlib.import_module("flwr.compat.common.recorddict_compat"),
            parameters=importlib.import_module("flwr.compat.common.parameter"),
            client=importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod"),
            server=importlib.import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow"),
            legacy_context=importlib.import_module("flwr.server.compat.legacy_context"),
        )
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except (ImportError, AttributeError) as error:
        raise UnavailableError(f"not usable: {error}") from error
    identity.task_id, identity.run_id, identity.node_id = 1, 1, 1  # what its launcher sets; every message names them
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    return flower


def weight_of(client: int) -> int:
    """Examples of a device, in eighths of `MAX_WEIGHT`."""
    return 1 + client % WEIGHTS


def vector_of(client: int, d: int) -> FloatVector:
    """The update of a device: ``(d,)`` float32, always the same."""
    return np.random.default_rng((17, client)).standard_normal(d, dtype=np.float32) * np.float32(0.02)


@dataclass(frozen=True, slots=True)
class FlowerCost:
    """What one round cost.

    Attributes:
        device_s: median over the devices that stayed of the seconds of all their stages.
        server_s: seconds of the server in its four stages.
        combine_s: of it, giving secrets back from shares, which does not depend on ``d``.
        device_stages_s: the same device median, a stage.
        vector_bytes: of the masked vector of one device, as serialised.
        other_bytes: of keys and shares that one device sends, median.
        redraws: sets of missing devices that would have halted the round, before one that does not.
        mean: what the server got: the weighted mean of the updates, ``(d,)``.
        stayed: the devices that `mean` is of.
    """

    device_s: float
    server_s: float
    combine_s: float
    device_stages_s: dict[str, float]
    vector_bytes: int
    other_bytes: int
    redraws: int
    mean: npt.NDArray[np.float64]
    stayed: tuple[int, ...]


@dataclass(slots=True)
class _Strategy:
    """What the workflow asks of a strategy: who takes part, and what becomes of the result."""

    flower: Flower
    clients: int
    results: list[tuple[Any, Any]] = field(default_factory=list)

    def configure_fit(self, server_round: int, parameters: Any, manager: object) -> list[tuple[Any, Any]]:
        del server_round, manager
        return [
            (SimpleNamespace(node_id=node), self.flower.typing.FitIns(parameters, {}))
            for node in range(1, self.clients + 1)
        ]

    def aggregate_fit(
        self, server_round: int, results: list[tuple[Any, Any]], failures: list[Any]
    ) -> tuple[None, dict[str, Any]]:
        del server_round, failures
        self.results = results
        return None, {}


@dataclass(slots=True)
class _Grid:
    """Hands every message to the device's own modifier and takes its time."""

    flower: Flower
    d: int
    clock: Clock
    missing: frozenset[int] = frozenset()
    seconds: float = 0.0
    contexts: dict[int, Any] = field(default_factory=dict)
    stages: dict[int, dict[str, float]] = field(default_factory=dict)
    sent: dict[int, dict[str, int]] = field(default_factory=dict)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        del timeout
        start = self.clock()
        replies = [self._deliver(message) for message in messages]
        self.seconds += self.clock() - start
        return replies

    def _deliver(self, message: Any) -> Any:
        app, client = self.flower.app, self.flower.client
        node = message.metadata.dst_node_id
        stage = str(message.content.config_records[client.RECORD_KEY_CONFIGS][client.Key.STAGE])
        if node in self.missing:  # vanished after it had shared its keys: the case that dropout recovery is for
            return app.Message(app.Error(0, "the device is gone"), reply_to=message)
        # Setup sends one content object to all; over a wire every device has its own, and the modifier takes it apart.
        content = app.RecordDict(dict(message.content.items()))
        content.config_records[client.RECORD_KEY_CONFIGS] = app.ConfigRecord(
            dict(message.content.config_records[client.RECORD_KEY_CONFIGS])
        )
        own = app.Message(metadata=message.metadata, content=content)
        context = self.contexts.get(node)
        if context is None:
            context = self.contexts[node] = app.Context(
                run_id=1, node_id=node, node_config={}, state=app.RecordDict(), run_config={}
            )
        training_s = 0.0

        def train(instruction: Any, _: Any) -> Any:
            nonlocal training_s
            start = self.clock()
            typing = self.flower.typing
            result = typing.FitRes(
                status=typing.Status(typing.Code.OK, ""),
                parameters=self.flower.parameters.ndarrays_to_parameters([vector_of(node, self.d)]),
                num_examples=int(MAX_WEIGHT) * weight_of(node) // WEIGHTS,
                metrics={},
            )
            reply = app.Message(self.flower.compat.fitres_to_recorddict(result, False), reply_to=instruction)
            training_s += self.clock() - start
            return reply

        start = self.clock()
        reply = client.secaggplus_mod(own, context, train)
        self.stages.setdefault(node, {})[stage] = self.clock() - start - training_s
        self.sent.setdefault(node, {})[stage] = _payload(reply.content.config_records[client.RECORD_KEY_CONFIGS])
        return reply


@dataclass(slots=True)
class _Timed:
    """A function of the peer's, called as it is, with its time taken."""

    function: Callable[..., Any]
    clock: Clock
    seconds: float = 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = self.clock()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += self.clock() - start

    @contextmanager
    def installed(self, module: Any, name: str) -> Iterator[None]:
        """In the function's place, for a while."""
        setattr(module, name, self)
        try:
            yield
        finally:
            setattr(module, name, self.function)


def _payload(record: Any) -> int:
    """Bytes of the byte strings in a record: the payload, without names and framing."""
    total = 0
    for value in record.values():
        parts = value if isinstance(value, list) else [value]
        total += sum(len(part) for part in parts if isinstance(part, bytes))
    return total


def draw_missing(
    neighbours: dict[int, set[int]], dropout: float, threshold: int, rng: np.random.Generator
) -> tuple[frozenset[int], int]:
    """Which devices vanish, so that the round can still end, and how many draws would have halted it.

    Raises:
        UnavailableError: no such set was found.
    """
    nodes = sorted(neighbours)
    count = round(dropout * len(nodes))
    for redraws in range(DROPOUT_DRAWS_MAX):
        missing = frozenset(int(node) for node in rng.choice(nodes, count, replace=False))
        if all(len(known - missing) >= threshold for known in neighbours.values()):
            return missing, redraws
    raise UnavailableError(f"with {count} of {len(nodes)} devices missing no round could end")


def run_round(
    flower: Flower,
    d: int,
    dropout: float,
    rng: np.random.Generator,
    *,
    clients: int = CLIENTS,
    num_shares: int = NUM_SHARES,
    threshold: int = THRESHOLD,
    clock: Clock = time.process_time,
) -> FlowerCost:
    """One whole SecAgg+ round of its workflow.

    Args:
        flower: from `load`.
        d: parameters of the model.
        dropout: share of the devices that vanish before they send their masked vector.
        rng: draws who vanishes.
        clients: devices.
        num_shares: shares of a secret; odd.
        threshold: shares that give it back.
        clock: what seconds are: processor time of the whole process, as Flower shares secrets on several threads.
    """
    server, app = flower.server, flower.app
    workflow = server.SecAggPlusWorkflow(num_shares, threshold, max_weight=MAX_WEIGHT)
    records = app.RecordDict()
    records.config_records[server.MAIN_CONFIGS_RECORD] = app.ConfigRecord({server.WorkflowKey.CURRENT_ROUND: 1})
    empty = flower.typing.Parameters(tensors=[], tensor_type="numpy.ndarray")
    records.array_records[server.MAIN_PARAMS_RECORD] = flower.compat.parameters_to_arrayrecord(empty, True)
    strategy = _Strategy(flower, clients)
    context = flower.legacy_context.LegacyContext(
        app.Context(run_id=1, node_id=1, node_config={}, state=records, run_config={}), strategy=strategy
    )
    grid, state = _Grid(flower, d, clock), server.WorkflowState()

    server_s, redraws = 0.0, 0
    combine = _Timed(server.combine_shares, clock)
    for stage in ("setup_stage", "share_keys_stage", "collect_masked_vectors_stage", "unmask_stage"):  # its __call__
        if stage == "collect_masked_vectors_stage":
            grid.missing, redraws = draw_missing(state.nid_to_neighbours, dropout, threshold, rng)
        before = grid.seconds
        with combine.installed(server, "combine_shares"):
            start = clock()
            went_on = getattr(workflow, stage)(grid, context, state)
            server_s += clock() - start - (grid.seconds - before)
        if not went_on:
            raise UnavailableError(f"the round halted in {stage}")

    stayed = sorted(set(grid.stages) - grid.missing)
    names = list(grid.stages[stayed[0]])
    collect = flower.client.Stage.COLLECT_MASKED_VECTORS
    factor_bytes = len(flower.parameters.ndarray_to_bytes(np.array([0])))  # goes up as an array of its own
    mean = flower.parameters.parameters_to_ndarrays(strategy.results[0][1].parameters)[0]
    return FlowerCost(
        device_s=median(sum(grid.stages[node].values()) for node in stayed),
        server_s=server_s,
        combine_s=combine.seconds,
        device_stages_s={name: median(grid.stages[node][name] for node in stayed) for name in names},
        vector_bytes=grid.sent[stayed[0]][collect] - factor_bytes,
        other_bytes=int(median(sum(v for k, v in grid.sent[n].items() if k != collect) for n in stayed)) + factor_bytes,
        redraws=redraws,
        mean=np.asarray(mean, np.float64),
        stayed=tuple(stayed),
    )


def expected_mean(stayed: Iterable[int], d: int) -> npt.NDArray[np.float64]:
    """The weighted mean in the clear, ``(d,)``."""
    total, weights = np.zeros(d), 0
    for client in stayed:
        total += weight_of(client) * vector_of(client, d).astype(np.float64)
        weights += weight_of(client)
    return total / weights
