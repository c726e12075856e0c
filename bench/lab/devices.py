"""The IoT devices of the lab: one program, one class a kind.

Run inside a device's namespace: ``python -m bench.lab.devices GATEWAY SLOT --assets FOLDER``. What a real device
does in a day (firmware checks, reboots, reconnects) happens every few minutes here.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import subprocess
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt
from bench.lab import clients, plan
from bench.lab.agenda import Agenda
from bench.lab.modbus_server import serve_modbus
from bench.lab.video import serve_video

COAP_CLIENT = "coap-client-notls"


class Device:
    """What every device does: resolve names, ask for the time, look for firmware, reboot now and then."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        self.me = me
        self.assets = assets
        self.agenda = Agenda(f"{me.name}")
        self.random = self.agenda.random
        self.boots = 0
        every = self.agenda.every
        every(25, 60, self.keep_time)
        every(90, 190, self.check_firmware)
        every(150, 320, self.reboot)

    def start(self) -> None:
        """Opens what stays open while the device is up."""

    def stop(self) -> None:
        """Closes it again."""

    def keep_time(self) -> None:
        clients.resolve("ntp.site.example")
        clients.ask_time()

    def check_firmware(self) -> None:
        clients.resolve("updates.site.example")
        clients.fetch("/firmware/index.json")
        if self.random.random() < 0.6:
            clients.fetch(f"/firmware/{self.random.choice(['small', 'medium', 'large'])}.bin")

    def reboot(self) -> None:
        self.stop()
        time.sleep(self.random.uniform(3.0, 9.0))
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.keep_time()
        clients.resolve("api.site.example")
        self.start()

    def reading(self) -> dict[str, float]:
        phase = time.time() / 300.0 + self.me.gateway
        return {
            "temperature": round(21.0 + 2.0 * math.sin(phase) + self.random.gauss(0.0, 0.1), 2),
            "humidity": round(45.0 + 6.0 * math.cos(phase) + self.random.gauss(0.0, 0.4), 1),
        }

    def run(self) -> None:
        time.sleep(self.random.uniform(0.0, 3.0))
        self.boot()
        self.agenda.run()


class MqttSensor(Device):
    """Publishes readings over a lasting MQTT session; sometimes a backlog at once."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.qos = me.gateway % 2
        period_s = 2.4 + 0.25 * me.gateway
        self.session = clients.MqttSession(me.name, (f"{me.topic}/config",))
        self.agenda.every(0.6 * period_s, 1.4 * period_s, self.publish)
        self.agenda.every(40, 110, self.publish_backlog)
        self.agenda.every(110, 240, self.reconnect)

    def start(self) -> None:
        clients.resolve("broker.site.example")
        self.session.open()

    def stop(self) -> None:
        self.session.close()

    def publish(self) -> None:
        self.session.client.publish(f"{self.me.topic}/telemetry", json.dumps(self.reading()), qos=self.qos)

    def publish_backlog(self) -> None:
        for _ in range(self.random.randint(6, 18)):
            self.publish()
            time.sleep(self.random.uniform(0.02, 0.15))

    def reconnect(self) -> None:
        self.stop()
        time.sleep(self.random.uniform(0.5, 3.0))
        self.start()


class MqttMeter(Device):
    """A sleepy meter: connects with mosquitto_pub for every message and sleeps again."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.agenda.every(2.5, 6.0, self.publish)
        self.agenda.every(50, 120, self.publish_backlog)

    def publish(self) -> None:
        clients.run(
            "mosquitto_pub", "-h", plan.BROKER, "-u", plan.MQTT_USER, "-P", plan.MQTT_PASSWORD,
            "-i", self.me.name, "-t", f"{self.me.topic}/telemetry", "-m", json.dumps(self.reading()),
        )  # fmt: skip

    def publish_backlog(self) -> None:
        for _ in range(self.random.randint(3, 8)):
            self.publish()


class MqttActuator(Device):
    """Takes commands over MQTT and reports its state after each and from time to time."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.position = 0.0
        self.session = clients.MqttSession(me.name, (f"{me.topic}/command",))
        self.session.client.on_message = self.on_command
        self.agenda.every(5.0, 9.0, self.report)
        self.agenda.every(120, 260, self.reconnect)

    def start(self) -> None:
        clients.resolve("broker.site.example")
        self.session.open()

    def stop(self) -> None:
        self.session.close()

    def on_command(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self.position = float(json.loads(message.payload).get("position", self.position))
        self.report()

    def report(self) -> None:
        state = {"position": self.position, "boots": self.boots, **self.reading()}
        self.session.client.publish(f"{self.me.topic}/state", json.dumps(state), qos=1)

    def reconnect(self) -> None:
        self.stop()
        time.sleep(self.random.uniform(0.5, 3.0))
        self.start()


class CoapSensor(Device):
    """Puts readings to the site's CoAP collector, and answers CoAP requests itself."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.server: subprocess.Popen[bytes] | None = None
        self.agenda.every(2.5, 5.5, self.put)
        self.agenda.every(45, 100, self.put_backlog)
        self.agenda.every(60, 140, self.discover)

    def start(self) -> None:
        clients.resolve("collector.site.example")
        self.server = subprocess.Popen(["coap-server-notls", "-A", self.me.ip])

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()

    def put(self) -> None:
        uri = f"coap://{plan.COAP_COLLECTOR}/{self.me.name}"
        clients.run(COAP_CLIENT, "-B", "3", "-m", "put", "-e", json.dumps(self.reading()), uri)

    def put_backlog(self) -> None:
        for _ in range(self.random.randint(4, 12)):
            self.put()

    def discover(self) -> None:
        clients.run(COAP_CLIENT, "-B", "3", "-m", "get", f"coap://{plan.COAP_COLLECTOR}/.well-known/core")


