"""`vedette attest`: what devices must show of their software, and how they show it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="What devices must show of their software, and how they show it.", no_args_is_help=True)
enrol = typer.Typer(help="Bind a device's TPM, or the root of its boot chain, to its id.", no_args_is_help=True)
app.add_typer(enrol, name="enrol")

AggregatorConfig = Annotated[Path, typer.Option("--config", "-c", help="The aggregator's TOML file.")]
DeviceConfig = Annotated[Path, typer.Option("--config", "-c", help="The device's TOML file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@app.command()
def key(
    path: Annotated[Path, typer.Argument(help="New file of the private key; FILE.pub gets the public one.")],
) -> None:
    """Make a key: for signing policies (keep it offline), or for a verifier."""
    from vedette_aggregator.attestation_keys import make_key

    public = make_key(path)
    typer.echo(f"{path}: private key, 0600; {public}: public key")


@app.command()
def reference(
    out: Out,
    site: Annotated[str, typer.Option("--site", "-s", help="The site's id.")],
    signing_key: Annotated[Path, typer.Option("--key", "-k", help="Private key of whoever signs policies.")],
    verifier: Annotated[list[Path], typer.Option("--verifier", help="Public key of a verifier; may be repeated.")],
    earlier: Annotated[
        Path | None, typer.Option("--earlier", help="Policy before: counts up from it, and still takes its digests.")
    ] = None,
    nodes: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Evidence of a node that you trust, instead of what runs here; may be repeated."),
    ] = None,
    tier: Annotated[
        int | None,
        typer.Option(
            "--tier", min=0, max=2, help="Least tier of a device that contributes; by default as before, or 0."
        ),
    ] = None,
    tier_unmask: Annotated[
        int | None,
        typer.Option(
            "--tier-unmask", min=0, max=2, help="Least tier of a committee helper; by default as before, or 0."
        ),
    ] = None,
    boot: Annotated[
        list[str] | None, typer.Option("--boot", help="A boot layer that is good: NAME=FILE; may be repeated.")
    ] = None,
    pcr: Annotated[
        list[str] | None, typer.Option("--pcr", help="A register's value that is good: INDEX=HEX; may be repeated.")
    ] = None,
    pcrs_of: Annotated[
        Path | None, typer.Option("--pcrs-of", help="TOML file of a device: its TPM's registers as they are now.")
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option("--deny", help="A digest that is bad wherever it stands, HEX; may be repeated.")
    ] = None,
    deny_version: Annotated[
        list[str] | None,
        typer.Option("--deny-version", help="COMPONENT=VERSION that is bad, whatever its digest; may be repeated."),
    ] = None,
    version_min: Annotated[
        list[str] | None, typer.Option("--version-min", help="COMPONENT=VERSION, oldest that is good; may be repeated.")
    ] = None,
    result_hours: Annotated[
        float, typer.Option("--result-hours", min=0.003, max=24, help="Hours that a result lives.")
    ] = 24.0,
    dry_run: DryRun = False,
) -> None:
    """Measure the software that runs here, or take what good nodes measured, and sign a policy that wants it."""
    from vedette.attestation_policy import PolicyWishes, write_policy

    wishes = PolicyWishes(
        site=site,
        verifiers=tuple(verifier),
        earlier=earlier,
        nodes=tuple(nodes or ()),
        tier_contribute=tier,
        tier_unmask=tier_unmask,
        boot=tuple(boot or ()),
        pcr=tuple(pcr or ()),
        pcrs_of=pcrs_of,
        deny=tuple(deny or ()),
        version_min=tuple(version_min or ()),
        deny_version=tuple(deny_version or ()),
        result_s=result_hours * 3600,
    )
    policy = write_policy(wishes, signing_key, None if dry_run else out)
    what = "would hold" if dry_run else "holds"
    typer.echo(f"{out}: {what} policy {policy.version} of {site}: {len(policy.references)} components")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A policy, evidence, a passport, a request, or a statement.")],
) -> None:
    """Print what is in a file of attestation, as JSON; nothing of it is verified."""
    import json

    from vedette.attestation_policy import described

    typer.echo(json.dumps(described(file), indent=2))


@app.command()
def evidence(
    config: DeviceConfig,
    out: Out,
    nonce: Annotated[str, typer.Option("--nonce", help="64 hexadecimal digits; a challenge's.")] = "00" * 32,
) -> None:
    """Measure this device and write its evidence: what it would answer to a challenge. Counts no start."""
    from vedette.attestation_policy import hexadecimal
    from vedette_core.runtime.config import load
    from vedette_core.runtime.durable import write_durable
    from vedette_device.attestation_files import make_evidence
    from vedette_device.settings import DeviceSettings

    write_durable(out, make_evidence(load(DeviceSettings, config), hexadecimal(nonce, 32)), 0o644)
    typer.echo(f"{out}: evidence; check it with `vedette attest verify`")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Evidence.")],
    config: AggregatorConfig,
    nonce: Annotated[str, typer.Option("--nonce", help="The challenge's; by default the one in the claims.")] = "",
    as_json: AsJson = False,
) -> None:
    """Appraise evidence as the aggregator's verifier would; the exit status is 7 if it is refused."""
    import json
    import time

    from vedette.attestation_policy import hexadecimal
    from vedette.exit_codes import ExitCode
    from vedette_aggregator.attestation_files import appraise_file
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load
    from vedette_schemas.errors import RefusedError

    wanted = hexadecimal(nonce, 32) if nonce else None
    try:
        found = appraise_file(load(AggregatorSettings, config), file, wanted, time.time())
    except RefusedError as fault:
        said: dict[str, Any] = {"verdict": "refused", "rule": fault.rule, "detail": str(fault)}
        typer.echo(json.dumps(said, indent=2) if as_json else f"refused: {fault}")
        raise typer.Exit(ExitCode.CHECK_FAILED) from fault
    typer.echo(
        json.dumps(found, indent=2)
        if as_json
        else f"holds: {found['device']}, tier {found['tier']}, boot {found['bootcount']}, policy {found['policy']}"
    )


