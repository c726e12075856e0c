"""A real Prometheus on loopback for tests, and the queries of a dashboard as Grafana would send them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from vedette.demo.fleet import free_port

DEADLINE_S = 90.0
"""Given up after this long; on a busy machine the first scrape alone may take some seconds."""
RULES = Path(__file__).parents[2] / "grafana" / "rules"


def missing(program: str) -> str:
    """Reason to skip, empty if the program is there."""
    return "" if shutil.which(program) else f"{program} is not installed (Debian package `prometheus`)"


def panel_queries(dashboard: Path) -> dict[str, list[str]]:
    """Title of a panel → its queries, with what Grafana puts in for its variables."""
    plain = json.loads(dashboard.read_text())
    variables = {"$__rate_interval": "6s", "$__range": "5m", "$job": ".+", "$instance": ".+"}
    found: dict[str, list[str]] = {}
    for panel in plain["panels"]:
        for target in panel.get("targets") or ():
            promql = target["expr"]
            for name, value in variables.items():
                promql = promql.replace(name, value)
            assert "$" not in promql, promql
            found.setdefault(panel["title"], []).append(promql)
    return found


class PrometheusServer:
    """Prometheus with the project's rules, scraping one endpoint every second.

    Args:
        folder: for its configuration and data.
        scraped_port: port of the ``/metrics`` endpoint on loopback.
    """

    def __init__(self, folder: Path, scraped_port: int) -> None:
        self.port = free_port()
        self._log = folder / "prometheus.log"
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES / "recording.yml"), str(RULES / "alerts.yml")],
            "scrape_configs": [
                {"job_name": "vedette-aggregator", "static_configs": [{"targets": [f"127.0.0.1:{scraped_port}"]}]}
            ],
        }
        path = folder / "prometheus.json"  # JSON is YAML
        path.write_text(json.dumps(config))
        self._command = [
            "prometheus",
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def __enter__(self) -> PrometheusServer:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.wait_for(self._ready, lambda: "an answer of /-/ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, **arguments: str) -> Any:
        """The data of an API answer; a query that is refused raises."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as fault:
            raise AssertionError(f"{arguments}: {fault.read().decode()[:400]}") from fault
        assert answer["status"] == "success", answer
        return answer["data"]

    def series(self, promql: str) -> list[dict[str, Any]]:
        """What an instant query returns."""
        result: list[dict[str, Any]] = self.get("query", query=promql)["result"]
        return result

    def wait_for(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Ask until the condition holds.

        Raises:
            AssertionError: it did not within `DEADLINE_S`, or Prometheus ended.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what()}; {self._log.read_text()[-2000:]}"
            time.sleep(0.2)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False
