"""`vedette ca`: the site's certificate authority."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vedette_broker.ca_authority import Standing

app = typer.Typer(help="The site's certificate authority.", no_args_is_help=True)
intermediate_app = typer.Typer(
    help="The authority that issues: its end, and another one in its place.", no_args_is_help=True
)
app.add_typer(intermediate_app, name="intermediate")
Directory = Annotated[Path, typer.Option("--dir", "-d", help="Folder of the certificate authority.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


class RoleName(StrEnum):
    """Whom certificates are for."""

    DEVICE = "device"
    AGGREGATOR = "aggregator"
    ANALYTICS = "analytics"
    BROKER = "broker"
    COMMITTEE = "committee"
    AUTHORITY = "authority"


class ReasonName(StrEnum):
    """Why certificates are revoked."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    SUPERSEDED = "superseded"
    CESSATION = "cessation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


@app.command()
def init(
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id, [a-z0-9-]{1,60}.")],
    directory: Directory = Path("ca"),
) -> None:
    """Make a certificate authority: an offline root and an online intermediate."""
    from vedette_broker import ca

    root = ca.init(directory, site, now=time.time())
    typer.echo(f"{directory}: certificate authority of {site}; keep {root.parent} offline")


@app.command()
def issue(
    holder: Annotated[
        str, typer.Argument(help="Id of the node; aggregator, analytics and broker have their own name as id.")
    ],
    directory: Directory = Path("ca"),
    role: Annotated[RoleName, typer.Option("--role", "-r", help="What the node is.")] = RoleName.DEVICE,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Broker only: name or address that clients call it by.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that was issued before.")] = False,
) -> None:
    """Make a node's bundle: fresh keys and certificates that live seven days."""
    from vedette_broker import ca
    from vedette_core.crypto.certificates import CertificateRole

    bundle = ca.issue(
        directory, holder, CertificateRole(role.value), now=time.time(), hosts=tuple(host or ()), replace=replace
    )
    typer.echo(f"{bundle}: bundle of {holder}; move it to the node")


