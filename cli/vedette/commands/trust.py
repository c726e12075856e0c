"""`vedette trust`: who may sign what, and the ceremony in which people far from each other sign a root together."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vedette_aggregator.registry import Registry
    from vedette_aggregator.registry_draft import OfflineKeys
    from vedette_aggregator.registry_proposal import Proposal
    from vedette_aggregator.trust_watch import BeaconUse

app = typer.Typer(help="Who may sign releases: roles and keys, the root ceremony, renewal.", no_args_is_help=True)
key_app = typer.Typer(help="Keys that people keep.", no_args_is_help=True)
root_app = typer.Typer(help="The root ceremony: propose, show, sign, publish.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.add_typer(root_app, name="root")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="The aggregator's TOML file; it may be running.")]
TrustDir = Annotated[Path | None, typer.Option("--trust-dir", help="The release repository, instead of --config.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File whose first line is the passphrase; mode 600.")
]
Epochs = Annotated[
    int | None, typer.Option("--beacon-epochs", help="With --rotate beacon: a longer chain, up to 65536 epochs.")
]
Passphrase = Annotated[bool, typer.Option("--passphrase", help="Ask for the passphrase.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the proposal goes.")]
RootKeys = Annotated[
    list[Path] | None, typer.Option("--root-key", help="Public key (.pub) of somebody who may sign the root; repeat.")
]
TargetsKeys = Annotated[
    list[Path] | None,
    typer.Option("--targets-key", help="Public key that may sign which release keys count; repeat."),
]


@key_app.command("new")
def new_key(
    out: Annotated[Path, typer.Argument(help="File for the private key; the public one goes to OUT.pub.")],
    passphrase_file: PassphraseFile = None,
    passphrase: Passphrase = False,
) -> None:
    """Make a key pair on the machine of the person who will keep it; only OUT.pub ever leaves it."""
    from vedette_aggregator.ceremony_keys import PUBLIC_ENDING, make_key

    secret = _passphrase(passphrase_file, ask=passphrase, twice=True)
    key = make_key(out, secret)
    typer.echo(f"{out}: private key{'' if secret else ', NOT encrypted'}; keep it away from networks")
    typer.echo(f"{out}{PUBLIC_ENDING}: public key {key.keyid}")


@key_app.command("show")
def show_key(file: Annotated[Path, typer.Argument(help="A .pub file.")]) -> None:
    """Print a public key's id, to compare it with its owner by another way."""
    from vedette_aggregator.ceremony_keys import read_public

    typer.echo(read_public(file).keyid)


