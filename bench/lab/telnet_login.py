"""A device's telnet login that refuses everybody: no account of the recording machine is ever involved.

Run inside a device's namespace: ``python -m bench.lab.telnet_login``.
"""

from __future__ import annotations

import socketserver
import time

PORT = 23
ATTEMPTS = 3
REFUSAL_PAUSE_S = 0.3
WILL_ECHO_SUPPRESS = b"\xff\xfb\x01\xff\xfb\x03"
"""Telnet negotiation of a common daemon: WILL ECHO, WILL SUPPRESS-GO-AHEAD (RFC 854, 857, 858)."""
LINE_BYTES_MAX = 256
"""Longest user name or pass word that is read."""


class Login(socketserver.StreamRequestHandler):
    timeout = 30

    def handle(self) -> None:
        try:
            self.wfile.write(WILL_ECHO_SUPPRESS + b"\r\nBusyLab device\r\n")
            for _ in range(ATTEMPTS):
                for prompt in (b"login: ", b"Password: "):
                    self.wfile.write(prompt)
                    self._line()
                time.sleep(REFUSAL_PAUSE_S)
                self.wfile.write(b"\r\nLogin incorrect\r\n")
        except OSError:
            return

    def _line(self) -> None:
        """Reads what was typed, up to the carriage return or line feed that ends it."""
        for typed in range(LINE_BYTES_MAX):
            byte = self.rfile.read(1)
            if not byte:
                raise ConnectionAbortedError("the client hung up")
            # A line feed that comes first belongs to the carriage return of the line before.
            if byte == b"\r" or (byte == b"\n" and typed > 0):
                return


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("", PORT), Login) as server:
        server.serve_forever()
