"""Where a person looks at rollouts and decides about them: beside the aggregator's state, while it runs or not."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from vedette_aggregator.rollout_events import Requested, Verb
from vedette_aggregator.rollout_requests import RequestBody, check, request_key
from vedette_aggregator.rollout_state import RolloutRecord, read_record, record_key
from vedette_aggregator.settings import AggregatorSettings, RolloutSection
from vedette_aggregator.state_file import open_state
from vedette_core.runtime.storage import StateStore
from vedette_schemas import codec
from vedette_schemas.errors import ConfigError, PeerError, RefusedError
from vedette_schemas.topics import check_id

POLL_S: Final = 0.1


class RolloutDesk:
    """The rollouts of an aggregator's tasks.

    Args:
        store: the aggregator's.
        settings: of each task whose releases are staged.
    """

    def __init__(self, store: StateStore, settings: dict[str, RolloutSection]) -> None:
        self._store, self._settings = store, settings

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose releases are staged."""
        return tuple(self._settings)

    def task(self, wanted: str | None) -> str:
        """The task that is meant: the only one where none is named.

        Raises:
            ConfigError: none or several to choose from, or one without rollouts.
        """
        known = ", ".join(self.tasks) or "none: no task has enabled = true in its [tasks.rollout] table"
        if wanted is None and len(self.tasks) == 1:
            return self.tasks[0]
        if wanted is None or wanted not in self._settings:
            raise ConfigError(f"task: found {wanted or 'none named'}, expected one whose releases are staged: {known}")
        return wanted

    def record(self, task: str) -> RolloutRecord:
        """A task's rollouts as they are written down.

        Raises:
            ConfigError: the record is damaged.
        """
        return read_record(self._store.get(record_key(task)), task)

    def row(self, task: str) -> dict[str, Any]:
        """A task's rollout as plain data: where it is, and why."""
        record = self.record(task)
        stages = self._settings[task].stages
        return {
            "task": task,
            "rollout": record.number,
            "phase": record.phase.value,
            "candidate": record.candidate,
            "baseline": record.baseline,
            "active": record.active,
            "stage_percent": stages[record.stage] if 0 <= record.stage < len(stages) else None,
            "exposed": record.exposed,
            "target": record.target,
            "fleet": record.fleet,
            "queued": record.queued or None,
            "since": _time(record.since_s),
            "reason": record.reason,
            "awaits_approval": record.awaits if record.awaits >= 0 else None,
        }

    def details(self, task: str) -> dict[str, Any]:
        """The same, with pins, past rollouts and decisions."""
        record = self.record(task)
        return {
            **self.row(task),
            "share_ppm": record.share_ppm,
            "control_ppm": record.control_ppm,
            "pins": {pin.device: pin.version for pin in record.pins},
            "withdrawn": [r.version for r in record.known if r.sha256 in record.withdrawn],
            "history": [
                {
                    "rollout": past.number,
                    "candidate": past.candidate,
                    "baseline": past.baseline,
                    "phase": past.phase.value,
                    "reason": past.reason,
                    "began": _time(past.began_s),
                    "ended": _time(past.ended_s),
                    "exposed": past.exposed,
                }
                for past in record.history
            ],
            "audit": [
                {
                    "at": _time(entry.at_s),
                    "by": entry.by,
                    "verb": entry.verb,
                    "about": entry.argument,
                    "outcome": entry.outcome,
                    "rollout": entry.rollout,
                }
                for entry in record.audit
            ],
        }

    def ask(self, task: str, verb: Verb, by: str, *, device: str = "", version: int = 0, dry_run: bool = False) -> str:
        """Write a request down; the running aggregator answers it within seconds.

        Args:
            task: the task.
            verb: what.
            by: who asks.
            device: for pins.
            version: for pins and `Verb.CREATE`.
            dry_run: only check.

        Returns:
            The request's id.

        Raises:
            RefusedError: it means nothing as things are.
            ConfigError: no id of a device.
        """
        if device:
            try:
                check_id(device, "device")
            except PeerError as fault:
                raise ConfigError(str(fault)) from fault
        now = time.time()
        # The ids of requests are in their order, also for those of one second.
        request = f"{int(now * 1000):015}-{secrets.token_hex(4)}"
        check(self.record(task), Requested(request, verb, by, now, device=device, version=version))
        if not dry_run:
            body = RequestBody(verb=verb, by=by, at_s=now, device=device, version=version)
            self._store.put(request_key(task, request), codec.pack_json(body))
        return request

    def wait(self, task: str, request: str, patience_s: float) -> RolloutRecord | None:
        """The rollouts after a request; None if the aggregator does not answer in time.

        Raises:
            RefusedError: the aggregator refused it.
        """
        limit = time.monotonic() + patience_s
        while self._store.get(request_key(task, request)) is not None:
            if time.monotonic() > limit:
                return None
            time.sleep(POLL_S)
        record = self.record(task)
        at_s = int(request.split("-")[0]) / 1000.0
        mine = [e for e in record.audit if e.by != "aggregator" and abs(e.at_s - at_s) < 0.002]
        outcome = mine[-1].outcome if mine else "done"
        if outcome.startswith("refused: "):
            raise RefusedError(outcome.removeprefix("refused: "), rule="rollout")
        return record


@contextmanager
def open_desk(settings: AggregatorSettings) -> Iterator[RolloutDesk]:
    """The rollouts of an aggregator, which may be running.

    Raises:
        ConfigError: there is no aggregator's state.
    """
    staged = {task.task: task.rollout for task in settings.tasks if task.rollout.enabled}
    with open_state(settings) as database:
        yield RolloutDesk(StateStore(database), staged)


def _time(at_s: float) -> str | None:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds") if at_s else None