@app.command()
def show(config: Config = None, trust_dir: TrustDir = None, as_json: Json = False) -> None:
    """Print every role with its keys and the days until it expires, and how much of the beacon's chain is left."""
    registry, now = _registry(config, trust_dir), time.time()
    rows: list[dict[str, Any]] = [
        {
            "role": fact.role,
            "version": fact.version,
            "threshold": fact.threshold,
            "keys": list(fact.keys),
            "days_left": round(fact.days_left(now), 1),
            "signed_by": fact.signed_by,
        }
        for fact in registry.roles()
    ]
    length, uses = _beacon(registry, config)
    if as_json:
        beacon = {"epochs": length, "left": {use.task: use.left for use in uses}}
        typer.echo(json.dumps({"site": registry.site, "roles": rows, "beacon": beacon}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("role", "version", "signatures", "keys", "days left", "signed by"):
        table.add_column(column)
    for row in rows:
        keys = ", ".join(key[:12] + "…" for key in row["keys"])
        needed = f"{row['threshold']} of {len(row['keys'])}"
        table.add_row(row["role"], str(row["version"]), needed, keys, str(row["days_left"]), row["signed_by"])
    Console().print(table)
    left = ", ".join(f"{use.left} left for {use.task}" for use in uses)
    typer.echo(f"beacon: {'no chain' if length is None else f'{length} epochs'}{left and '; '}{left}")


@app.command()
def renew(
    offline_keys: Annotated[
        Path, typer.Option("--offline-keys", help="Folder with the keys that `vedette init` made (root-keys).")
    ],
    config: Config = None,
    trust_dir: TrustDir = None,
    rotate: Annotated[
        list[str] | None, typer.Option("--rotate", help="timestamp, snapshot, release or beacon; repeat.")
    ] = None,
    beacon_epochs: Epochs = None,
) -> None:
    """Renew root and targets for a year where one person has all offline keys; after a theft, rotate all four."""
    registry = _registry(config, trust_dir)
    registry.renew(offline_keys, time.time(), rotate or (), beacon_epochs=beacon_epochs)
    root = registry.roles()[0]
    replaced = f"; replaced: {', '.join(rotate)}" if rotate else ""
    typer.echo(f"root {root.version} holds for {root.days_left(time.time()):.0f} days{replaced}; devices follow")


@root_app.command("init")
def init(
    trust_dir: Annotated[Path, typer.Option("--trust-dir", help="New folder for the release repository.")],
    site: Annotated[str, typer.Option("--site", help="The site's id.")],
    task: Annotated[list[str], typer.Option("--task", "-t", help="A federated task; repeat.")],
    out: Out,
    root_key: RootKeys = None,
    threshold: Annotated[int, typer.Option("--threshold", min=1, help="How many root keys must sign.")] = 1,
    targets_key: TargetsKeys = None,
    targets_threshold: Annotated[int, typer.Option("--targets-threshold", min=1)] = 1,
    validator_key: Annotated[
        Path | None, typer.Option("--validator-key", help="Public key that must sign each release, too.")
    ] = None,
) -> None:
    """Make online keys and a root proposal on the aggregator; nothing counts before enough holders signed it."""
    from vedette_aggregator.ceremony_keys import read_public
    from vedette_aggregator.registry_draft import OfflineKeys
    from vedette_aggregator.registry_proposal import propose_first

    keys = OfflineKeys(
        tuple(map(read_public, root_key or ())),
        threshold,
        tuple(map(read_public, targets_key or ())),
        targets_threshold,
        None if validator_key is None else read_public(validator_key),
    )
    keys.check()
    proposal = propose_first(trust_dir, site, task, keys, time.time())
    proposal.write(out)
    _say_proposal(out, proposal)


@root_app.command("rotate")
def rotate(
    out: Out,
    config: Config = None,
    trust_dir: TrustDir = None,
    add_root_key: Annotated[list[Path] | None, typer.Option("--add-root-key", help="Public key; repeat.")] = None,
    remove_root_key: Annotated[
        list[str] | None, typer.Option("--remove-root-key", help="Key id, or how it begins; repeat.")
    ] = None,
    threshold: Annotated[int | None, typer.Option("--threshold", min=1, help="How many root keys must sign.")] = None,
    targets_key: TargetsKeys = None,
    targets_threshold: Annotated[int | None, typer.Option("--targets-threshold", min=1)] = None,
    validator_key: Annotated[
        Path | None, typer.Option("--validator-key", help="Public key that must sign each release, too.")
    ] = None,
    no_validator: Annotated[bool, typer.Option("--no-validator", help="Releases need the release key only.")] = False,
    rotate_online: Annotated[
        list[str] | None, typer.Option("--rotate", help="timestamp, snapshot, release or beacon; repeat.")
    ] = None,
    beacon_epochs: Epochs = None,
) -> None:
    """Propose the next root: fresh dates, and whatever keys or thresholds change. Old and new keys must sign it."""
    from vedette_aggregator.ceremony_keys import read_public
    from vedette_aggregator.registry_draft import OfflineKeys
    from vedette_aggregator.registry_proposal import propose_next

    registry = _registry(config, trust_dir)
    today = registry.offline_keys()
    validator = today.validator if validator_key is None else read_public(validator_key)
    keys = OfflineKeys(
        _changed(today, tuple(map(read_public, add_root_key or ())), remove_root_key or []),
        today.root_threshold if threshold is None else threshold,
        tuple(map(read_public, targets_key)) if targets_key else today.targets,
        today.targets_threshold if targets_threshold is None else targets_threshold,
        None if no_validator else validator,
    )
    proposal = propose_next(_directory(config, trust_dir), keys, time.time(), rotate_online or (), beacon_epochs)
    proposal.write(out)
    _say_proposal(out, proposal)


@root_app.command("show")
def show_proposal(file: Annotated[Path, typer.Argument(help="The proposal.")], as_json: Json = False) -> None:
    """Print what a proposal changes, its fingerprint, and who signed it; look before you sign."""
    from vedette_aggregator.registry_proposal import Proposal

    facts = _facts(Proposal.read(file))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    names = ("site", "fingerprint", "root_version", "targets_version", "expires", "tasks", "beacon", "beacon_epochs")
    for name in names:
        typer.echo(f"{name.replace('_', ' ')}: {facts[name]}")
    for name, keys in facts["keys"].items():
        typer.echo(f"{name}: {', '.join(keys)}")
    for name, releases in facts["releases"].items():
        typer.echo(f"releases of {name} to sign: {releases}")
    for name in ("added", "removed"):
        typer.echo(f"{name}: {', '.join(facts[name]) or 'none'}")
    for each in facts["signatures"]:
        missing = f"; may sign: {', '.join(k[:12] + '…' for k in each['missing'])}" if each["missing"] else ""
        typer.echo(f"signed {each['what']}: {len(each['signed'])} of {each['threshold']} needed{missing}")


@root_app.command("sign")
def sign(
    file: Annotated[Path, typer.Argument(help="The proposal; the signature is put into it.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="Your private key.")],
    passphrase_file: PassphraseFile = None,
    passphrase: Passphrase = False,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="Sign only if the proposal has it; from another way.")
    ] = None,
) -> None:
    """Sign a proposal with your key, on your own machine, after you looked at it."""
    from vedette_aggregator.ceremony_keys import read_signer
    from vedette_aggregator.registry_proposal import Proposal
    from vedette_schemas.errors import RefusedError

    proposal = Proposal.read(file)
    if fingerprint is not None and proposal.fingerprint != fingerprint.lower():
        raise RefusedError(
            f"{file}: found fingerprint {proposal.fingerprint}, expected {fingerprint}; it is another proposal, or it "
            "was changed on its way",
            rule="fingerprint",
        )
    signed = proposal.sign(read_signer(key, _passphrase(passphrase_file, ask=passphrase)))
    proposal.write(file)
    typer.echo(f"{file}: signed {', '.join(signed)}; fingerprint {proposal.fingerprint}")


@root_app.command("publish")
def publish(
    files: Annotated[list[Path], typer.Argument(help="The signed proposal; several copies of it are merged.")],
    config: Config = None,
    trust_dir: TrustDir = None,
) -> None:
    """Make a signed proposal count: thresholds of the old and the new root are checked, then devices follow."""
    from vedette_aggregator.registry import Registry
    from vedette_aggregator.registry_proposal import Proposal
    from vedette_aggregator.registry_proposal import publish as publish_first

    directory, now = _directory(config, trust_dir), time.time()
    proposal, *copies = [Proposal.read(file) for file in files]
    for other in copies:
        proposal.merge(other)
    if proposal.before is None:
        publish_first(directory, proposal, now)
        typer.echo(
            f"{directory / 'metadata' / '1.root.json'}: give it to every device as its root.json, by a way you trust"
        )
    else:
        Registry(directory).adopt(proposal, now)
    typer.echo(f"root {proposal.root.signed.version} counts from now on; a running aggregator publishes it by itself")


def _registry(config: Path | None, trust_dir: Path | None) -> Registry:
    from vedette_aggregator.registry import Registry

    return Registry(_directory(config, trust_dir))


def _beacon(registry: Registry, config: Path | None) -> tuple[int | None, tuple[BeaconUse, ...]]:
    """Length of the beacon's chain, and how far each task has used it: nothing before the aggregator has run."""
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_aggregator.state_file import state_path
    from vedette_aggregator.trust_watch import beacon_uses_of
    from vedette_core.runtime.config import load
    from vedette_schemas.errors import ConfigError

    try:
        length = registry.beacon_anchor.length
    except ConfigError:
        return None, ()
    if config is None:
        return length, ()
    settings = load(AggregatorSettings, config)
    return length, beacon_uses_of(settings, length) if state_path(settings).exists() else ()


def _directory(config: Path | None, trust_dir: Path | None) -> Path:
    if (config is None) == (trust_dir is None):
        raise typer.BadParameter("found neither or both of --config and --trust-dir; expected one of them")
    if trust_dir is not None:
        return trust_dir
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    assert config is not None
    return load(AggregatorSettings, config).trust_dir


def _passphrase(file: Path | None, *, ask: bool, twice: bool = False) -> str | None:
    if file is not None and ask:
        raise typer.BadParameter("found --passphrase and --passphrase-file; expected one of them")
    if file is not None:
        from vedette_aggregator.ceremony_keys import read_passphrase

        return read_passphrase(file)
    return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=twice)) if ask else None


