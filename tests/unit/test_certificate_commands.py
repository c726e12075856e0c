"""`vedette ca` and `vedette init` on the command line: what they print, what they never print, and modes of files."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from test_command_line import vedette

from vedette.exit_codes import ExitCode
from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole
from vedette_core.runtime.identity import load_node


def run(*arguments: str) -> str:
    done = vedette(*arguments)
    assert done.returncode == ExitCode.OK, done.stderr
    return done.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("of") / "site"
    run("init", "site", str(directory), "--site", "plant-1", "--devices", "gw-1,gw-2", "--port", "18883")
    return directory


def secrets_of(site: Path) -> list[str]:
    keys = [p for p in site.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]
    assert len(keys) >= 8
    return [p.read_text().splitlines()[1] for p in keys]


def test_nothing_secret_of_a_site_can_be_read_by_others(site: Path) -> None:
    assert stat.S_IMODE(site.stat().st_mode) == 0o700
    for path in site.rglob("*"):
        if path.is_file() and (b"PRIVATE KEY" in path.read_bytes() or path.suffix in (".toml", ".db", ".json")):
            closed = any(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in (path, *path.parents))
            assert closed, path
    for name in ("broker", "aggregator", "ca", "gw-1", "gw-2"):
        assert stat.S_IMODE((site / "config" / f"{name}.toml").stat().st_mode) == 0o600
    assert vedette("config", "check", "authority", str(site / "config" / "ca.toml")).returncode == ExitCode.OK


def test_a_folder_that_others_may_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    run("init", str(tmp_path / "open"))
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_a_token_is_printed_and_nothing_else_that_is_secret(site: Path) -> None:
    authority = str(site / "ca")
    done = vedette("ca", "token", "-d", authority, "--id", "gw-8", "--hours", "1")
    assert done.returncode == ExitCode.OK
    assert len(done.stdout.strip()) == 52, "the token alone on standard output, to be piped to the node"
    everything = done.stderr + run("ca", "list", "-d", authority, "--tokens")
    assert done.stdout.strip() not in everything
    (token,) = [t for t in as_json("ca", "list", "-d", authority, "--tokens") if t["holder"] == "gw-8"]
    assert not {"digest", "key", "used_for"} & token.keys()
    shown = [*everything, run("ca", "list", "-d", authority), run("ca", "crl", "-d", authority)]
    assert not any(secret in text for secret in secrets_of(site) for text in shown)


def test_revoke_crl_and_list_tell_the_same(site: Path) -> None:
    authority = str(site / "ca")
    before = as_json("ca", "crl", "-d", authority)["number"]
    assert f"list {before + 1}" in run("ca", "revoke", "gw-2", "-d", authority, "--reason", "key-compromise")
    listed = as_json("ca", "crl", "-d", authority)
    assert listed["number"] == before + 1
    assert {(e["id"], e["reason"]) for e in listed["entries"]} == {("gw-2", "key-compromise")}
    status = {line["id"]: line["status"] for line in as_json("ca", "list", "-d", authority)}
    assert (status["gw-1"], status["gw-2"]) == ("valid", "revoked")
    assert "revoked" in run("ca", "list", "-d", authority)
    again = vedette("ca", "revoke", "gw-2", "-d", authority)
    assert again.returncode == ExitCode.CONFIGURATION
    assert vedette("ca", "revoke", "nobody", "-d", authority).returncode == ExitCode.CONFIGURATION
    assert as_json("ca", "crl", "-d", authority, "--refresh")["number"] == before + 2


def test_what_is_due_is_renewed_and_what_is_revoked_is_not(tmp_path: Path) -> None:
    authority, long_ago = tmp_path / "ca", time.time() - 4 * 86_400
    ca.init(authority, "plant-1", now=long_ago)
    for name, role in (("aggregator", CertificateRole.AGGREGATOR), ("broker", CertificateRole.BROKER)):
        ca.issue(authority, name, role, now=long_ago)
    for name, at in (("gw-1", long_ago), ("gw-2", long_ago), ("gw-3", time.time())):
        ca.issue(authority, name, CertificateRole.DEVICE, now=at)
    run("ca", "revoke", "gw-2", "-d", str(authority))
    skipped, *renewed = run("ca", "renew", "--due", "-d", str(authority)).splitlines()
    assert skipped.startswith("gw-1: skipped: a device renews itself")
    assert [Path(line.split(":")[0]).name for line in renewed] == ["aggregator", "broker"]
    assert run("ca", "renew", "--due", "-d", str(authority)).splitlines() == [skipped, "nothing to renew"]
    assert run("ca", "renew", "--due", "--all", "-d", str(authority)) == f"{authority}/bundles/gw-1: renewed\n"
    assert run("ca", "renew", "--due", "-d", str(authority)) == "nothing to renew\n"
    assert vedette("ca", "renew", "--all", "-d", str(authority)).returncode == ExitCode.USAGE


def test_a_bundle_that_cannot_be_renewed_keeps_no_other_from_it(tmp_path: Path) -> None:
    authority, long_ago = tmp_path / "ca", time.time() - 4 * 86_400
    ca.init(authority, "plant-1", now=long_ago)
    for name, role in (("aggregator", CertificateRole.AGGREGATOR), ("broker", CertificateRole.BROKER)):
        ca.issue(authority, name, role, now=long_ago)
    (authority / "bundles" / "aggregator" / "signing.key").write_text("nonsense")
    done = vedette("ca", "renew", "--due", "-d", str(authority))
    assert done.returncode == ExitCode.CONFIGURATION
    assert "signing.key" in done.stderr
    assert done.stdout == f"{authority}/bundles/broker: renewed\n"
    assert vedette("ca", "renew", "gw-2", "-d", str(authority)).returncode == ExitCode.CONFIGURATION


def test_a_node_s_folder_is_ready_but_for_its_source(site: Path, tmp_path: Path) -> None:
    node, root, bundle = tmp_path / "node", str(site / "root.json"), str(site / "ca" / "bundles" / "gw-1")
    shown = run("init", "device", str(node), "--root", root, "--bundle", bundle, "--port", "18883")
    assert "vedette device run" in shown
    assert load_node(node / "bundle", time.time()).id == "gw-1"
    assert vedette("config", "check", "device", str(node / "device.toml")).returncode == ExitCode.OK
    assert stat.S_IMODE(node.stat().st_mode) == 0o700
    for path in node.rglob("*"):
        if path.suffix in (".key", ".toml"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    again = vedette("init", "device", str(node), "--root", root, "--bundle", bundle)
    assert again.returncode == ExitCode.CONFIGURATION
    assert "found something there" in again.stderr


def test_a_helper_s_folder_has_a_helper_s_settings(site: Path, tmp_path: Path) -> None:
    helper = ca.issue(site / "ca", "opener-1", CertificateRole.COMMITTEE, now=time.time())
    run("init", "device", str(tmp_path / "h"), "--root", str(site / "root.json"), "--bundle", str(helper))
    assert vedette("config", "check", "committee", str(tmp_path / "h" / "committee.toml")).returncode == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--root", "ROOT"), "expected one of them"),
        (("--root", "ROOT", "--bundle", "B", "--ticket", "T"), "expected one of them"),
        (("--root", "missing", "--bundle", "B"), "root.json"),
        (("--root", "ROOT", "--ticket", "missing", "--token", "a" * 52), "missing"),
        (("--root", "ROOT", "--ticket", "T"), "token"),
        (("--root", "ROOT", "--ticket", "T", "--token", "abc"), "52"),
        (("--root", "ROOT", "--bundle", "BROKER"), "bundle"),
        (("--root", "ROOT", "--bundle", "ANALYTICS"), "analytics"),
    ],
)
def test_what_a_node_cannot_be_made_of_is_told(
    site: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    bundles = site / "ca" / "bundles"
    real = {"ROOT": site / "root.json", "B": bundles / "gw-1", "BROKER": bundles / "broker", "T": site / "root.json"}
    real["ANALYTICS"] = bundles / "analytics"
    done = vedette("init", "device", str(tmp_path / "n"), *(str(real.get(a, a)) for a in arguments))
    assert done.returncode in (ExitCode.CONFIGURATION, ExitCode.INTEGRITY)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_issuing_authority_is_replaced_with_a_root_that_is_elsewhere(tmp_path: Path) -> None:
    authority, offline = tmp_path / "ca", tmp_path / "offline"
    ca.init(authority, "lab", now=time.time() - 340 * 86_400)
    where = ("-d", str(authority))
    for command in (("ca", "list", *where), ("ca", "intermediate", "show", *where)):
        told = vedette(*command)
        assert told.returncode == ExitCode.OK
        assert "vedette ca intermediate renew" in told.stderr
    (authority / "root").rename(offline)
    missing = vedette("ca", "intermediate", "renew", *where)
    assert missing.returncode == ExitCode.CONFIGURATION
    assert "root.crt" in missing.stderr
    asked, signed = tmp_path / "asked.csr", tmp_path / "signed.crt"
    said = [run("ca", "intermediate", "request", "-o", str(asked), *where)]
    shown = said[0].split()[-1]
    sign = ("ca", "intermediate", "sign", str(asked), "--root", str(offline), "-o", str(signed), "--fingerprint")
    refused = vedette(*sign, "0" * 64)
    assert refused.returncode != ExitCode.OK
    assert not signed.exists()
    said.append(run(*sign, shown))
    said.append(run("ca", "intermediate", "install", str(signed), "--announce", *where))
    assert [row["state"] for row in as_json("ca", "intermediate", "show", *where)] == ["known", "issues"]
    said.append(run("ca", "intermediate", "install", str(signed), *where))
    assert [row["state"] for row in as_json("ca", "intermediate", "show", *where)] == ["issues", "earlier"]
    assert vedette("ca", "list", *where).stderr == ""
    again = vedette("ca", "intermediate", "renew", "--root", str(offline), *where)
    assert "in force still" in again.stderr
    said.append(run("ca", "intermediate", "retire", *where))
    assert [row["state"] for row in as_json("ca", "intermediate", "show", *where)] == ["issues"]
    keys = [p.read_text().splitlines()[1] for p in tmp_path.rglob("*.key")]
    assert len(keys) == 2
    for text in (*said, asked.read_text(), signed.read_text()):
        assert not any(key in text for key in keys)
