"""The certificate authority on disk: what it makes, keeps, refuses, and survives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from vedette_broker import ca
from vedette_core.crypto.certificates import CertificateRole, Purpose
from vedette_core.runtime.identity import (
    Bundle,
    client_context,
    key_ring,
    learn_aggregator,
    load_authorities,
    load_node,
    load_tls_identity,
    server_context,
)
from vedette_schemas.errors import ConfigError, PeerError, RefusedError

NOW = 1_800_000_000.0
DAY_S = 86_400
DEVICE, BROKER, AGGREGATOR = CertificateRole.DEVICE, CertificateRole.BROKER, CertificateRole.AGGREGATOR
COMMITTEE = CertificateRole.COMMITTEE


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    ca.init(tmp_path / "ca", "lab", now=NOW)
    return tmp_path / "ca"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_device_s_bundle_is_all_that_it_needs(authority: Path) -> None:
    ca.issue(authority, "aggregator", AGGREGATOR, now=NOW)
    bundle = ca.issue(authority, "dev-1", DEVICE, now=NOW)
    node = load_node(bundle, NOW)
    assert (node.id, node.role, node.site) == ("dev-1", DEVICE, "lab")
    ring = key_ring(node.bundle, node.site)
    ring.learn(node.certificate, NOW, intermediate=node.intermediate, sender="dev-1")
    ring.verify("dev-1", node.signer.sign(b"x"), b"x")
    assert learn_aggregator(ring, node.bundle, NOW).role is AGGREGATOR
    assert client_context(node.bundle).check_hostname
    assert "PRIVATE" not in (bundle / "tls.crt").read_text()


def test_a_helper_s_bundle_is_all_that_it_needs(authority: Path) -> None:
    """As a device's: it checks the aggregator's word, and speaks on a branch of its own."""
    ca.issue(authority, "aggregator", AGGREGATOR, now=NOW)
    for name in ("helper-1", "helper-2"):
        node = load_node(ca.issue(authority, name, COMMITTEE, now=NOW), NOW)
        assert (node.id, node.role, node.site) == (name, COMMITTEE, "lab")
        ring = key_ring(node.bundle, node.site)
        ring.learn(node.certificate, NOW, intermediate=node.intermediate, sender=name, role=COMMITTEE)
        ring.verify(name, node.signer.sign(b"x"), b"x")
        assert learn_aggregator(ring, node.bundle, NOW).role is AGGREGATOR
        assert client_context(node.bundle).check_hostname
    assert [(line.id, line.role) for line in ca.list_issued(authority) if line.role == "committee"] == [
        ("helper-1", "committee"),
        ("helper-2", "committee"),
    ]


def test_a_helper_s_certificate_does_not_pass_for_a_device_s(authority: Path) -> None:
    node = load_node(ca.issue(authority, "helper-1", COMMITTEE, now=NOW), NOW)
    ring = key_ring(node.bundle, node.site)
    with pytest.raises(PeerError, match="found role committee, expected device") as refused:
        ring.learn(node.certificate, NOW, intermediate=node.intermediate, role=DEVICE)
    assert refused.value.reason == "role"


def test_the_broker_s_bundle_has_a_server_s_certificate_and_no_signing_key(authority: Path) -> None:
    bundle = Bundle(ca.issue(authority, "broker", BROKER, now=NOW, hosts=["broker.example", "192.0.2.1"]))
    assert load_tls_identity(bundle, NOW, Purpose.TLS_SERVER).role is BROKER
    server_context(bundle)
    names = x509.load_pem_x509_certificate(bundle.tls_certificate.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["192.0.2.1"]
    assert not bundle.signing_key.exists()


def test_nobody_else_may_read_a_key(authority: Path) -> None:
    bundle = ca.issue(authority, "dev-1", DEVICE, now=NOW)
    keys = sorted(authority.rglob("*.key"))
    assert len(keys) == 4
    assert {mode(p) for p in keys} == {0o600}
    directories = [authority, *(p for p in authority.rglob("*") if p.is_dir())]
    assert {mode(p) for p in directories} == {0o700}
    assert mode(bundle / "tls.crt") == 0o644


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ca.init(tmp_path / "ca", "lab", now=NOW)
        ca.issue(tmp_path / "ca", "dev-1", DEVICE, now=NOW)
    finally:
        os.umask(before)
    assert {mode(p) for p in (tmp_path / "ca").rglob("*.key")} == {0o600}
    assert mode(tmp_path / "ca" / "bundles" / "dev-1") == 0o700


def test_issuing_needs_no_root_key(authority: Path) -> None:
    (authority / "root" / "root.key").unlink()
    load_node(ca.issue(authority, "dev-1", DEVICE, now=NOW), NOW)


def test_the_list_tells_what_was_issued(authority: Path) -> None:
    ca.issue(authority, "dev-2", DEVICE, now=NOW)
    ca.issue(authority, "dev-1", DEVICE, now=NOW + 1)
    lines = ca.list_issued(authority)
    assert [(line.id, line.role, line.not_after) for line in lines] == [
        ("dev-1", "device", NOW + 1 + 7 * DAY_S),
        ("dev-2", "device", NOW + 7 * DAY_S),
    ]
    leaf = x509.load_pem_x509_certificate((authority / "bundles" / "dev-1" / "tls.crt").read_bytes())
    assert f"{leaf.serial_number:x}" == lines[0].serials[0]
    assert ca.site_of(authority) == "lab"


def test_an_id_is_issued_once_unless_its_replacement_is_asked_for(authority: Path) -> None:
    first = (ca.issue(authority, "dev-1", DEVICE, now=NOW) / "tls.key").read_bytes()
    with pytest.raises(RefusedError, match="earlier bundle") as refused:
        ca.issue(authority, "dev-1", DEVICE, now=NOW)
    assert refused.value.rule == "already-issued"
    bundle = ca.issue(authority, "dev-1", DEVICE, now=NOW + DAY_S, replace=True)
    assert (bundle / "tls.key").read_bytes() != first
    assert load_node(bundle, NOW + 8 * DAY_S - 1).id == "dev-1"
    assert len(ca.list_issued(authority)) == 1
    assert sorted(p.name for p in (authority / "bundles").iterdir()) == ["dev-1"]


@pytest.mark.parametrize("role", [DEVICE, COMMITTEE])
@pytest.mark.parametrize("holder", ["aggregator", "analytics", "broker"])
def test_a_device_or_helper_does_not_get_a_reserved_id(authority: Path, holder: str, role: CertificateRole) -> None:
    with pytest.raises(RefusedError, match="reserved"):
        ca.issue(authority, holder, role, now=NOW)
    assert ca.list_issued(authority) == ()


@pytest.mark.parametrize("holder", ["", "Dev", "a/b", "../x", "+", "#", "dev 1", "dev_1", "d" * 61, "dev-1\n"])
def test_an_invalid_id_is_refused_before_anything_is_written(authority: Path, holder: str) -> None:
    before = sorted(authority.rglob("*"))
    with pytest.raises(ConfigError, match="expected"):
        ca.issue(authority, holder, DEVICE, now=NOW)
    assert sorted(authority.rglob("*")) == before


def test_a_role_has_no_other_id_than_its_own(authority: Path) -> None:
    with pytest.raises(RefusedError, match="expected 'aggregator'"):
        ca.issue(authority, "aggregator-2", AGGREGATOR, now=NOW)


@pytest.mark.parametrize("host", ["", "a b", "a/b", "ü", "x" * 254])
def test_an_invalid_host_is_refused(authority: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="host: found"):
        ca.issue(authority, "broker", BROKER, now=NOW, hosts=[host])
    assert ca.list_issued(authority) == ()


def test_only_the_broker_has_hosts(authority: Path) -> None:
    with pytest.raises(ConfigError, match="host names"):
        ca.issue(authority, "dev-1", DEVICE, now=NOW, hosts=["localhost"])


def test_init_does_not_touch_what_is_there(authority: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in authority.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="found something there"):
        ca.init(authority, "lab", now=NOW)
    assert {p: p.read_bytes() for p in authority.rglob("*") if p.is_file()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="found something there"):
        ca.init(tmp_path / "file", "lab", now=NOW)
    with pytest.raises(ConfigError, match="site"):
        ca.init(tmp_path / "new", "La/b", now=NOW)
    assert not (tmp_path / "new").exists()


def test_an_empty_directory_becomes_an_authority(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o755)
    assert ca.init(tmp_path / "ca", "lab", now=NOW).name == "root.crt"
    assert mode(tmp_path / "ca") == 0o700


@pytest.mark.parametrize("act", [lambda d: ca.issue(d, "dev-1", DEVICE, now=NOW), ca.list_issued, ca.site_of])
def test_what_is_no_authority_is_told(tmp_path: Path, act: object) -> None:
    assert callable(act)
    with pytest.raises(ConfigError, match=r"found no directory, expected a certificate authority; make one with"):
        act(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"found a directory without index\.json"):
        act(tmp_path)


def test_an_authority_that_others_can_open_is_refused(authority: Path) -> None:
    authority.chmod(0o750)
    with pytest.raises(ConfigError, match="found mode 0750, expected 0700"):
        ca.issue(authority, "dev-1", DEVICE, now=NOW)
    authority.chmod(0o700)
    (authority / "online" / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="found mode 0640, expected 0600"):
        ca.issue(authority, "dev-1", DEVICE, now=NOW)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.json", b"{", "not the index"),
        ("index.json", b'{"version": 5, "site": "lab", "issued": []}', "found version 5, expected 4"),
        ("index.json", b'{"version": 1, "site": "L/", "issued": []}', "not the index"),
        ("index.json", b'{"version": 1, "site": "lab", "issued": [{}]}', "not the index"),
        ("online/ca.key", b"nonsense", "not the authority's"),
        ("online/ca.crt", b"nonsense", "not the authority's"),
    ],
)
def test_a_damaged_authority_is_told(authority: Path, name: str, content: bytes, message: str) -> None:
    (authority / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        ca.issue(authority, "dev-1", DEVICE, now=NOW)


def test_another_authority_s_key_is_noticed(authority: Path, tmp_path: Path) -> None:
    ca.init(tmp_path / "other", "lab", now=NOW)
    (authority / "online" / "ca.key").write_bytes((tmp_path / "other" / "online" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"not that of ca\.crt"):
        ca.issue(authority, "dev-1", DEVICE, now=NOW)


def test_an_authority_that_ran_out_issues_nothing(authority: Path) -> None:
    with pytest.raises(ConfigError, match="ended on"):
        ca.issue(authority, "dev-1", DEVICE, now=NOW + 400 * DAY_S)


def test_a_full_disk_is_told_and_leaves_no_half_bundle(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            ca.issue(authority, "dev-1", DEVICE, now=NOW)
    assert not (authority / "bundles" / "dev-1").exists()
    assert ca.list_issued(authority) == ()
    load_node(ca.issue(authority, "dev-1", DEVICE, now=NOW), NOW)


@pytest.mark.parametrize("step", ["write_index", "swap"])
def test_a_crash_between_two_steps_leaves_an_authority_that_goes_on(
    authority: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ca.issue(authority, "dev-1", DEVICE, now=NOW)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ca, step, crash)
        with pytest.raises(KeyboardInterrupt):
            ca.issue(authority, "dev-2", DEVICE, now=NOW)
    assert json.loads((authority / "index.json").read_text())["version"] == 4
    assert load_node(authority / "bundles" / "dev-1", NOW).id == "dev-1"
    load_node(ca.issue(authority, "dev-2", DEVICE, now=NOW, replace=True), NOW)


def test_two_processes_that_issue_at_once_lose_no_line(authority: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vedette_broker import ca\n"
        "from vedette_core.crypto.certificates import CertificateRole as R\n"
        "for i in range(5): ca.issue(Path(sys.argv[1]), f'{sys.argv[2]}-{i}', R.DEVICE, now=float(sys.argv[3]))"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(authority), name, str(NOW)]) for name in ("a", "b")]
    assert [p.wait(60) for p in running] == [0, 0]
    assert len(ca.list_issued(authority)) == 10


# --- bundles as a node reads them


@pytest.fixture
def bundle(authority: Path) -> Path:
    return ca.issue(authority, "dev-1", DEVICE, now=NOW)


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key", "signing.crt", "signing.key"])
def test_a_bundle_without_a_file_is_told(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: not found"):
        load_node(bundle, NOW)


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "signing.crt", "signing.key"])
def test_a_bundle_with_a_damaged_file_is_told(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        load_node(bundle, NOW)


@pytest.mark.parametrize("name", ["tls.key", "signing.key"])
def test_a_key_that_others_can_read_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).chmod(0o644)
    with pytest.raises(ConfigError, match="found mode 0644, expected 0600"):
        load_node(bundle, NOW)


def test_a_bundle_ends(bundle: Path) -> None:
    load_node(bundle, NOW + 7 * DAY_S - 1)
    with pytest.raises(ConfigError, match="one that ended at"):
        load_node(bundle, NOW + 7 * DAY_S + 1)


def test_a_bundle_mixed_of_two_nodes_is_refused(authority: Path, bundle: Path) -> None:
    other = ca.issue(authority, "dev-2", DEVICE, now=NOW)
    for name in ("signing.crt", "signing.key"):
        (bundle / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ConfigError, match="'dev-1' and a signing certificate of 'dev-2'"):
        load_node(bundle, NOW)


def test_a_key_of_another_certificate_is_refused(authority: Path, bundle: Path) -> None:
    other = ca.issue(authority, "dev-2", DEVICE, now=NOW)
    (bundle / "tls.key").write_bytes((other / "tls.key").read_bytes())
    with pytest.raises(ConfigError, match="TLS refuses"):
        client_context(Bundle(bundle))
    (bundle / "signing.key").write_bytes((other / "signing.key").read_bytes())
    with pytest.raises(ConfigError, match=r"not that of signing\.crt"):
        load_node(bundle, NOW)


def test_a_device_issued_before_its_aggregator_says_what_to_do(bundle: Path) -> None:
    node = load_node(bundle, NOW)
    with pytest.raises(ConfigError, match="issue the aggregator's bundle first"):
        learn_aggregator(key_ring(node.bundle, node.site), node.bundle, NOW)


def test_another_node_s_certificate_is_not_the_aggregator_s(bundle: Path) -> None:
    node = load_node(bundle, NOW)
    (bundle / "aggregator.crt").write_bytes((bundle / "signing.crt").read_bytes())
    with pytest.raises(ConfigError, match="expected 'aggregator'"):
        learn_aggregator(key_ring(node.bundle, node.site), node.bundle, NOW)


def test_two_roots_are_not_one(bundle: Path, tmp_path: Path) -> None:
    ca.init(tmp_path / "other", "lab", now=NOW)
    more = (tmp_path / "other" / "root" / "root.crt").read_bytes()
    (bundle / "ca.crt").write_bytes((bundle / "ca.crt").read_bytes() + more)
    with pytest.raises(ConfigError, match="found 2 root certificates"):
        load_authorities(Bundle(bundle))


def test_a_huge_file_is_not_read(bundle: Path) -> None:
    (bundle / "tls.crt").write_bytes(b"x" * 100_000)
    with pytest.raises(ConfigError, match="more than"):
        load_node(bundle, NOW)


def test_a_bundle_whose_signing_key_is_damaged_is_not_renewed_and_told(authority: Path) -> None:
    bundle = ca.issue(authority, "aggregator", AGGREGATOR, now=NOW)
    key = bundle / "signing.key"
    key.write_text("no key\n")
    with pytest.raises(ConfigError, match="signing.key: found something that is no key"):
        ca.renew(authority, "aggregator", now=NOW + 1)
