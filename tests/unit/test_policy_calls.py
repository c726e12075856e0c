"""Calls to the outside: servers that are slow, rude or not there; programs that are wrong, slow or loud."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from policy_parts import alert

from vedette.demo.fleet import free_port
from vedette_device import policy_calls
from vedette_device.policy_calls import CALLS_MAX, PolicyCalls
from vedette_device.policy_effects import Audit, Execute, PublishCommand, Webhook
from vedette_device.policy_rules import ExecRule, PublishRule, WebhookRule
from vedette_device.program_run import OUTPUT_BYTES_MAX, check_program, run_program
from vedette_device.webhook_call import BODY_BYTES_MAX, SIGNATURE, OpenCalls, call_webhook
from vedette_schemas.errors import ConfigError, RefusedError, TransientError


class Server:
    """A web server on loopback that keeps what it was sent."""

    def __init__(self, statuses: list[int]) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append((self.path, dict(self.headers), body))
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/hook?a=b"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@contextlib.contextmanager
def serving(*statuses: int) -> Iterator[Server]:
    server = Server(list(statuses))
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says what it likes."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def hook(url: str, **more: object) -> WebhookRule:
    return WebhookRule.model_validate({"name": "w", "action": "webhook", "url": url, **more})


# -- webhooks ---------------------------------------------------------------------------------------------------------


def test_a_webhook_posts_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    with serving(204) as server:
        assert call_webhook(hook(server.url), b'{"v":1}', OpenCalls()) == 204
    ((path, headers, body),) = server.requests
    assert (path, body) == ("/hook?a=b", b'{"v":1}')
    assert headers["Content-Type"] == "application/json"
    assert SIGNATURE not in headers


def test_a_webhook_is_signed_with_the_secret_of_a_private_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"key\n")
    secret.chmod(0o600)
    with serving(200) as server:
        call_webhook(hook(server.url, secret_file=secret), b"{}", OpenCalls())
        secret.chmod(0o644)
        with pytest.raises(ConfigError, match="0600"):
            call_webhook(hook(server.url, secret_file=secret), b"{}", OpenCalls())
        secret.chmod(0o600)
        secret.write_bytes(b"\n")
        with pytest.raises(ConfigError, match="empty secret"):
            call_webhook(hook(server.url, secret_file=secret), b"{}", OpenCalls())
    ((_, headers, _),) = server.requests
    assert headers[SIGNATURE] == "sha256=" + hmac.new(b"key", b"{}", hashlib.sha256).hexdigest()


@pytest.mark.parametrize("status", [302, 400, 404, 500])
def test_another_status_is_no_success_and_a_redirect_is_not_followed(status: int) -> None:
    with serving(status) as server, pytest.raises(TransientError, match=f"found status {status}"):
        call_webhook(hook(server.url), b"{}", OpenCalls())
    assert len(server.requests) == 1


def test_nobody_there_is_said() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(TransientError, match="Connection refused"):
        call_webhook(hook(url), b"{}", OpenCalls())


def drip(connection: socket.socket) -> None:
    """One byte now and then: no read ever times out."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def silence(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


@pytest.mark.parametrize("talk", [silence, drip])
def test_a_slow_server_is_left_at_the_deadline(talk: Callable[[socket.socket], None]) -> None:
    with talking(talk) as url, pytest.raises(TransientError, match="no answer within 0.5 s"):
        call_webhook(hook(url, timeout_s=0.5), b"{}", OpenCalls())


def test_a_server_that_speaks_no_http_is_said() -> None:
    with talking(lambda c: c.sendall(b"SSH-2.0-x\r\n" + b"y" * 100_000)) as url, pytest.raises(TransientError):
        call_webhook(hook(url), b"{}", OpenCalls())


def test_tls_that_is_not_trusted_is_refused() -> None:
    with (
        talking(lambda c: c.sendall(b"\x15\x03\x03\x00\x02\x02\x28")) as url,
        pytest.raises(TransientError, match="SSL"),
    ):
        call_webhook(hook(url.replace("http://", "https://")), b"{}", OpenCalls())


def test_a_call_under_way_is_ended_when_all_are() -> None:
    calls = OpenCalls()
    arrived = threading.Event()

    def wait(connection: socket.socket) -> None:
        arrived.set()
        silence(connection)

    with talking(wait) as url, ThreadPoolExecutor(1) as pool:
        future = pool.submit(call_webhook, hook(url, timeout_s=30), b"{}", calls)
        assert arrived.wait(30)
        calls.close()
        with pytest.raises(TransientError):
            future.result(timeout=25)
        with pytest.raises(TransientError):
            call_webhook(hook(url, timeout_s=30), b"{}", calls)


def test_a_body_that_is_too_large_is_not_sent() -> None:
    with serving(200) as server, pytest.raises(RefusedError, match="16385 bytes"):
        call_webhook(hook(server.url), b"x" * (BODY_BYTES_MAX + 1), OpenCalls())
    assert server.requests == []


# -- programs ---------------------------------------------------------------------------------------------------------


def program(folder: Path, text: str, mode: int = 0o700) -> Path:
    path = folder / "program"
    path.write_text(text)
    path.chmod(mode)
    return path


def execute(*command: str, timeout_s: float = 30.0) -> Execute:
    rule = ExecRule(name="x", action="exec", command=command, timeout_s=timeout_s)
    return Execute(rule, alert(), (("VEDETTE_ENTITY", "10.0.0.9"),), b'{"id":"alert-1"}')