def _changed(today: OfflineKeys, added: tuple[Any, ...], removed: list[str]) -> tuple[Any, ...]:
    from vedette_schemas.errors import ConfigError

    keys = {key.keyid: key for key in (*today.root, *added)}
    for start in removed:
        found = [keyid for keyid in keys if keyid.startswith(start)]
        if len(found) != 1 or len(start) < 8:
            raise ConfigError(
                f"root key {start!r}: found {len(found)} keys, expected one; give at least 8 digits of its id"
            )
        del keys[found[0]]
    return tuple(keys.values())


def _facts(proposal: Proposal) -> dict[str, Any]:
    from vedette_aggregator.registry_draft import beacon_of, site_of

    root, targets = proposal.root.signed, proposal.targets.signed
    keys = {name: list(role.keyids) for name, role in root.roles.items()}
    roles = (targets.delegations and targets.delegations.roles) or {}
    keys |= {task: list(role.keyids) for task, role in roles.items()}
    before = set() if proposal.before is None else set(proposal.before.signed.roles["root"].keyids)
    after = set(root.roles["root"].keyids)
    return {
        "site": site_of(root),
        "fingerprint": proposal.fingerprint,
        "root_version": root.version,
        "targets_version": targets.version,
        "expires": root.expires.date().isoformat(),
        "tasks": sorted(roles),
        "beacon": beacon_of(root).anchor,
        "beacon_epochs": beacon_of(root).length,
        "keys": keys,
        "releases": {task: _releases(role.signed) for task, role in sorted(proposal.roles.items())},
        "added": sorted(after - before),
        "removed": sorted(before - after),
        "signatures": [
            {"what": s.what, "signed": list(s.signed), "missing": list(s.missing), "threshold": s.threshold}
            for s in proposal.signings()
        ],
    }


def _releases(role: Any) -> dict[str, Any]:
    from vedette_aggregator.release_listing import active_version, releases_of, revoked_of

    releases = releases_of(role)
    revoked = [each.version for each in revoked_of(role)]
    return {"listed": sorted(releases), "active": active_version(releases), "revoked": revoked}


def _say_proposal(out: Path, proposal: Proposal) -> None:
    holders = proposal.root.signed.roles["root"]
    typer.echo(f"{out}: root {proposal.root.signed.version}, {holders.threshold} of {len(holders.keyids)} keys sign it")
    typer.echo(f"fingerprint {proposal.fingerprint}")
    for signing in proposal.signings():
        if not signing.done:
            typer.echo(f"needs {signing.threshold - len(signing.signed)} more signatures of {signing.what}")
