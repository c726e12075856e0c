"""What a person meets on the command line: help at once, and errors that say what to do, with an exit status."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from vedette.demo.fleet import free_port
from vedette.exit_codes import ExitCode

ROOT = Path(__file__).parents[2]


def vedette(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vedette.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    done = vedette("init", str(tmp_path / "site"), "--devices", "gw-1,gw-2", "--port", "18883")
    assert done.returncode == ExitCode.OK, done.stderr
    return tmp_path / "site"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom vedette.main import app\n"
        "heavy = {'numpy', 'pydantic', 'paho', 'amqtt', 'tuf', 'ai_edge_litert', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_version_and_help() -> None:
    assert vedette("--version").stdout.startswith("vedette ")
    shown = vedette("--help")
    assert shown.returncode == ExitCode.OK
    for command in ("demo", "device", "aggregator", "broker", "ca", "init"):
        assert command in shown.stdout


def test_unknown_command_is_a_usage_error() -> None:
    assert vedette("frobnicate").returncode == ExitCode.USAGE


def test_init_makes_settings_that_are_read_back(site: Path) -> None:
    for component, name in (("broker", "broker"), ("aggregator", "aggregator"), ("device", "gw-1")):
        done = vedette("config", "check", component, str(site / "config" / f"{name}.toml"))
        assert (done.returncode, done.stdout.strip().endswith("ok")) == (ExitCode.OK, True), done.stderr
    assert all(p.stat().st_mode & 0o077 == 0 for p in site.rglob("*.key"))


def test_init_makes_an_attestation_policy_on_request(site: Path, tmp_path: Path) -> None:
    assert not (site / "attestation").exists()
    attested = tmp_path / "attested"
    done = vedette("init", "site", str(attested), "--devices", "gw-1", "--attest")
    assert done.returncode == ExitCode.OK, done.stderr
    policy = str(attested / "attestation" / "attestation.policy")
    shown = vedette("attest", "show", policy)
    assert shown.returncode == ExitCode.OK, shown.stderr
    for component, name in (("aggregator", "aggregator"), ("device", "gw-1")):
        settings = vedette("config", "show", component, str(attested / "config" / f"{name}.toml"))
        about = json.loads(settings.stdout)["attestation"]
        assert about.get("policy", policy) == policy
        assert about.get("enabled", True) is True
    assert all(p.stat().st_mode & 0o077 == 0 for p in attested.rglob("*.key"))


@pytest.mark.parametrize(
    ("devices", "stages", "says"),
    [
        (3, None, "3 are too few to compare"),
        (4, (50.0, 100.0), "in stages (50 %, 100 %)"),
        (8, (25.0, 50.0, 100.0), "in stages (25 %, 50 %, 100 %)"),
        (20, (10.0, 50.0, 100.0), "in stages (10 %, 50 %, 100 %)"),
    ],
)
def test_init_switches_rollouts_on_where_there_is_something_to_compare(
    tmp_path: Path, devices: int, stages: tuple[float, ...] | None, says: str
) -> None:
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    made = vedette("init", str(tmp_path / "s"), "--devices", ",".join(f"gw-{i}" for i in range(devices)))
    assert made.returncode == ExitCode.OK, made.stderr
    assert says in made.stdout
    (task,) = load(AggregatorSettings, tmp_path / "s" / "config" / "aggregator.toml").tasks
    assert task.rollout.enabled == (stages is not None)
    if stages is not None:
        assert task.rollout.stages == stages


def test_init_does_not_touch_a_folder_that_is_in_use(site: Path) -> None:
    done = vedette("init", str(site))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "expected a new or empty folder" in done.stderr


@pytest.mark.parametrize("devices", ["aggregator", "GW_1", "a,a"])
def test_init_refuses_ids_that_cannot_be(tmp_path: Path, devices: str) -> None:
    done = vedette("init", str(tmp_path / "s"), "--devices", devices)
    assert done.returncode == ExitCode.CONFIGURATION
    assert "Traceback" not in done.stderr


def test_unknown_key_says_what_was_meant(site: Path) -> None:
    path = site / "config" / "gw-1.toml"
    path.write_text(path.read_text().replace("port =", "prot ="))
    done = vedette("device", "run", "-c", str(path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "unknown key 'broker.prot'; did you mean 'port'?" in done.stderr


def test_missing_settings_file(tmp_path: Path) -> None:
    done = vedette("aggregator", "run", "-c", str(tmp_path / "none.toml"))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "no such file" in done.stderr


def test_device_without_a_detector(site: Path) -> None:
    done = vedette("device", "run", "-c", str(site / "config" / "gw-1.toml"))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "expected a [network], [sensor] or [behaviour] table" in done.stderr


def test_missing_capture(site: Path) -> None:
    path = site / "config" / "gw-1.toml"
    path.write_text(
        path.read_text() + '\n[network]\nsource = "file"\npath = "absent.pcap"\nlocal_networks = ["10.0.0.0/8"]\n'
    )
    done = vedette("device", "run", "-c", str(path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "absent.pcap" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_taken(site: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        path = site / "config" / "broker.toml"
        path.write_text(path.read_text().replace("port = 18883", f"port = {port}"))
        done = vedette("broker", "run", "-c", str(path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert str(port) in done.stderr


def test_embedded_broker_refuses_every_interface(site: Path) -> None:
    path = site / "config" / "broker.toml"
    path.write_text(path.read_text().replace('host = "127.0.0.1"', 'host = "0.0.0.0"'))
    done = vedette("broker", "run", "-c", str(path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "expected one address of this machine that is not public" in done.stderr


def test_demo_with_a_folder_that_holds_no_recordings(tmp_path: Path) -> None:
    done = vedette("demo", "--once", "--json", "--data", str(tmp_path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "expected a folder of recordings" in done.stderr


def test_alerts_tail_without_a_broker(site: Path) -> None:
    port = free_port()
    done = vedette("alerts", "tail", "-b", str(site / "ca" / "bundles" / "analytics"), "-p", str(port))
    assert done.returncode == ExitCode.BROKER_UNREACHABLE
    assert f"127.0.0.1:{port}" in done.stderr


def test_ca_issue_and_list(tmp_path: Path) -> None:
    authority = str(tmp_path / "ca")
    assert vedette("ca", "init", "-d", authority, "-s", "plant").returncode == ExitCode.OK
    assert vedette("ca", "issue", "gw-9", "-d", authority).returncode == ExitCode.OK
    again = vedette("ca", "issue", "gw-9", "-d", authority)
    assert again.returncode == ExitCode.CONFIGURATION
    assert "gw-9" in vedette("ca", "list", "-d", authority).stdout


def test_render_writes_mosquitto_settings(tmp_path: Path) -> None:
    done = vedette("broker", "render", "mosquitto", "-s", "plant", "-b", "/etc/vedette/broker", "-o", str(tmp_path))
    assert done.returncode == ExitCode.OK
    assert "require_certificate true" in (tmp_path / "mosquitto.conf").read_text()


def network_config(site: Path, capture: bytes) -> str:
    (site / "x.pcap").write_bytes(capture)
    path = site / "config" / "gw-1.toml"
    path.write_text(
        path.read_text()
        + f'\n[network]\nsource = "file"\npath = "{site / "x.pcap"}"\nlocal_networks = ["10.0.0.0/8"]\n'
    )
    return str(path)


def pcap(link_type: int, frames: int) -> bytes:
    frame = bytes(60)
    records = b"".join(struct.pack("<IIII", 1_700_000_000 + i, 0, 60, 60) + frame for i in range(frames))
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type) + records


def test_truncated_capture_is_read_to_its_end_and_told(site: Path) -> None:
    done = vedette("device", "run", "-c", network_config(site, pcap(1, 5)[:-7]))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "x.pcap" in done.stderr
    assert "expected" in done.stderr
    assert "Traceback" not in done.stderr


def test_capture_of_another_link_type_says_which_are_read(site: Path) -> None:
    done = vedette("device", "run", "-c", network_config(site, pcap(105, 5)))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "802.11" in done.stderr
    assert "Ethernet" in done.stderr


def test_file_that_is_no_capture(site: Path) -> None:
    done = vedette("device", "run", "-c", network_config(site, b"this is a text"))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "x.pcap" in done.stderr


# -- committees, privacy, quarantine, root sets, scenarios -------------------------------------------------------------


@pytest.mark.parametrize("command", ["committee", "privacy", "device"])
def test_the_new_commands_are_in_the_help(command: str) -> None:
    assert command in vedette("--help").stdout


def test_a_committee_needs_its_settings(tmp_path: Path) -> None:
    done = vedette("committee", "run", "-c", str(tmp_path / "none.toml"))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "no such file" in done.stderr


def test_a_helper_with_a_devices_certificate_is_told_which_one_it_needs(site: Path) -> None:
    path = site / "config" / "helper-1.toml"
    path.write_text(
        f'site = "site-1"\nmember = "gw-1"\nstate_dir = "{site / "state" / "helper-1"}"\ntasks = ["network"]\n'
        f'[identity]\nbundle = "{site / "ca" / "bundles" / "gw-1"}"\ntrust_root = "{site / "root.json"}"\n'
    )
    assert vedette("config", "check", "committee", str(path)).returncode == ExitCode.OK
    done = vedette("committee", "run", "-c", str(path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "--role committee" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_helpers_bundle_can_be_issued(site: Path) -> None:
    done = vedette("ca", "issue", "helper-1", "--role", "committee", "-d", str(site / "ca"))
    assert done.returncode == ExitCode.OK, done.stderr
    assert "committee" in vedette("ca", "list", "-d", str(site / "ca")).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("privacy", "show"),
        ("device", "quarantine", "list"),
        ("device", "quarantine", "add", "gw-1"),
        ("device", "quarantine", "release", "gw-1"),
    ],
    ids=" ".join,
)
def test_what_reads_an_aggregators_state_says_that_there_is_none(site: Path, arguments: tuple[str, ...]) -> None:
    done = vedette(*arguments, "-c", str(site / "config" / "aggregator.toml"))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "found no state there, expected that of an aggregator that has run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def stopped(site: Path) -> str:
    """Settings of an aggregator that has run: its state is there."""
    from vedette_core.runtime.storage import Database

    Database(site / "state" / "aggregator" / "aggregator.db").close()
    return str(site / "config" / "aggregator.toml")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_quarantine_of_what_is_no_id(stopped: str, more: tuple[str, ...]) -> None:
    done = vedette("device", "quarantine", "add", "GW_1", "-c", stopped, *more)
    assert done.returncode == ExitCode.CONFIGURATION
    assert "GW_1" in done.stderr


def test_release_of_a_device_that_is_not_quarantined_names_those_that_are(stopped: str) -> None:
    assert vedette("device", "quarantine", "add", "gw-2", "-c", stopped, "--reason", "odd").returncode == ExitCode.OK
    done = vedette("device", "quarantine", "release", "gw-1", "-c", stopped)
    assert done.returncode == ExitCode.CONFIGURATION
    assert "gw-2" in done.stderr
    listed = vedette("device", "quarantine", "list", "-c", stopped).stdout
    assert "gw-2" in listed
    assert "odd" in listed
    assert vedette("device", "quarantine", "release", "gw-2", "-c", stopped).returncode == ExitCode.OK
    assert "nobody is quarantined" in vedette("device", "quarantine", "list", "-c", stopped).stdout


def test_a_dry_run_of_a_release_fails_where_the_release_would(stopped: str) -> None:
    done = vedette("device", "quarantine", "release", "gw-1", "-c", stopped, "--dry-run")
    assert done.returncode == ExitCode.CONFIGURATION


def test_a_dry_run_quarantines_nobody(stopped: str) -> None:
    done = vedette("device", "quarantine", "add", "gw-1", "-c", stopped, "--dry-run")
    assert (done.returncode, "would be kept out" in done.stdout) == (ExitCode.OK, True)
    assert "nobody is quarantined" in vedette("device", "quarantine", "list", "-c", stopped).stdout


def test_windows_of_a_task_that_the_node_does_not_have(site: Path) -> None:
    done = vedette(
        "device", "windows", "-c", str(site / "config" / "gw-1.toml"), "-o", str(site / "root.npz"), "-t", "other"
    )
    assert done.returncode == ExitCode.CONFIGURATION
    assert "found no detector of it" in done.stderr


def test_windows_of_a_node_that_has_learnt_nothing(site: Path) -> None:
    target = site / "root.npz"
    done = vedette("device", "windows", "-c", network_config(site, pcap(1, 5)), "-o", str(target))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "found no training windows" in done.stderr
    assert not target.exists()


def test_a_root_set_that_is_none_stops_the_aggregator_at_once(site: Path) -> None:
    path = site / "config" / "aggregator.toml"
    (site / "root.npz").write_bytes(b"this is no archive")
    path.write_text(path.read_text() + f'\n[tasks.defence]\nroot_set = "{site / "root.npz"}"\n')
    done = vedette("aggregator", "run", "-c", str(path))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "vedette device windows" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scenario_that_is_not_known_is_a_usage_error() -> None:
    assert vedette("demo", "--scenario", "earthquake").returncode == ExitCode.USAGE


@pytest.mark.parametrize("scenario", ["dropout", "poisoned-device", "stolen-release-key"])
def test_a_scenario_with_a_folder_that_holds_no_recordings(tmp_path: Path, scenario: str) -> None:
    done = vedette("demo", "--scenario", scenario, "--json", "--data", str(tmp_path), "--insecure-plain-updates")
    assert done.returncode == ExitCode.CONFIGURATION
    assert "expected a folder of recordings" in done.stderr
    assert "INSECURE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--task", "network"),
        ("--entity", "192.0.2.7"),
        ("an-alert", "--task", "network", "--entity", "192.0.2.7"),
        ("an-alert", "--list"),
        ("--list", "--undo"),
        ("--undo",),
    ],
)
def test_accept_wants_an_alert_or_a_task_and_an_entity(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = vedette("device", "accept", "-c", str(tmp_path / "device.toml"), *arguments)
    assert done.returncode == ExitCode.USAGE
    assert "expected" in done.stderr


def test_accept_on_a_device_that_never_ran_says_so(site: Path) -> None:
    for arguments in (("--list",), ("an-alert",), ("--undo", "an-alert")):
        done = vedette("device", "accept", "-c", str(site / "config" / "gw-1.toml"), *arguments)
        assert done.returncode == ExitCode.CONFIGURATION
        assert "no state there" in done.stderr