def test_a_program_gets_a_fixed_environment_the_alert_and_its_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", "x")
    out = tmp_path / "out"
    path = program(tmp_path, f'#!/bin/sh\n{{ /usr/bin/env; cat; echo; pwd; echo "$@"; }} > {out}\necho said\n')
    assert asyncio.run(run_program(execute(str(path), "$(id)", ";", "`x`"))) == "said"
    text = out.read_text()
    assert '{"id":"alert-1"}\n/\n$(id) ; `x`\n' in text
    names = {line.split("=")[0] for line in text.split("{")[0].splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "LANG", "VEDETTE_ENTITY"}


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o600])
def test_a_program_that_others_can_write_or_nobody_can_run_is_refused(tmp_path: Path, mode: int) -> None:
    path = program(tmp_path, "#!/bin/sh\n", mode)
    with pytest.raises(ConfigError):
        check_program(path)
    with pytest.raises(ConfigError):
        asyncio.run(run_program(execute(str(path))))


def test_a_program_in_a_folder_that_others_can_write_is_refused_also_behind_a_link(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    path = program(loose, "#!/bin/sh\n")
    check_program(path)
    (tmp_path / "link").symlink_to(path)
    loose.chmod(0o777)
    for wrong in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="chmod go-w"):
            check_program(wrong)


@pytest.mark.parametrize("path", ["/nonexistent/program", "/", "bin/true"])
def test_what_is_no_program_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        check_program(Path(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_program_of_another_user_is_refused(tmp_path: Path) -> None:
    path = program(tmp_path, "#!/bin/sh\n")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="owned by user 65534"):
        check_program(path)


def test_a_program_that_fails_says_what_it_said(tmp_path: Path) -> None:
    path = program(tmp_path, "#!/bin/sh\necho 'no\x1b[2J route' >&2\nexit 3\n")
    with pytest.raises(TransientError, match=r"ended with status 3: no \[2J route"):
        asyncio.run(run_program(execute(str(path))))


def test_a_program_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    path = program(tmp_path, f"#!/bin/sh\nsleep 600 &\necho $! > {pid}\nwait\n")
    for seconds in (1, 5, 30):  # on a busy machine it may be killed before it has said what it started
        with pytest.raises(TransientError, match=f"did not end within {seconds} s"):
            asyncio.run(run_program(execute(str(path), timeout_s=seconds)))
        if pid.exists() and pid.read_text().endswith("\n"):
            break
    assert is_gone(int(pid.read_text()))


def test_a_program_that_leaves_something_behind_on_its_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    path = program(tmp_path, f"#!/bin/sh\nsleep 600 &\necho $! > {pid}\necho ready\n")
    assert asyncio.run(run_program(execute(str(path)))) == "ready"
    assert is_gone(int(pid.read_text()))


def test_a_loud_program_and_one_that_reads_nothing_do_no_harm(tmp_path: Path) -> None:
    path = program(tmp_path, "#!/bin/sh\nexec 0<&-\nhead -c 5000000 /dev/zero | tr '\\0' x\n")
    assert asyncio.run(run_program(execute(str(path)))) == "x" * OUTPUT_BYTES_MAX


def is_gone(pid: int) -> bool:
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


# -- beside everything else -------------------------------------------------------------------------------------------


def ended(calls: list[Webhook | Execute | PublishCommand], more: int = 0) -> list[Audit]:
    """What the audit is told of these calls."""
    found: list[Audit] = []

    async def scenario() -> None:
        made = PolicyCalls(found.append, None)
        await made.start()
        for call in calls:
            made.begin(call)
        async with asyncio.timeout(60):
            while made.waiting > more:
                await asyncio.sleep(0.02)
        await made.stop()

    asyncio.run(scenario())
    return found


def test_how_a_call_ends_is_told(tmp_path: Path) -> None:
    path = program(tmp_path, "#!/bin/sh\necho hello\n")
    with serving(201) as server:
        found = ended([Webhook(hook(server.url), alert(), b"{}"), execute(str(path)), execute("/nonexistent/x")])
    told = {(a.event, a.outcome): a.detail for a in found}
    assert told["webhook", "done"] == "status 201"
    assert told["exec", "done"] == "hello"
    assert "cannot be found" in told["exec", "failed"]
    assert all((a.alert, a.entity) == ("alert-1", "192.168.10.20") for a in found)


def test_a_webhook_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_calls, "WEBHOOK_PAUSES_S", (0.01, 0.01))
    with serving(503, 503, 200) as server:
        assert [a.outcome for a in ended([Webhook(hook(server.url), alert(), b"{}")])] == ["done"]
    assert len(server.requests) == 3
    with serving(503) as server:
        (told,) = ended([Webhook(hook(server.url), alert(), b"{}")])
    assert (told.outcome, len(server.requests)) == ("failed", 3)


def test_calls_that_pile_up_are_given_up_and_the_rest_ends_with_the_node() -> None:
    with talking(silence) as url:
        call = Webhook(hook(url, timeout_s=30), alert(), json.dumps({}).encode())
        found = ended([call] * (CALLS_MAX + 3), more=CALLS_MAX)
    assert [a.outcome for a in found] == ["failed"] * (CALLS_MAX + 3)
    assert sum("calls wait already" in a.detail for a in found) == 3
    assert sum("node was stopped" in a.detail for a in found) == CALLS_MAX


def test_without_a_broker_nothing_is_published() -> None:
    rule = PublishRule(name="p", action="publish", topic="a/b")
    (told,) = ended([PublishCommand(rule, alert(), b"OFF")])
    assert (told.outcome, told.detail) == ("failed", "no [policy.broker] is set: nothing is published")
