"""Starts the site: servers with their configuration, remote logins, devices, operations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.lab import plan
from bench.lab.programs import Programs

FIRMWARE_BYTES = {"small": 20_000, "medium": 45_000, "large": 90_000}


def make_assets(folder: Path) -> None:
    """Writes configurations, web pages, firmware files and camera frames.

    Args:
        folder: Existing folder for all of it.
    """
    www = folder / "www" / "firmware"
    www.mkdir(parents=True)
    (folder / "www" / "status.json").write_text('{"mode": "auto", "alarms": []}' * 12, encoding="ascii")
    (folder / "www" / "page.html").write_text("<p>all quiet on the site</p>\n" * 300, encoding="ascii")
    (folder / "www" / "index.html").write_text("<h1>device</h1>\n" * 40, encoding="ascii")
    (www / "index.json").write_text('{"latest": "1.4.2"}', encoding="ascii")
    for name, size in FIRMWARE_BYTES.items():
        # Firmware of the lab compresses well, so that the captures do.
        (www / f"{name}.bin").write_bytes((name.encode("ascii") * size)[:size])
    (folder / "frames").mkdir()
    subprocess.run(
        ["ffmpeg", "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=176x144:rate=4",
         "-t", "8", "-q:v", "14", str(folder / "frames" / "%03d.jpg")],
        check=True,
    )  # fmt: skip
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", str(folder / "passwords"), plan.MQTT_USER, plan.MQTT_PASSWORD], check=True
    )
    (folder / "mosquitto.conf").write_text(
        f"listener 1883 {plan.BROKER}\nallow_anonymous false\npassword_file {folder / 'passwords'}\n"
        "persistence false\nuser root\nmax_queued_messages 200\n",
        encoding="ascii",
    )
    (folder / "chrony.conf").write_text(
        f"local stratum 5\nallow 10.77.0.0/16\nbindaddress {plan.NTP_SERVER}\ncmdport 0\n"
        f"pidfile {folder / 'chronyd.pid'}\nbindcmdaddress /\n",
        encoding="ascii",
    )
    for name, address in [("site", plan.HTTP_SERVER), *((one.name, one.ip) for one in plan.DEVICES)]:
        (folder / f"lighttpd-{name}.conf").write_text(
            f'server.document-root = "{folder / "www"}"\nserver.bind = "{address}"\nserver.port = 80\n'
            'index-file.names = ( "index.html" )\nserver.max-connections = 80\nserver.max-keep-alive-idle = 3\n',
            encoding="ascii",
        )
    subprocess.run(["dropbearkey", "-t", "ed25519", "-f", str(folder / "hostkey")], check=True, capture_output=True)


def start_servers(programs: Programs, folder: Path) -> None:
    """Starts the servers of the site and of the outside.

    Args:
        programs: Where they run.
        folder: What :func:`make_assets` filled.
    """
    core = plan.CORE_NAMESPACE
    programs.start(core, "mosquitto", ["mosquitto", "-c", str(folder / "mosquitto.conf")])
    programs.start(core, "lighttpd", ["lighttpd", "-D", "-f", str(folder / "lighttpd-site.conf")])
    programs.start(core, "chronyd", ["chronyd", "-d", "-x", "-u", "root", "-f", str(folder / "chrony.conf")])
    programs.start(core, "coap", ["coap-server-notls", "-A", plan.COAP_COLLECTOR, "-d", "64"])
    names = [f"--address=/{name}/{address}" for name, address in plan.NAMES.items()]
    programs.start(
        core, "dnsmasq",
        ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
         f"--listen-address={plan.DNS_SERVER}", "--bind-interfaces", "--cache-size=0", *names],
    )  # fmt: skip
    role = [sys.executable, "-m", "bench.lab.operations"]
    programs.start(plan.CLOUD_NAMESPACE, "cloud", [*role, "cloud"])
    programs.start(plan.OUTSIDER_NAMESPACE, "c2", [*role, "c2"])
    for name in ("record-http", "record-rtsp"):
        programs.start(core, name, [*role, name])


def start_devices(programs: Programs, folder: Path) -> None:
    """Starts every device with its remote login, and a web page on cameras.

    Args:
        programs: Where they run.
        folder: What :func:`make_assets` filled.
    """
    for device in plan.DEVICES:
        space = device.namespace
        if device.login == "ssh":
            # No root logins; the attackers' lists name accounts that do not exist.
            keys = ["-r", str(folder / "hostkey"), "-P", str(folder / f"{space}.pid")]
            command = ["dropbear", "-F", "-E", "-w", *keys]
        else:
            command = [sys.executable, "-m", "bench.lab.telnet_login"]
        programs.start(space, f"{device.name}-login", command)
        if device.kind.startswith("camera"):
            config = str(folder / f"lighttpd-{device.name}.conf")
            programs.start(space, f"{device.name}-web", ["lighttpd", "-D", "-f", config])
        program = [sys.executable, "-m", "bench.lab.devices", str(device.gateway), device.slot]
        programs.start(space, device.name, [*program, "--assets", str(folder)])


def start_operations(programs: Programs) -> None:
    """Starts the site's controller, monitoring and SCADA pollers.

    Args:
        programs: Where they run.
    """
    role = [sys.executable, "-m", "bench.lab.operations"]
    for name in ("control", "monitor"):
        programs.start(plan.CORE_NAMESPACE, name, [*role, name])
    for device in plan.DEVICES:
        if device.kind == "modbus_plc":
            command = [*role, "scada", "--gateway", str(device.gateway)]
            programs.start(plan.CORE_NAMESPACE, f"scada-{device.gateway}", command)