class ModbusPlc(Device):
    """A Modbus TCP server with moving registers; posts events over HTTP."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.up = threading.Event()
        threading.Thread(target=serve_modbus, args=(me.ip, self.up), daemon=True).start()
        self.agenda.every(15, 45, lambda: clients.fetch("/status.json"))

    def start(self) -> None:
        self.up.set()

    def stop(self) -> None:
        self.up.clear()


class HttpPoller(Device):
    """A display that polls a web service, with curl, dig and ntpdig."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.agenda.every(2.5, 6.0, self.poll)
        self.agenda.every(30, 80, self.refresh)
        self.agenda.every(40, 90, lambda: clients.run("ntpdig", "-t", "2", plan.NTP_SERVER))

    def poll(self) -> None:
        if self.random.random() < 0.4:
            clients.run("dig", "+short", "+tries=1", f"@{plan.DNS_SERVER}", "api.site.example")
        clients.run("curl", "-s", "-m", "5", f"http://{plan.HTTP_SERVER}/status.json")

    def refresh(self) -> None:
        for _ in range(self.random.randint(2, 6)):
            clients.run("curl", "-s", "-m", "5", f"http://{plan.HTTP_SERVER}/page.html")


class SmartPlug(Device):
    """Keeps a TCP session with the vendor's cloud alive and answers its commands."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.link: socket.socket | None = None
        self.agenda.every(2.5, 5.5, self.beat)
        self.agenda.every(50, 120, self.upload_log)
        self.agenda.every(110, 240, self.reconnect)

    def start(self) -> None:
        clients.resolve("plugs.cloud.example")
        self.link = socket.create_connection((plan.CLOUD, plan.PLUG_PORT), timeout=clients.TIMEOUT_S)
        threading.Thread(target=self.listen, args=(self.link,), daemon=True).start()

    def stop(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None

    def listen(self, link: socket.socket) -> None:
        link.settimeout(None)
        try:
            while heard := link.recv(512):
                if heard.startswith(b"SET"):
                    link.sendall(b"DONE" + bytes(20))
        except OSError:
            return

    def beat(self) -> None:
        if self.link is None:
            self.start()
        else:
            self.link.sendall(b"BEAT" + json.dumps(self.reading()).encode())

    def upload_log(self) -> None:
        if self.link is not None:
            for _ in range(self.random.randint(4, 14)):
                self.link.sendall(b"LOG " + bytes(self.random.randint(100, 700)))
                time.sleep(self.random.uniform(0.02, 0.1))

    def reconnect(self) -> None:
        self.stop()
        time.sleep(self.random.uniform(0.5, 3.0))
        self.start()


class CameraHttp(Device):
    """Serves motion JPEG over HTTP to whoever asks (the site's recorder does)."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.up = threading.Event()
        frames = [path.read_bytes() for path in sorted((assets / "frames").glob("*.jpg"))]
        threading.Thread(target=serve_video, args=(me.ip, frames, self.up, self.random), daemon=True).start()

    def start(self) -> None:
        self.up.set()

    def stop(self) -> None:
        self.up.clear()


class CameraRtsp(Device):
    """Pushes MPEG-4 video over RTSP with ffmpeg to the site's recorder."""

    def __init__(self, me: plan.Device, assets: Path) -> None:
        super().__init__(me, assets)
        self.encoder: subprocess.Popen[bytes] | None = None
        self.agenda.every(4, 8, self.look_after)
        self.agenda.every(80, 200, self.change_quality)

    def start(self) -> None:
        rate = self.random.randint(2, 5)
        self.encoder = subprocess.Popen(
            ["ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i",
             f"testsrc2=size=160x120:rate={rate}", "-t", "600", "-c:v", "mpeg4", "-b:v", f"{20 * rate}k",
             "-threads", "1", "-f", "rtsp", "-rtsp_transport", self.random.choice(["tcp", "udp"]),
             f"rtsp://{plan.OPERATIONS}:{plan.RTSP_PORT}/{self.me.name}"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        if self.encoder is not None:
            self.encoder.terminate()
            try:
                self.encoder.wait(2.0)
            except subprocess.TimeoutExpired:
                self.encoder.kill()
                self.encoder.wait()

    def look_after(self) -> None:
        if self.encoder is None or self.encoder.poll() is not None:
            self.start()

    def change_quality(self) -> None:
        self.stop()
        time.sleep(1.0)
        self.start()


KINDS: dict[str, type[Device]] = {
    "mqtt_sensor": MqttSensor,
    "mqtt_meter": MqttMeter,
    "mqtt_actuator": MqttActuator,
    "coap_sensor": CoapSensor,
    "modbus_plc": ModbusPlc,
    "http_poller": HttpPoller,
    "smart_plug": SmartPlug,
    "camera_http": CameraHttp,
    "camera_rtsp": CameraRtsp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="one IoT device of the lab")
    parser.add_argument("gateway", type=int)
    parser.add_argument("slot", choices=("a", "b"))
    parser.add_argument("--assets", type=Path, required=True)
    arguments = parser.parse_args()
    me = plan.device(arguments.gateway, arguments.slot)
    device = KINDS[me.kind](me, arguments.assets)
    while True:
        try:
            device.run()
        except OSError as error:
            # Nothing answers yet, as after a power cut: try again, as a device would.
            print(f"{me.name}: {error}", flush=True)
            time.sleep(2.0)


if __name__ == "__main__":
    main()