@app.command()
def token(
    directory: Directory = Path("ca"),
    role: Annotated[RoleName, typer.Option("--role", "-r", help="What the node will be.")] = RoleName.DEVICE,
    holder: Annotated[
        str, typer.Option("--id", help="Id that the node will get; without it the authority makes one.")
    ] = "",
    serial: Annotated[str, typer.Option("--serial", help="The only hardware serial number that may use it.")] = "",
    hours: Annotated[float, typer.Option("--hours", min=0.02, max=24, help="How long it is good for.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Invite a node: a one-time token, shown once and stored nowhere; carry it to the node, with the ticket beside."""
    from vedette_broker import ca_tokens
    from vedette_core.crypto.certificates import CertificateRole

    made = ca_tokens.make_token(
        directory,
        now=time.time(),
        role=CertificateRole(role.value),
        holder=holder,
        serial=serial,
        ttl_s=hours * 3600,
    )
    if as_json:
        facts = {
            "token": made.token.text,
            "id": made.token.id,
            "ticket": str(made.ticket),
            "not_after": _utc(made.not_after),
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(made.token.text)
    typer.echo(f"good once until {_utc(made.not_after)}; ticket (nothing secret): {made.ticket}", err=True)


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(help="Request that `vedette device enrol --request` wrote.")],
    reply: Annotated[Path, typer.Option("--reply", "-o", help="Where the answer goes; nothing in it is secret.")],
    directory: Directory = Path("ca"),
    allow_file: Annotated[Path | None, typer.Option("--allow-file", help="Ids and serials that may enrol.")] = None,
    allow_program: Annotated[Path | None, typer.Option("--allow-program", help="Asked whether it may enrol.")] = None,
) -> None:
    """Enrol a node by carrying files: the request proves its token and its keys, the answer holds certificates."""
    from vedette_broker import ca_enrolment
    from vedette_broker.allow_list import AllowList
    from vedette_core.runtime.identity import read_file
    from vedette_schemas import codec

    answer = ca_enrolment.enrol(
        directory, read_file(request), now=time.time(), allow=AllowList(allow_file, allow_program)
    )
    reply.write_bytes(codec.pack(answer))
    typer.echo(f"{reply}: certificates of {answer.holder}; carry it to the node")


@app.command()
def renew(
    holders: Annotated[
        list[str] | None, typer.Argument(help="Ids whose bundles lie in the authority's folder.")
    ] = None,
    directory: Directory = Path("ca"),
    due: Annotated[bool, typer.Option("--due", help="Every bundle here that is past half of its life.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="With --due: also those of nodes that renew themselves.")
    ] = False,
) -> None:
    """Renew bundles that lie here, in place: for the broker and the aggregator. Devices renew themselves."""
    from vedette_broker import ca
    from vedette_core.crypto.certificates import MANY
    from vedette_schemas.errors import ConfigError, RefusedError

    if every and not due:
        raise typer.BadParameter("found --all without --due; expected both, or ids")
    now, wanted = time.time(), list(holders or ())
    for line in ca.due(directory, now=now) if due else ():
        if line.id in wanted:
            continue
        if line.role in MANY and not every:
            typer.echo(
                f"{line.id}: skipped: a {line.role} renews itself; if it cannot, and runs from the bundle here: "
                f"`vedette ca renew {line.id}`, or --all"
            )
        else:
            wanted.append(line.id)
    faults: list[ConfigError | RefusedError] = []
    for holder in wanted:
        try:
            typer.echo(f"{ca.renew(directory, holder, now=now)}: renewed")
        except (ConfigError, RefusedError) as fault:  # the others shall not wait until somebody mends this one
            faults.append(fault)
    for other in faults[1:]:
        typer.echo(str(other), err=True)
    if faults:
        raise faults[0]
    if not wanted:
        typer.echo("nothing to renew")


@app.command()
def revoke(
    holder: Annotated[str, typer.Argument(help="Id of a node, or of a token.")],
    directory: Directory = Path("ca"),
    reason: Annotated[ReasonName, typer.Option("--reason", "-r", help="Why.")] = ReasonName.UNSPECIFIED,
) -> None:
    """Revoke every certificate of a node, and make a revocation list that says so."""
    from vedette_broker import ca_revocation
    from vedette_core.crypto.revocation import RevocationReason

    made = ca_revocation.revoke(directory, holder, RevocationReason(reason.value), now=time.time())
    typer.echo(f"{holder}: revoked in list {made.number}, {directory / ca_revocation.LIST_FILE}")


@app.command()
def crl(
    directory: Directory = Path("ca"),
    refresh: Annotated[bool, typer.Option("--refresh", help="Make a new list, with or without news.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the revocation list; make one if there is none, or if half of its life is over."""
    from vedette_broker import ca_revocation
    from vedette_broker.ca_store import read_index

    now = time.time()
    made = ca_revocation.refresh(directory, now=now) if refresh else ca_revocation.refresh_if_due(directory, now=now)
    revoked = read_index(directory).revoked
    entries = [
        {
            "id": revoked[f"{serial:x}"].id if f"{serial:x}" in revoked else "",
            "serial": f"{serial:x}",
            "revoked": _utc(entry.at),
            "reason": entry.reason.value,
        }
        for serial, entry in sorted(made.entries.items())
    ]
    if as_json:
        facts = {"number": made.number, "issued": _utc(made.issued_at), "next_update": _utc(made.next_update)}
        typer.echo(json.dumps({**facts, "entries": entries}, indent=2))
        return
    typer.echo(f"list {made.number} of {_utc(made.issued_at)}, the next one is due by {_utc(made.next_update)}")
    for row in entries:
        typer.echo(f"{row['id']:30} {row['serial']:40} {row['revoked']} {row['reason']}")


@app.command("list")
def list_issued(
    directory: Directory = Path("ca"),
    tokens: Annotated[bool, typer.Option("--tokens", help="Invitations instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every id that has certificates: valid, expired or revoked, and until when."""
    from dataclasses import asdict

    from vedette_broker import ca_authority, ca_revocation, ca_tokens
    from vedette_broker.ca_store import read_index

    now = time.time()
    if tokens:
        rows: list[dict[str, Any]] = [
            {k: v for k, v in asdict(t).items() if k not in ("digest", "key", "used_for")}
            for t in ca_tokens.list_tokens(directory, now=now)
        ]
    else:
        index = read_index(directory)
        rows = [
            {
                "id": line.id,
                "role": line.role,
                "status": ca_revocation.status_of(line, index, now),
                "serials": line.serials,
                "not_before": line.not_before,
                "not_after": line.not_after,
                "hosts": line.hosts,
                "hardware": line.serial,
            }
            for line in (index.issued[key] for key in sorted(index.issued))
        ]
    said = ca_authority.warning(ca_authority.ends_at(directory), now)
    if said:
        typer.echo(said, err=True)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        if tokens:
            state = f"used by {row['used_by']}" if row["used_by"] else f"for {row['holder'] or 'any id'}"
            typer.echo(f"{row['id']:30} {row['role']:12} {state:30} until {_utc(row['not_after'])}")
        else:
            typer.echo(f"{row['id']:30} {row['role']:12} {row['status']:8} until {_utc(row['not_after'])}")


@app.command()
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings, TOML.")] = Path("ca.toml"),
) -> None:
    """Answer requests for certificates over MQTT, and keep the revocation list published."""
    from vedette_broker import ca_service
    from vedette_broker.ca_settings import AuthoritySettings
    from vedette_core.runtime import logs
    from vedette_core.runtime.config import load

    settings = load(AuthoritySettings, config)
    logs.configure(settings.log.level, settings.log.format)
    ca_service.serve(settings)


Announce = Annotated[
    bool, typer.Option("--announce", help="Only make it known; the same command without it lets it issue.")
]


@intermediate_app.command("show")
def show_intermediate(directory: Directory = Path("ca"), as_json: AsJson = False) -> None:
    """Show the authorities in force: which one issues, and when each of them ends."""
    from dataclasses import asdict

    from vedette_broker import ca_authority

    found = ca_authority.standings(directory)
    if as_json:
        typer.echo(json.dumps([{**asdict(each), "state": each.state.value} for each in found], indent=2))
        return
    for each in found:
        _say(each)
    said = ca_authority.warning(found[0].not_after, time.time())
    if said:
        typer.echo(said, err=True)


@intermediate_app.command("renew")
def renew_intermediate(
    directory: Directory = Path("ca"),
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder with root.crt and root.key; else that of the authority.")
    ] = None,
    announce: Announce = False,
) -> None:
    """Replace the authority that issues, where the root's key is at hand. The same call goes on after a crash."""
    from vedette_broker import ca_authority

    _say(ca_authority.renew(directory, now=time.time(), announce=announce, root=root))


@intermediate_app.command("request")
def request_intermediate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the request goes; nothing in it is secret.")],
    directory: Directory = Path("ca"),
) -> None:
    """Ask for another authority's certificate: carry the request to the machine where the root's key is."""
    from vedette_broker import ca_authority
    from vedette_core.runtime.durable import write_durable

    asked = ca_authority.request(directory)
    write_durable(out, asked, 0o644)
    typer.echo(f"{out}: request for the key {ca_authority.fingerprint_in(asked)}")


@intermediate_app.command("sign")
def sign_intermediate(
    request: Annotated[Path, typer.Argument(help="What `vedette ca intermediate request` wrote.")],
    root: Annotated[Path, typer.Option("--root", help="Folder with root.crt and root.key.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the certificate goes; nothing in it is secret.")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="Sign only for this key; from another way than the request.")
    ] = "",
) -> None:
    """Sign a request with the root's key, on the machine where that is."""
    from vedette_broker import ca_authority
    from vedette_broker.ca_store import pem
    from vedette_core.runtime.durable import write_durable
    from vedette_core.runtime.identity import read_file

    asked = read_file(request)
    made = ca_authority.sign(root, asked, now=time.time(), fingerprint=fingerprint)
    write_durable(out, pem(made), 0o644)
    typer.echo(
        f"{out}: authority with the key {ca_authority.fingerprint_in(asked)}, until "
        f"{_utc(made.not_valid_after_utc.timestamp())}"
    )


@intermediate_app.command("install")
def install_intermediate(
    certificate: Annotated[Path, typer.Argument(help="What `vedette ca intermediate sign` wrote.")],
    directory: Directory = Path("ca"),
    announce: Announce = False,
) -> None:
    """Take the signed certificate, make it known, and issue from it. The same call goes on after a crash."""
    from vedette_broker import ca_authority
    from vedette_core.runtime.identity import read_file

    _say(ca_authority.install(directory, read_file(certificate), now=time.time(), announce=announce))


@intermediate_app.command("retire")
def retire_intermediate(directory: Directory = Path("ca")) -> None:
    """End the earlier authority at once, if its key was stolen: whoever has a certificate of it only is kept out."""
    from vedette_broker import ca_authority

    _say(ca_authority.retire(directory, now=time.time()))


def _say(authority: Standing) -> None:
    state = authority.state.value
    if authority.retires is not None:
        state += f", leaves until {_utc(authority.retires)}"
    typer.echo(f"{authority.serial:40} {state}, ends {_utc(authority.not_after)}, key {authority.fingerprint[:16]}")


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
