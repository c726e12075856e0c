"""Flows of a log file: lines of a `LineFollower`, read by one of the parsers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from vedette_device.sources.errors import SourceError
from vedette_device.sources.eve import EveParser
from vedette_device.sources.flow_record import FLOW_REASONS, FlowParser, FlowRecord
from vedette_device.sources.line_follower import COUNTERS as LINE_COUNTERS
from vedette_device.sources.line_follower import LineFollower, LinePosition
from vedette_device.sources.netflow_csv import NetflowCsvParser
from vedette_device.sources.zeek import ZeekParser
from vedette_schemas.errors import PeerError

LINES_READ_DEFAULT: Final = 4_096
"""Lines of one batch: some 50 ms of parsing."""

PARSERS: Final[Mapping[str, Callable[[], FlowParser]]] = {
    "zeek": ZeekParser,
    "eve": EveParser,
    "netflow": NetflowCsvParser,
}
"""What each kind of log is read with."""

COUNTERS: Final = ("flows", "passed_over", *FLOW_REASONS, *LINE_COUNTERS)
"""What ``FlowLog.counters`` holds: flows delivered, lines that are no flows, refused lines by reason, file events."""


class FlowLog:
    """The flows of one log.

    Args:
        path: the log.
        make_parser: called for each file anew: a rotated log begins with its own header.
        follow: whether another program still writes it.
        position: where to go on, as ``position`` returned it.

    Raises:
        SourceError: the log cannot be opened, or the position is damaged.
        TransientError: it cannot be opened now.
    """

    def __init__(
        self,
        path: Path | str,
        make_parser: Callable[[], FlowParser],
        *,
        follow: bool = False,
        position: LinePosition | None = None,
    ) -> None:
        self._path, self._make_parser = Path(path), make_parser
        self._fault: SourceError | None = None
        self._parser = make_parser()
        if position is not None:
            self._parser.restore(position.context)
        self._lines = LineFollower(path, follow=follow, position=position)
        self._counters: Counter[str] = Counter(dict.fromkeys(("flows", "passed_over", *FLOW_REASONS), 0))

    def read(self, lines_max: int = LINES_READ_DEFAULT) -> list[FlowRecord] | None:
        """Return the flows of the next lines, an empty list when there is none yet, ``None`` at the end.

        Args:
            lines_max: most lines to read; there are at most as many flows.

        Raises:
            SourceError: the log cannot be read on, or is of another kind; all before has been delivered.
            TransientError: it cannot be read now.
        """
        if self._fault is not None:
            raise self._fault
        lines = self._lines.read(lines_max)
        if lines is None:
            return None
        if lines and self._lines.at_start:
            self._parser = self._make_parser()
        flows: list[FlowRecord] = []
        for line in lines:
            try:
                flow = self._parser.parse(line)
            except PeerError as error:
                self._counters[error.reason] += 1
                continue
            except SourceError as fault:
                self._fault = SourceError(f"{self._path}: {fault}")
                break
            if flow is None:
                self._counters["passed_over"] += 1
            else:
                flows.append(flow)
        self._counters["flows"] += len(flows)
        if self._fault is not None and not flows:
            raise self._fault
        return flows

    def position(self) -> LinePosition:
        """Where to go on after a restart: behind the last line that was read."""
        return self._lines.position(self._parser.context())

    def counters(self) -> Mapping[str, int]:
        """Counts by the names in ``COUNTERS``."""
        return {**self._counters, **self._lines.counters()}

    def close(self) -> None:
        """Release the file."""
        self._lines.close()
