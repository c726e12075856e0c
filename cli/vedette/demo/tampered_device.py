"""The scenario ``tampered-device``: one device runs altered software, and takes part in no round.

The alteration is one that an attacker would make: the node no longer waits for an attestation result before it checks
in. It measures itself truthfully all the same, as a gateway would whose measuring part was not touched: against one
that lies, tiers 1 and 2 are for.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from vedette.demo.recordings import load
from vedette.demo.stage import ScenarioOptions, StagePlan, names, staged
from vedette_core.runtime.software import PACKAGES
from vedette_schemas.errors import ConfigError

NAME: Final = "tampered-device"
DEVICES: Final = 12
TAMPERED: Final = "light-07"
ROUNDS: Final = 3
ALTERED_FILE: Final = "vedette_device/participant_messages.py"
ORIGINAL: Final = "return self.passport is not None and not self.passport()"
ALTERATION: Final = "return False"


def stage_plan(options: ScenarioOptions, packages: Path) -> StagePlan:
    """One group of all devices but the altered one."""
    return StagePlan(
        devices=names(DEVICES),
        task={
            "training": {"local_epochs": 2, "batch_size": 32, "learning_rate": 0.003, "examples_min": 32},
            "round": {
                "checkin_s": 2.0,
                "collect_s": 15.0,
                "unmask_s": 10.0,
                "interval_s": 0.5,
                "rounds_max": ROUNDS,
                "quorum": DEVICES - 1,
                "group_size": DEVICES,
                "groups": 1,
                "survivors_min": 8,
                "epoch_rounds": 1,
                "clip_norm": 3.0,
            },
        },
        rows={"data": options.data},
        attested=True,
        tampered=(TAMPERED,),
        packages=packages,
    )


def alter(folder: Path) -> Path:
    """Copy the installed packages, and alter one file of the copy.

    Returns:
        The folder, which goes in front of Python's search path.

    Raises:
        ConfigError: the packages are not where Python finds folders, or the file is another than expected.
    """
    for package in PACKAGES:
        spec = find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if len(places) != 1:
            raise ConfigError(f"{package}: found {len(places)} places of it, expected one folder to copy")
        shutil.copytree(places[0], folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / ALTERED_FILE
    source = file.read_text(encoding="utf-8")
    if source.count(ORIGINAL) != 1:
        raise ConfigError(f"{ALTERED_FILE}: found no line to alter, expected {ORIGINAL!r}")
    file.write_text(source.replace(ORIGINAL, ALTERATION), encoding="utf-8")
    return folder


async def run_tampered(options: ScenarioOptions) -> dict[str, Any]:
    """Run the scenario; returns its figures.

    Raises:
        ConfigError: recordings that cannot be used, or an installation that cannot be copied.
        TransientError: a process ended early, or the time was up.
    """
    started = time.monotonic()
    load(options.data)  # what is wrong with it shows before anything starts

    async with staged(options, lambda base: stage_plan(options, alter(base / "altered"))) as stage:

        def tell(number: int) -> None:
            options.on_line(f"round {number}: {stage.releases[number].participants} updates in its release")

        def refused() -> bool:
            found = refusals(stage.aggregator_log, TAMPERED)
            return bool(found["evidence"]) and bool(found["check_in"])

        stage.on_released = tell
        await stage.until("refusal", refused)
        options.on_line(f"{TAMPERED} runs altered software: {refusals(stage.aggregator_log, TAMPERED)['evidence'][0]}")
        await stage.until("rounds", lambda: stage.ended >= ROUNDS)
        diary, releases, completed = stage.diary, dict(stage.releases), stage.completed
        rules = refusals(stage.aggregator_log, TAMPERED)
    return {
        "scenario": NAME,
        "devices": DEVICES,
        "protection": "none" if options.plain else "masked",
        "tampered": TAMPERED,
        "altered_file": ALTERED_FILE,
        "tampered_is_refused": bool(rules["evidence"]) and bool(rules["check_in"]),
        "rule_of_its_evidence": rules["evidence"],
        "rule_of_its_check_in": rules["check_in"],
        "tampered_was_attested": TAMPERED in diary.attested,
        "tampered_in_rosters": sum(TAMPERED in diary.rostered(place) for place in diary.joined),
        "devices_attested": len(diary.attested),
        "rounds_wanted": ROUNDS,
        "rounds_completed": completed,
        "updates_in_release": [releases[number].participants for number in sorted(releases)],
        "seconds": round(time.monotonic() - started, 1),
    }


def refusals(log: str, device: str) -> dict[str, list[str]]:
    """The rules by which the aggregator refused a device's evidence and its check-ins, as its log names them."""
    evidence = re.findall(rf"attestation of {re.escape(device)}: ([a-z-]+): found", log)
    check_in = re.findall(rf"device/{re.escape(device)}/up/fl/\S+/checkin: ([a-z-]+): found", log)
    return {"evidence": sorted(set(evidence)), "check_in": sorted(set(check_in))}


def broken_tampered(figures: Mapping[str, Any]) -> list[str]:
    """What was promised and did not happen; empty if all is well."""
    broken = []
    if not figures["tampered_is_refused"]:
        broken.append(f"{figures['tampered']} was not refused, expected a rule for its evidence and for its check-in")
    if figures["rule_of_its_evidence"] != ["unknown-software"]:
        broken.append(f"its evidence was refused by {figures['rule_of_its_evidence']}, expected unknown-software")
    if figures["tampered_was_attested"] or figures["tampered_in_rosters"]:
        broken.append(f"{figures['tampered']} took part although its software is altered")
    others = figures["devices"] - 1
    if figures["devices_attested"] != others:
        broken.append(f"{figures['devices_attested']} devices were attested, expected the {others} others")
    if figures["rounds_completed"] < figures["rounds_wanted"]:
        broken.append(f"{figures['rounds_completed']} of {figures['rounds_wanted']} rounds completed")
    if any(updates > others for updates in figures["updates_in_release"]):
        broken.append(f"{max(figures['updates_in_release'])} updates in a release, expected {others} at most")
    return broken
