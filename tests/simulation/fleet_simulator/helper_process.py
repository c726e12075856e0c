"""A helper: the real helper machine of a committee whose members contribute nothing."""

from __future__ import annotations

from vedette_core.machine import Effect
from vedette_device.helper_machine import HelperMachine

from .gateway_process import GatewayProcess
from .problem import TASK


class HelperProcess(GatewayProcess):
    """A committee helper."""

    role_in_rounds = "unmask"
    machine: HelperMachine

    def make_machine(self, persisted: dict[str, bytes]) -> list[Effect]:
        self.machine, effects = HelperMachine.restore(
            persisted,
            topics=self.topics,
            task=TASK,
            identity=self.identity,
            new_key=self.new_key,
            peers=self.site.ring(),
        )
        return effects

    def special(self, effect: Effect) -> None:
        raise AssertionError(f"a helper trains nothing: {effect}")
