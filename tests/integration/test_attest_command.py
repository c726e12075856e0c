"""`vedette attest` as an operator uses it: keys, policies, evidence, enrolment, and what each refusal says."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from software_tpm import SoftwareTpm, missing

from vedette.exit_codes import ExitCode
from vedette.main import main
from vedette.site import Site, create
from vedette_core.runtime.config import load
from vedette_device.settings import DeviceSettings
from vedette_device.tpm import Tpm

DEVICE, OTHER = "gw-01", "gw-02"
HANDLE = "0x81010110"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command gave back."""

    code: int
    out: str
    err: str


Vedette = Callable[..., Ran]


@pytest.fixture
def vedette(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Vedette:
    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["vedette", "attest", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Ran(int(left.value.code or 0), said.out, said.err)

    return run


def ok(ran: Ran) -> Ran:
    assert ran.code == ExitCode.OK, ran.out + ran.err
    return ran


def tables(tier: int, **more: object) -> dict[str, dict[str, object]]:
    source = {"source": "file", "path": Path("/nowhere.pcap"), "local_networks": ["10.0.0.0/8"]}
    return {"network": source, "attestation": {"enabled": True, "tier": tier, **more}}


def site_of(folder: Path, tier: int = 0, **more: object) -> Site:
    device_tables = {device: tables(tier, **more) for device in (DEVICE, OTHER)}
    return create(folder / "site", "plant-1", [DEVICE, OTHER], port=1, attested=True, device_tables=device_tables)


def files(site: Site) -> Path:
    return site.directory / "attestation"


def new_policy(vedette: Vedette, site: Site, *more: str | Path) -> Ran:
    policy = files(site) / "attestation.policy"
    return vedette(
        "reference", "--site", "plant-1", "--key", files(site) / "policy.key", "--verifier",
        files(site) / "verifier.key.pub", "--earlier", policy, "-o", policy, *more,
    )  # fmt: skip


def verdict(vedette: Vedette, site: Site, evidence: Path, *more: str) -> dict[str, object]:
    ran = vedette("verify", evidence, "-c", site.aggregator_config, "--json", *more)
    found: dict[str, object] = json.loads(ran.out)
    assert ran.code == (ExitCode.OK if found["verdict"] == "affirming" else ExitCode.CHECK_FAILED)
    return found


def test_evidence_of_tier_0_from_file_to_verdict(vedette: Vedette, tmp_path: Path) -> None:
    site, nonce = site_of(tmp_path), "ab" * 32
    evidence = tmp_path / "evidence"
    ok(vedette("evidence", "-c", site.device_configs[DEVICE], "-o", evidence, "--nonce", nonce))
    found = verdict(vedette, site, evidence, "--nonce", nonce)
    assert (found["device"], found["tier"], found["policy"], found["freshness_checked"]) == (DEVICE, 0, 1, True)
    assert verdict(vedette, site, evidence)["freshness_checked"] is False
    assert verdict(vedette, site, evidence, "--nonce", "cd" * 32)["rule"] == "nonce-unknown"
    shown = json.loads(ok(vedette("show", evidence)).out)
    assert (shown["type"], shown["sender"], shown["claims"]["eat_nonce"]) == ("attest.evidence", DEVICE, nonce)
    evidence.write_bytes(evidence.read_bytes()[:-1])
    assert vedette("verify", evidence, "-c", site.aggregator_config).code == ExitCode.INTEGRITY


def test_evidence_of_nobody_of_the_site_is_refused(vedette: Vedette, tmp_path: Path) -> None:
    site, foreign = site_of(tmp_path / "a"), site_of(tmp_path / "b")
    evidence = tmp_path / "evidence"
    ok(vedette("evidence", "-c", foreign.device_configs[DEVICE], "-o", evidence))
    assert vedette("verify", evidence, "-c", site.aggregator_config).code == ExitCode.INTEGRITY


def test_a_policy_counts_up_keeps_what_was_good_and_denies(vedette: Vedette, tmp_path: Path) -> None:
    site = site_of(tmp_path)
    policy = files(site) / "attestation.policy"
    first = json.loads(ok(vedette("show", policy)).out)
    evidence = tmp_path / "evidence"
    ok(vedette("evidence", "-c", site.device_configs[DEVICE], "-o", evidence))
    own = next(r["digests"][0] for r in first["references"] if r["component"] == "vedette")

    before = policy.read_bytes()
    assert "would hold policy 2" in ok(new_policy(vedette, site, "--dry-run")).out
    assert policy.read_bytes() == before
    assert "holds policy 2" in ok(new_policy(vedette, site, "--version-min", "vedette=99")).out
    assert verdict(vedette, site, evidence)["rule"] == "old-software"
    ok(new_policy(vedette, site, "--version-min", "vedette=0.0.1", "--deny", own))
    assert verdict(vedette, site, evidence)["rule"] == "denied-software"
    third = json.loads(ok(vedette("show", policy)).out)
    assert (third["version"], third["denied"]) == (3, [own])
    ok(new_policy(vedette, site))
    assert verdict(vedette, site, evidence)["rule"] == "denied-software", "what is denied stays denied"
    ok(new_policy(vedette, site, "--deny-version", "vedette=6.6.6", "--deny-version", "dependency/msgpack=0.1"))
    ok(new_policy(vedette, site, "--tier", "1", "--tier-unmask", "2"))
    ok(new_policy(vedette, site))
    last = json.loads(ok(vedette("show", policy)).out)
    assert (last["tier_contribute"], last["tier_unmask"]) == (1, 2), "an update of the software lowers no tier"
    ok(new_policy(vedette, site, "--tier", "0"))
    assert json.loads(ok(vedette("show", policy)).out)["tier_contribute"] == 0
    fifth = {r["component"]: r for r in json.loads(ok(vedette("show", policy)).out)["references"]}
    assert fifth["vedette"]["versions_denied"] == ["6.6.6"]
    assert fifth["dependency/msgpack"]["versions_denied"] == ["0.1"]


@pytest.mark.parametrize(
    "wish",
    [("--deny", "xy"), ("--pcr", "7"), ("--pcr", "7=00"), ("--boot", "kernel"), ("--boot", "kernel=/nowhere"),
     ("--version-min", "nothing=1"), ("--deny-version", "nothing=1"),
     ("--from", "/etc/hostname"), ("--version-min", "vedette=one"),
     ("--boot", "Kernel=/etc/hostname")],
)  # fmt: skip
def test_a_wish_that_cannot_be_met_changes_nothing(vedette: Vedette, tmp_path: Path, wish: tuple[str, str]) -> None:
    site = site_of(tmp_path)
    before = (files(site) / "attestation.policy").read_bytes()
    ran = new_policy(vedette, site, *wish)
    assert ran.code == ExitCode.CONFIGURATION
    assert "expected" in ran.err or "found" in ran.err or "match" in ran.err
    assert (files(site) / "attestation.policy").read_bytes() == before


def test_keys_are_private_and_never_replaced(vedette: Vedette, tmp_path: Path) -> None:
    key = tmp_path / "policy.key"
    said = ok(vedette("key", key))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in said.out
    assert "PUBLIC" in (tmp_path / "policy.key.pub").read_text()
    before = key.read_bytes()
    assert vedette("key", key).code == ExitCode.CONFIGURATION
    assert key.read_bytes() == before
    key.chmod(0o640)
    site = site_of(tmp_path)
    ran = vedette(
        "reference",
        "--site",
        "plant-1",
        "-k",
        key,
        "--verifier",
        files(site) / "verifier.key.pub",
        "-o",
        tmp_path / "p",
    )
    assert ran.code == ExitCode.CONFIGURATION
    assert "0600" in ran.err


def test_what_is_no_file_of_attestation_is_said_to_be_none(vedette: Vedette, tmp_path: Path) -> None:
    for content in (b"", b"\xc1", b"{}", bytes(300_000)):
        (tmp_path / "file").write_bytes(content)
        assert vedette("show", tmp_path / "file").code == ExitCode.CONFIGURATION
    assert vedette("show", tmp_path / "missing").code == ExitCode.CONFIGURATION


def test_a_boot_chain_is_measured_enrolled_and_checked(vedette: Vedette, tmp_path: Path) -> None:
    site = site_of(tmp_path, 1, boot_dir=tmp_path / "boot")
    secret, kernel, evidence = tmp_path / "secret", tmp_path / "kernel", tmp_path / "evidence"
    secret.write_bytes(hashlib.sha256(b"a device's secret").digest())
    secret.chmod(0o600)
    kernel.write_bytes(b"kernel 1")
    config = site.device_configs[DEVICE]

    def start() -> str:
        said = ok(vedette("boot", "--secret", secret, "--measure", f"kernel={kernel}", "--out", tmp_path / "boot"))
        return said.out.rsplit(maxsplit=1)[-1]

    root = start()
    assert stat.S_IMODE((tmp_path / "boot" / "key.bin").stat().st_mode) == 0o600
    ok(new_policy(vedette, site, "--tier", "1", "--boot", f"kernel={kernel}"))
    ok(vedette("evidence", "-c", config, "-o", evidence))
    assert verdict(vedette, site, evidence)["rule"] == "not-enrolled"

    request = tmp_path / "request"
    assert root in ok(vedette("enrol", "request", "-c", config, "-o", request)).out
    wrong = vedette("enrol", "admit", request, "-c", site.aggregator_config, "--root", "00" * 32)
    assert wrong.code == ExitCode.CONFIGURATION
    assert "expected " + "00" * 32 in wrong.err
    ok(vedette("enrol", "admit", request, "-c", site.aggregator_config, "--root", root))
    assert (verdict(vedette, site, evidence)["tier"]) == 1

    kernel.write_bytes(b"kernel 2")
    assert start() == root, "the root is the device's, whatever it boots"
    ok(vedette("evidence", "-c", config, "-o", evidence))
    assert verdict(vedette, site, evidence)["rule"] == "unknown-software"

    listed = json.loads(ok(vedette("enrol", "list", "-c", site.aggregator_config, "--json")).out)
    assert [(e["device"], e["tier"], e["activated"]) for e in listed] == [(DEVICE, 1, True)]
    assert "would be forgotten" in ok(vedette("enrol", "forget", DEVICE, "-c", site.aggregator_config, "--dry-run")).out
    ok(vedette("enrol", "forget", DEVICE, "-c", site.aggregator_config))
    assert "nobody is enrolled" in ok(vedette("enrol", "list", "-c", site.aggregator_config)).out
    assert verdict(vedette, site, evidence)["rule"] == "not-enrolled"


def test_a_boot_secret_that_others_may_read_is_refused(vedette: Vedette, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o644)
    boot = ("boot", "--secret", secret, "--measure", "kernel=/etc/hostname", "--out", tmp_path / "boot")
    assert vedette(*boot).code == ExitCode.CONFIGURATION
    secret.write_bytes(bytes(31))
    secret.chmod(0o600)
    assert vedette(*boot).code == ExitCode.CONFIGURATION
    assert not (tmp_path / "boot").exists()


def test_admit_wants_one_thing_or_the_other(vedette: Vedette, tmp_path: Path) -> None:
    site = site_of(tmp_path)
    for more in ((), ("--device", DEVICE, "--root", "00" * 32)):
        assert vedette("enrol", "admit", tmp_path / "x", "-c", site.aggregator_config, *more).code == ExitCode.USAGE


def test_tier_0_has_no_keys_to_enrol(vedette: Vedette, tmp_path: Path) -> None:
    site = site_of(tmp_path)
    ran = vedette("enrol", "request", "-c", site.device_configs[DEVICE], "-o", tmp_path / "request")
    assert ran.code == ExitCode.CONFIGURATION
    assert "tier" in ran.err


# --- with a TPM ---


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    if missing():
        pytest.skip(f"needs {', '.join(missing())}")
    made = SoftwareTpm()
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_tpm_is_enrolled_and_its_quote_is_checked(vedette: Vedette, tmp_path: Path, tpm: SoftwareTpm) -> None:
    site = site_of(tmp_path, 2, tcti=tpm.tcti, ak_handle=HANDLE, pcrs=[0, 7])
    config, aggregator = site.device_configs[DEVICE], site.aggregator_config
    request, credential, secret, evidence = (
        tmp_path / name for name in ("request", "credential", "secret", "evidence")
    )
    section = load(DeviceSettings, config).attestation
    assert Tpm(section.tcti, section.ak_handle, section.pcrs).pcrs == (0, 7)

    ek = ok(vedette("enrol", "request", "-c", config, "-o", request)).out.rsplit(maxsplit=1)[-1]
    ok(new_policy(vedette, site, "--tier", "2", "--pcrs-of", config))
    ok(vedette("evidence", "-c", config, "-o", evidence))
    assert verdict(vedette, site, evidence)["rule"] == "not-enrolled"

    challenge = ("enrol", "challenge", request, "-c", aggregator, "-o", credential, "--ek")
    assert vedette(*challenge, "ab" * 32).code == ExitCode.CONFIGURATION
    ok(vedette(*challenge, ek))
    assert verdict(vedette, site, evidence)["rule"] == "not-activated"

    ok(new_policy(vedette, site, "--tier", "2", "--from", evidence))
    shown = {
        r["component"] for r in json.loads(ok(vedette("show", files(site) / "attestation.policy")).out)["references"]
    }
    assert {"vedette", "pcr/0", "pcr/7"} <= shown, "a node's evidence has all that a policy is made of"

    secret.write_bytes(bytes(32))
    admit = ("enrol", "admit", secret, "-c", aggregator, "--device", DEVICE)
    assert vedette(*admit).code == ExitCode.CONFIGURATION
    ok(vedette("enrol", "activate", credential, "-c", config, "-o", secret))
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    ok(vedette(*admit))
    assert verdict(vedette, site, evidence)["tier"] == 2

    tpm.extend(7, hashlib.sha256(b"another loader").digest())
    ok(vedette("evidence", "-c", config, "-o", evidence))
    assert verdict(vedette, site, evidence)["rule"] == "wrong-pcr"
