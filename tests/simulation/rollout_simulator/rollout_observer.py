"""Who sees everything, and knows what must never happen."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from fleet_simulator.violation import ViolationError

from vedette_aggregator.rollout_state import Phase, RolloutRecord
from vedette_core.crypto.cohorts import cohort
from vedette_device.update_events import InstalledModel
from vedette_schemas.rollout import RolloutPhase, RolloutState

if TYPE_CHECKING:
    from .rollout_site import Site


class Observer:
    """Checks what is said and what devices do.

    Attributes:
        states: everything that was ever signed, by sequence number.
        exposures: activations of a candidate that was not the active release.
        returns: activations of an older release than a confirmed one.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self.states: dict[int, RolloutState] = {}
        self.exposures: Counter[int] = Counter()
        self.returns = 0
        self._controls: dict[int, set[str]] = {}
        self._confirmed: dict[str, InstalledModel] = {}
        self._share: dict[int, int] = {}
        self._taken: dict[str, int] = {}
        self._most: dict[int, int] = {}
        self._began: dict[int, set[str]] = {}

    def said(self, state: RolloutState, record: RolloutRecord) -> None:
        """The aggregator says a state; the record is what is on its disk at that moment."""
        if record.said != state:
            raise ViolationError(f"state {state.seq} of rollout {state.rollout} was said before it was written down")
        before = self.states.setdefault(state.seq, state)
        if before != state:
            raise ViolationError(f"two states of number {state.seq}: {before} and {state}")
        if state.seq < max(self.states):
            raise ViolationError(f"state {state.seq} after {max(self.states)}")
        if self._share.get(state.rollout, 0) > state.share_ppm:
            raise ViolationError(f"rollout {state.rollout}: its share went down to {state.share_ppm} ppm")
        self._share[state.rollout] = state.share_ppm
        if state.state is not RolloutPhase.RUNNING or record.number != state.rollout:
            return
        pinned = {pin.device for pin in state.pins}
        everybody = [d for d in self._site.gateways if d not in pinned]
        found = [cohort(state, device) for device in everybody]
        percent = self._site.settings.stages[record.stage]
        self._most[state.rollout] = most = self._stage_size(percent)
        if found.count("candidate") > most:
            raise ViolationError(
                f"rollout {state.rollout}, stage {percent} %: {found.count('candidate')} exposed, expected {most}"
            )
        control = {d for d, c in zip(everybody, found, strict=True) if c == "control"}
        if percent < 100.0:
            lost = self._controls.get(state.rollout, set()) - control - pinned
            if lost:
                raise ViolationError(f"rollout {state.rollout}: {sorted(lost)} left the control cohort")
            self._controls[state.rollout] = control | self._controls.get(state.rollout, set()) - pinned
        else:
            self._controls.pop(state.rollout, None)

    def _stage_size(self, percent: float) -> int:
        """Devices that a stage may expose, of all that there are: no allowance for those that nobody knew or pinned."""
        here = len(self._site.gateways)
        if percent == 100.0:
            return here
        return min(max(math.ceil(here * percent / 100.0), self._site.settings.devices_min), here // 2)

    def took(self, device: str, state: RolloutState) -> None:
        """A device has taken a state, and written it down."""
        if state.seq < self._taken.get(device, 0):
            raise ViolationError(f"{device}: took state {state.seq} after state {self._taken[device]}")
        self._taken[device] = state.seq

    def activates(self, device: str, model: InstalledModel) -> None:
        """A device is about to run a release."""
        repository = self._site.world.repository
        metadata = model.metadata_version
        listed, active = repository.history[metadata[1]]
        if model.version not in listed:
            raise ViolationError(f"{device}: runs release {model.version}, which metadata {metadata} do not list")
        state = self.states[metadata[2]] if len(metadata) == 3 else None
        pins = {} if state is None else {pin.device: pin.version for pin in state.pins}
        if model.version != active and pins.get(device) != model.version:
            self._check_exposed(device, model, state)
        self._check_return(device, model, state)

    def _check_exposed(self, device: str, model: InstalledModel, state: RolloutState | None) -> None:
        if state is None or state.candidate != model.version:
            raise ViolationError(f"{device}: runs release {model.version}, and nobody said so: {state}")
        if state.state in (RolloutPhase.ABORTED, RolloutPhase.ROLLED_BACK):
            raise ViolationError(f"{device}: begins with release {model.version} of a rollout that is over")
        if state.state is not RolloutPhase.PROMOTED and cohort(state, device) != "candidate":
            raise ViolationError(f"{device}: runs release {model.version} and is not exposed to it")
        if state.state is not RolloutPhase.PROMOTED and device in self._controls.get(state.rollout, set()):
            raise ViolationError(f"{device}: of the control cohort runs release {model.version}")
        self.exposures[state.rollout] += 1
        if state.state is RolloutPhase.PROMOTED:
            return
        began = self._began.setdefault(state.rollout, set())
        began.add(device)
        if len(began) > self._most[state.rollout]:
            raise ViolationError(
                f"rollout {state.rollout}: {len(began)} devices began with release {model.version}, expected at most "
                f"{self._most[state.rollout]}"
            )

    def _check_return(self, device: str, model: InstalledModel, state: RolloutState | None) -> None:
        confirmed = self._confirmed.get(device)
        if confirmed is None or model.version >= confirmed.version:
            return
        if not model.metadata_version > confirmed.metadata_version:
            raise ViolationError(
                f"{device}: back from {confirmed.version} {confirmed.metadata_version} to {model.version} "
                f"{model.metadata_version}"
            )
        _, active = self._site.world.repository.history[model.metadata_version[1]]
        pins = {} if state is None else {pin.device: pin.version for pin in state.pins}
        said = state is not None and (
            state.state in (RolloutPhase.ABORTED, RolloutPhase.ROLLED_BACK)
            or state.candidate != confirmed.version
            or pins.get(device) == model.version
            or cohort(state, device) != "candidate"
        )
        if not said and active >= confirmed.version:
            raise ViolationError(f"{device}: back from {confirmed.version} to {model.version} without a signed word")
        self.returns += 1

    def confirmed(self, device: str, model: InstalledModel) -> None:
        """A device's trial is over."""
        self._confirmed[device] = model

    def check_end(self) -> None:
        """When everything has been quiet for long: every rollout has ended, and devices run what they should."""
        site = self._site
        record = site.machine.record
        if record.is_live:
            raise ViolationError(f"rollout {record.number} is still {record.phase.value}: {record.reason}")
        repository = site.world.repository
        if record.active != repository.active:
            raise ViolationError(f"the record says {record.active}, the repository {repository.active}")
        pins = {pin.device: pin.version for pin in record.pins}
        for gateway in site.gateways.values():
            wanted = pins.get(gateway.id, repository.active)
            wanted = wanted if wanted in repository.listed else repository.active
            active = gateway.slots.active
            version = None if active is None else active.version
            gave_up = gateway.updates.outcome(wanted) == "failed"
            if version != wanted and not gave_up:
                raise ViolationError(f"{gateway.id}: runs release {version} in the end, expected {wanted}")

    def check_floods(self, is_honest: bool) -> None:
        """No gate lets a release pass that floods alerts, as long as most devices tell the truth."""
        if not is_honest:
            return
        for past in self._site.machine.record.history:
            flood = self._site.world.quality[past.candidate] == "flood"
            if past.phase is Phase.PROMOTED and flood and past.reason == "every stage passed":
                raise ViolationError(f"release {past.candidate} floods alerts and passed every stage")
