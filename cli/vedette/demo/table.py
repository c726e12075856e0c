"""The demo's live view: one row a gateway, the rounds above it, the newest alerts below."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vedette.observer import Observer
from vedette_core.crypto.cohorts import cohort
from vedette_schemas.alert import Alert, AlertState, Severity
from vedette_schemas.rollout import RolloutPhase, RolloutState
from vedette_schemas.round import Phase

ALERTS_SHOWN: Final = 8
STYLES: Final = {
    Severity.LOW: "dim",
    Severity.MEDIUM: "yellow",
    Severity.HIGH: "bold yellow",
    Severity.CRITICAL: "bold red",
}
PHASES: Final = {
    Phase.CHECKIN: "collecting check-ins",
    Phase.COLLECT: "devices are training",
    Phase.UNMASK: "sums are being opened",
    Phase.DONE: "released",
    Phase.FAILED: "failed",
}


def rollout_line(state: RolloutState, devices: Collection[str]) -> str:
    """Where a rollout is, in a line: what, how far, and with how many of the devices that are seen."""
    told = f"release {state.candidate} over release {state.baseline}: {state.state.value}"
    if state.state not in (RolloutPhase.RUNNING, RolloutPhase.PAUSED):
        return told
    places = [cohort(state, device) for device in devices]
    exposed, control = places.count("candidate"), places.count("control")
    stage = "canary stage, " if control else "last stage, "
    return f"{told}, {stage}{exposed} of {len(places)} devices" + (f", {control} compared with" if control else "")


class LiveTable:
    """Draws what an observer knows.

    Args:
        tasks: the tasks, in the order of the columns.
        protection: what protects updates, in a word.
    """

    def __init__(self, tasks: tuple[str, ...], protection: str) -> None:
        self._tasks, self._protection = tasks, protection
        self._newest: deque[Alert] = deque(maxlen=ALERTS_SHOWN)
        self._opened: Counter[str] = Counter()
        self._open: dict[str, set[str]] = {}

    def take(self, alert: Alert) -> None:
        """An alert came in."""
        open_now = self._open.setdefault(alert.device, set())
        if alert.state is AlertState.CLOSED:
            open_now.discard(alert.id)
            return
        if alert.state is AlertState.OPEN:
            self._opened[alert.device] += 1
            self._newest.append(alert)
        open_now.add(alert.id)

    def draw(self, observer: Observer) -> RenderableType:
        """The view as it is now."""
        return Group(self._rounds(observer), self._devices(observer), self._alerts())

    def _rounds(self, observer: Observer) -> Text:
        text = Text()
        for task in self._tasks:
            opened = observer.rounds.get(task)
            done = sum(t == task for t, _ in observer.completed)
            phase = "starting" if opened is None else f"round {opened.round}: {PHASES[opened.phase]}"
            groups = f", groups: {opened.groups}" if opened is not None and opened.groups else ""
            text.append(f"{task:8}", "bold").append(f" {phase}   ({done} released, {self._protection}{groups})\n")
            said = observer.rollouts.get(task)
            if said:
                text.append(f"{'':8} {rollout_line(said[-1], observer.states)}\n", "cyan")
        return text

    def _devices(self, observer: Observer) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("gateway")
        table.add_column("state")
        for task in self._tasks:
            table.add_column(task)
            table.add_column("release", justify="right")
            table.add_column("windows", justify="right")
        for column in ("µs", "MB", "alerts", "open"):
            table.add_column(column, justify="right")
        for device in sorted(observer.states):
            state, report = observer.states[device], observer.reports.get(device)
            row = [device, state.status]
            times = []
            for task in self._tasks:
                detector = next((d for d in report.detectors if d.task == task), None) if report else None
                version = next((str(m.version) for m in state.models if m.task == task), "–")
                row += [detector.phase if detector else "–", version, f"{detector.windows:,}" if detector else "–"]
                if detector is not None and detector.score_us_p50:
                    times.append(f"{detector.score_us_p50:.0f}")
            row += ["/".join(times) or "–", f"{report.rss_bytes / 1e6:.0f}" if report else "–"]
            row += [str(self._opened[device]), str(len(self._open.get(device, ())) or "")]
            table.add_row(*row)
        return table

    def _alerts(self) -> Text:
        text = Text("\n")
        for alert in self._newest:
            text.append(f"{alert.time[11:19]} {alert.device} {alert.severity.value:8} ", STYLES[alert.severity])
            text.append(f"{alert.summary}\n")
        return text
