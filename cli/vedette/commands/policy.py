"""`vedette policy`: what a gateway does about its alerts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vedette_device.policy_protection import Protection
    from vedette_device.policy_rules import Rule
    from vedette_schemas.alert import Alert

app = typer.Typer(help="What a gateway does about its alerts.", no_args_is_help=True)
audit = typer.Typer(help="The record of what was done.", no_args_is_help=True)
app.add_typer(audit, name="audit")

Config = Annotated[Path, typer.Option("--config", "-c", help="The device's TOML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command()
def check(file: Annotated[Path, typer.Argument(help="Rules file, see policy.example.toml.")]) -> None:
    """Read a rules file as a node would; say what is wrong with it."""
    from vedette_device.enforcement import read_rules
    from vedette_device.policy_rules import ExecRule
    from vedette_device.program_run import check_program

    policy = read_rules(file)
    for rule in policy.rule:
        if isinstance(rule, ExecRule):
            check_program(Path(rule.command[0]))
    typer.echo(f"{file}: ok, {len(policy.rule)} rules")


@app.command("test")
def try_out(
    file: Annotated[Path, typer.Argument(help="Rules file.")],
    alert: Annotated[
        Path, typer.Option("--alert", "-a", help="An alert, JSON, as `vedette alerts tail --json` has it.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The device's TOML file: who is protected is looked at, too.")
    ] = None,
) -> None:
    """Say what every rule would do about an alert, if nothing had been done before; does nothing."""
    from vedette_device.enforcement import read_rules
    from vedette_schemas import alert as alerts
    from vedette_schemas.errors import ConfigError

    policy = read_rules(file)
    try:
        found = alerts.decode(alert.read_bytes().strip())
    except OSError as fault:
        raise ConfigError(f"{alert}: cannot be read ({fault.strerror}), expected an alert") from fault
    protection = None if config is None else _protection(config)
    for rule in policy.rule:
        words = _would(rule, found, protection) if rule.matches(found) else "does not match"
        typer.echo(f"{rule.name:30} {rule.action:10} {words}")


@app.command()
def status(config: Config, as_json: AsJson = False) -> None:
    """What is in force on a device, and where its audit stands; the node may be running."""
    import json

    from vedette_core.runtime.config import load
    from vedette_device import policy_operator
    from vedette_device.settings import DeviceSettings

    found = policy_operator.status(load(DeviceSettings, config))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    mode = "off" if not found["enabled"] else "dry run" if found["dry_run"] else "enforcing"
    typer.echo(f"policy: {mode}")
    for m in found["measures"]:
        rate = f" {m['kbytes_per_s']} kB/s" if "kbytes_per_s" in m else ""
        dry = "" if m["mode"] == "live" else " (dry run)"
        typer.echo(
            f"{m['entity']:40} {m['measure']}{rate} until {m['until']}{dry}  rule {m['rule']}  alert {m['alert']}"
        )
    if not found["measures"]:
        typer.echo("nothing is in force")
    chain = found["audit"]
    typer.echo(f"audit: {chain['fault']}" if "fault" in chain else f"audit: line {chain['last']} {chain['head']}")


@app.command()
def release(
    config: Config,
    entity: Annotated[str, typer.Argument(help="The address, as in `vedette policy status`.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All that is in force.")] = False,
) -> None:
    """End a quarantine or throttle now; the node may be running, or not."""
    import asyncio

    from vedette_core.runtime.config import load
    from vedette_device import policy_operator
    from vedette_device.settings import DeviceSettings

    if bool(entity) == everything:
        raise typer.BadParameter("expected an address, or --all")
    ended = asyncio.run(policy_operator.release(load(DeviceSettings, config), entity))
    for line in ended:
        typer.echo(f"ended: {line}")
    if not ended:
        typer.echo(f"{entity or 'everything'}: released by the running node")


@audit.command()
def verify(files: Annotated[list[Path], typer.Argument(help="Audit files, oldest first.")]) -> None:
    """Check that no line of the audit was changed, removed or inserted."""
    from vedette_device.audit_log import BEGIN, verify_audit

    chain = verify_audit(files)
    if not chain.lines:
        typer.echo("ok: no line yet")
        return
    start = "the beginning" if chain.before == BEGIN else f"a line with the digest {chain.before}"
    typer.echo(f"ok: {chain.lines} lines, {chain.first} to {chain.last}, from {start}; newest digest {chain.head}")


def _protection(config: Path) -> Protection:
    from vedette_core.runtime.config import load
    from vedette_device.protection_lookup import ProtectionLookup
    from vedette_device.settings import DeviceSettings

    return ProtectionLookup(load(DeviceSettings, config)).learn()


def _would(rule: Rule, alert: Alert, protection: Protection | None) -> str:
    from vedette_device.policy_rules import ExecRule, LogRule, PublishRule, WebhookRule
    from vedette_schemas.errors import RefusedError

    match rule:
        case LogRule():
            return f"log, level {rule.level}"
        case PublishRule():
            return f"publish to {rule.topic}"
        case WebhookRule():
            return f"POST {rule.url}"
        case ExecRule():
            return f"run {' '.join(rule.command)}"
    try:
        if protection is not None:
            protection.check(alert.entity)
    except RefusedError as refusal:
        return f"refused: {refusal}"
    return f"{rule.action} {alert.entity} for {rule.seconds:g} s" + ("" if protection else " unless it is protected")
