"""What this device has spent on learning, on disk, and whether its operator lets it take part in one more round."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vedette_core.runtime.storage import StateStore
from vedette_device.participation_budget import ParticipationBudget, ParticipationLimits, estimate_cost
from vedette_schemas.errors import TransientError

KEY: Final = "participation/budget"
POWER_SUPPLIES: Final = Path("/sys/class/power_supply")


class BudgetBook:
    """The budget of one device, for all its tasks.

    Args:
        store: where it is kept.
        limits: the operator's.
        core_watts: of one busy core above idle, for the estimate of energy.
        power_supplies: where the platform tells of batteries.

    Raises:
        ConfigError: what is stored cannot be read.
    """

    def __init__(
        self, store: StateStore, limits: ParticipationLimits, core_watts: float, power_supplies: Path = POWER_SUPPLIES
    ) -> None:
        self._store, self._core_watts, self._power_supplies = store, core_watts, power_supplies
        stored = store.get(KEY)
        self._budget = ParticipationBudget(limits) if stored is None else ParticipationBudget.from_bytes(stored, limits)

    def refusal(self, now: float, task: str, round_number: int) -> str:
        """Why the device does not join a round now; empty if it does."""
        battery, charging = read_battery(self._power_supplies)
        return self._budget.may_join(now, task, round_number, battery=battery, charging=charging) or ""

    def record(self, now: float, task: str, round_number: int, cpu_s: float) -> None:
        """A training cost so much; a full disk forgets it at the next start, and no round waits for that."""
        self._budget = self._budget.record(now, task, round_number, estimate_cost(cpu_s, self._core_watts))
        try:
            self._store.put(KEY, self._budget.to_bytes())
        except TransientError:
            return


def read_battery(power_supplies: Path) -> tuple[float | None, bool]:
    """Charge 0…1 of the emptiest battery that the platform tells of, or None, and whether external power is there.

    Batteries of peripherals (a wireless mouse) do not count.

    Source: the Linux kernel's ABI documentation, sysfs-class-power (``type``, ``scope``, ``capacity``, ``status``,
    ``online``: 1 and 2 are both external power).
    """
    charges, external = list[float](), False
    for supply in sorted(power_supplies.glob("*")) if power_supplies.is_dir() else []:
        kind = _read(supply / "type")
        if _read(supply / "scope") == "Device":
            continue
        if kind == "Battery" and _read(supply / "capacity").isdigit():
            charges.append(int(_read(supply / "capacity")) / 100)
            external = external or _read(supply / "status") in ("Charging", "Full")
        elif kind in ("Mains", "USB"):
            external = external or _read(supply / "online") in ("1", "2")
    return (min(charges), external) if charges else (None, external)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
