"""Motion JPEG over HTTP, as simple network cameras serve it."""

from __future__ import annotations

import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.lab import plan

FRAMES_PER_S = 3.0
MOTION_FACTOR = 1.8
"""How much faster frames come while something moves."""


def serve_video(address: str, frames: list[bytes], up: threading.Event, chance: random.Random) -> None:
    """Serves for ever; while ``up`` is cleared, streams break off.

    Args:
        address: Address to listen on.
        frames: JPEG pictures to show in turn.
        up: Whether the camera is up.
        chance: Decides when something moves before the lens.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if not up.is_set():
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            index = 0
            moving_until_s = 0.0
            try:
                while up.is_set():
                    now_s = time.monotonic()
                    if now_s > moving_until_s and chance.random() < 0.006:
                        moving_until_s = now_s + chance.uniform(4.0, 15.0)
                    moving = now_s < moving_until_s
                    picture = frames[index % len(frames)]
                    index += 1
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode("ascii") + picture + b"\r\n")
                    rate = FRAMES_PER_S * (MOTION_FACTOR if moving else 1.0)
                    time.sleep(chance.uniform(0.8, 1.2) / rate)
            except OSError:
                return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server((address, plan.STREAM_PORT), Handler) as server:
        server.serve_forever()