@app.command()
def boot(
    secret: Annotated[Path, typer.Option("--secret", help="File with the device's 32 secret bytes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for chain and key, in memory best.")],
    measure: Annotated[list[str], typer.Option("--measure", help="A layer, in order: NAME=FILE; may be repeated.")],
) -> None:
    """Be the first layer of a boot chain: measure the others, and leave their last key for the node.

    To be run early, by a stage after which nobody can read the secret any more: the chain is worth no more than that.
    """
    from vedette.attestation_policy import named_digests
    from vedette_core.runtime.identity import read_secret
    from vedette_device.boot_keys import write_boot

    root = write_boot(read_secret(secret), named_digests(measure), out)
    typer.echo(f"{out}: boot chain of {len(measure)} layers, root {root.hex()}")


@enrol.command("request")
def enrol_request(config: DeviceConfig, out: Out) -> None:
    """On the device: make (tier 2) or read (tier 1) its attesting keys; write a request to carry to the verifier."""
    from vedette_core.runtime.config import load
    from vedette_core.runtime.durable import write_durable
    from vedette_device.attestation_files import make_request
    from vedette_device.settings import DeviceSettings

    request, name = make_request(load(DeviceSettings, config))
    write_durable(out, request, 0o644)
    typer.echo(f"{out}: request; {name}")


@enrol.command("challenge")
def enrol_challenge(
    request: Annotated[Path, typer.Argument(help="The device's request.")],
    config: AggregatorConfig,
    ek: Annotated[str, typer.Option("--ek", help="Fingerprint of the endorsement key, as the device showed it.")],
    out: Out,
) -> None:
    """At the verifier: wrap a secret that only this TPM with this attestation key can open."""
    import time

    from vedette_aggregator.attestation_files import begin_enrolment
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load
    from vedette_core.runtime.durable import write_durable

    device, credential = begin_enrolment(load(AggregatorSettings, config), request, ek, time.time())
    write_durable(out, credential)
    typer.echo(f"{out}: credential for {device}; open it there with `vedette attest enrol activate`")


@enrol.command("activate")
def enrol_activate(
    credential: Annotated[Path, typer.Argument(help="What the verifier wrapped.")], config: DeviceConfig, out: Out
) -> None:
    """On the device: let its TPM open the credential; what is in it goes back to the verifier."""
    from vedette_core.runtime.config import load
    from vedette_core.runtime.durable import write_durable
    from vedette_core.runtime.identity import read_file
    from vedette_device.attestation_files import open_credential
    from vedette_device.settings import DeviceSettings

    write_durable(out, open_credential(load(DeviceSettings, config), read_file(credential)))
    typer.echo(f"{out}: opened; carry it to the verifier for `vedette attest enrol admit`")


@enrol.command("admit")
def enrol_admit(
    file: Annotated[Path, typer.Argument(help="Tier 2: the opened secret. Tier 1: the device's request.")],
    config: AggregatorConfig,
    device: Annotated[str, typer.Option("--device", "-d", help="Tier 2: whose secret it is.")] = "",
    root: Annotated[str, typer.Option("--root", help="Tier 1: the boot chain's root, as the device showed it.")] = "",
) -> None:
    """At the verifier: believe the device's attesting key from now on."""
    import time

    from vedette_aggregator.attestation_files import finish_enrolment
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    if bool(device) == bool(root):
        raise typer.BadParameter("expected --device with an opened secret, or --root with a request")
    who = finish_enrolment(load(AggregatorSettings, config), file, device, root, time.time())
    typer.echo(f"{who}: enrolled")


@enrol.command("list")
def enrol_list(config: AggregatorConfig, as_json: AsJson = False) -> None:
    """Devices whose attesting keys are known."""
    import json
    from datetime import UTC, datetime

    from vedette_aggregator.enrolments import open_enrolments
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_enrolments(load(AggregatorSettings, config)) as known:
        found = known.all()
    if as_json:
        keys = ("device", "tier", "activated", "since_s")
        typer.echo(json.dumps([{k: getattr(e, k) for k in keys} for e in found], indent=2))
        return
    for e in found:
        since = datetime.fromtimestamp(e.since_s, UTC)
        state = "activated" if e.activated else "not activated"
        typer.echo(f"{e.device:30} tier {e.tier}  {state:14} since {since:%Y-%m-%d %H:%M} UTC")
    if not found:
        typer.echo("nobody is enrolled")


@enrol.command("forget")
def enrol_forget(
    device: Annotated[str, typer.Argument(help="Id of the device.")], config: AggregatorConfig, dry_run: DryRun = False
) -> None:
    """Forget a device's keys and boot counts, after a repair; a running aggregator is to be restarted then."""
    from vedette_aggregator.enrolments import open_enrolments
    from vedette_aggregator.settings import AggregatorSettings
    from vedette_core.runtime.config import load

    with open_enrolments(load(AggregatorSettings, config)) as known:
        if not dry_run:
            known.forget(device)
    typer.echo(f"{device}: {'would be ' if dry_run else ''}forgotten")
