"""What the site itself does with its devices, and the servers outside of it.

Run inside a namespace: ``python -m bench.lab.operations ROLE``.
"""

from __future__ import annotations

import argparse
import json
import socket
import socketserver
import threading
import time

from bench.lab import clients, plan
from bench.lab.agenda import Agenda


def _devices(*kinds: str) -> list[plan.Device]:
    return [device for device in plan.DEVICES if not kinds or device.kind in kinds]


def control() -> None:
    """The site's controller: reads all telemetry, commands actuators, configures sensors."""
    agenda = Agenda("controller")
    session = clients.MqttSession("controller", ("site/+/+/telemetry", "site/+/+/state"))
    session.open()

    def command(device: plan.Device) -> None:
        body = {"position": round(agenda.random.uniform(0.0, 100.0), 1)}
        session.client.publish(f"{device.topic}/command", json.dumps(body), qos=1)

    def sequence(device: plan.Device) -> None:
        for _ in range(agenda.random.randint(3, 8)):
            command(device)
            time.sleep(agenda.random.uniform(0.1, 0.4))

    def configure(device: plan.Device) -> None:
        session.client.publish(f"{device.topic}/config", json.dumps({"unit": "C", "digits": 2}), qos=1)

    for device in _devices("mqtt_actuator"):
        agenda.every(5.0, 15.0, lambda device=device: command(device))  # type: ignore[misc]
        agenda.every(45.0, 110.0, lambda device=device: sequence(device))  # type: ignore[misc]
    for device in _devices("mqtt_sensor"):
        agenda.every(30.0, 80.0, lambda device=device: configure(device))  # type: ignore[misc]
    agenda.run()


def record_http() -> None:
    """The video recorder: watches the HTTP camera with curl, from time to time anew."""
    agenda = Agenda("recorder")
    (camera,) = _devices("camera_http")

    def watch() -> None:
        stay_s = agenda.random.uniform(70.0, 200.0)
        url = f"http://{camera.ip}:{plan.STREAM_PORT}/stream"
        clients.run("curl", "-s", "-o", "/dev/null", "-m", f"{stay_s:.0f}", url, timeout_s=stay_s + 5.0)

    agenda.every(0.5, 3.0, watch)
    agenda.run()


def record_rtsp() -> None:
    """The video recorder: lets the RTSP camera push to it (ffmpeg takes one session, then waits for the next)."""
    agenda = Agenda("rtsp")
    (camera,) = _devices("camera_rtsp")

    def receive() -> None:
        clients.run(
            "ffmpeg", "-nostdin", "-loglevel", "error", "-rtsp_flags", "listen", "-timeout", "20", "-i",
            f"rtsp://{plan.OPERATIONS}:{plan.RTSP_PORT}/{camera.name}", "-c", "copy", "-f", "null", "-",
            timeout_s=300.0,
        )  # fmt: skip

    agenda.every(0.1, 0.5, receive)
    agenda.run()


def poll_modbus(gateway: int) -> None:
    """The SCADA server: polls one PLC with mbpoll over a lasting connection, and writes set points."""
    agenda = Agenda(f"scada-{gateway}")
    (plc,) = (device for device in _devices("modbus_plc") if device.gateway == gateway)

    def poll() -> None:
        stay_s = agenda.random.uniform(60.0, 160.0)
        clients.run(
            "timeout", f"{stay_s:.0f}", "mbpoll", "-m", "tcp", "-a", "1", "-t", "4", "-r", "1", "-c", "10",
            "-l", str(agenda.random.choice([900, 1200, 1500])), "-o", "2", plc.ip, timeout_s=stay_s + 5.0,
        )  # fmt: skip

    def write() -> None:
        while True:
            time.sleep(agenda.random.uniform(20.0, 60.0))
            register, value = str(agenda.random.randint(20, 24)), str(agenda.random.randint(0, 900))
            clients.run("mbpoll", "-1", "-m", "tcp", "-a", "1", "-t", "4", "-r", register, "-o", "2", plc.ip, value)

    threading.Thread(target=write, daemon=True).start()
    agenda.every(0.5, 3.0, poll)
    agenda.run()


def monitor() -> None:
    """The site's monitoring: pings, login banners, web pages, CoAP."""
    agenda = Agenda("monitor")

    def ping(device: plan.Device) -> None:
        clients.run("ping", "-n", "-c", str(agenda.random.randint(1, 3)), "-i", "0.4", "-W", "1", device.ip)

    def banner(device: plan.Device) -> None:
        port = 22 if device.login == "ssh" else 23
        with socket.create_connection((device.ip, port), timeout=clients.TIMEOUT_S) as link:
            link.recv(200)

    def page(device: plan.Device) -> None:
        clients.run("curl", "-s", "-m", "4", f"http://{device.ip}/")

    def coap(device: plan.Device) -> None:
        clients.run("coap-client-notls", "-B", "2", "-m", "get", f"coap://{device.ip}/time")

    for device in _devices():
        agenda.every(20.0, 60.0, lambda device=device: ping(device))  # type: ignore[misc]
        agenda.every(45.0, 120.0, lambda device=device: banner(device))  # type: ignore[misc]
    for device in _devices("camera_http", "camera_rtsp"):
        agenda.every(15.0, 45.0, lambda device=device: page(device))  # type: ignore[misc]
    for device in _devices("coap_sensor"):
        agenda.every(8.0, 20.0, lambda device=device: coap(device))  # type: ignore[misc]
    agenda.run()


def _serve(address: str, port: int, handler: type[socketserver.BaseRequestHandler]) -> None:
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server((address, port), handler) as server:
        server.serve_forever()


def cloud() -> None:
    """The smart plugs' cloud: answers every message, and switches a plug from time to time."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            chance = Agenda(f"{self.client_address}").random
            try:
                while heard := self.request.recv(2048):
                    if heard.startswith(b"BEAT"):
                        self.request.sendall(b"ACK " + bytes(12))
                        if chance.random() < 0.15:
                            self.request.sendall(b"SET " + bytes(28))
            except OSError:
                return

    _serve(plan.CLOUD, plan.PLUG_PORT, Handler)


def command_and_control() -> None:
    """The implant's server: takes what comes and answers with a short order."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                if heard := self.request.recv(2048):
                    self.request.sendall(bytes(40 + len(heard) % 120))
            except OSError:
                return

    _serve(plan.OUTSIDER, plan.C2_PORT, Handler)


ROLES = {
    "control": control,
    "record-http": record_http,
    "record-rtsp": record_rtsp,
    "monitor": monitor,
    "cloud": cloud,
    "c2": command_and_control,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="one role of the site or of the outside")
    parser.add_argument("role", choices=(*ROLES, "scada"))
    parser.add_argument("--gateway", type=int, default=0, help="whose PLC the scada role polls")
    arguments = parser.parse_args()
    if arguments.role == "scada":
        poll_modbus(arguments.gateway)
    else:
        ROLES[arguments.role]()


if __name__ == "__main__":
    main()
