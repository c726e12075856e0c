"""What a repository's roles are, for people: who signs what, how many of them must, and until when it holds."""

from __future__ import annotations

from dataclasses import dataclass

from vedette_aggregator.registry_files import RepositoryState


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """One role.

    Attributes:
        role: ``root``, ``targets``, ``snapshot``, ``timestamp`` or a task.
        version: of its newest file.
        threshold: how many of its keys must sign.
        keys: their ids.
        expires_s: when the file ends, epoch seconds.
        online: whether the aggregator signs it by itself; the others need people before they expire.
    """

    role: str
    version: int
    threshold: int
    keys: tuple[str, ...]
    expires_s: float
    online: bool

    @property
    def signed_by(self) -> str:
        """Who has to sign it, in words."""
        if not self.online:
            return "people"
        return "the aggregator" if self.threshold == 1 else "the aggregator and the validator"

    def days_left(self, now: float) -> float:
        """Days until it expires; negative once it has."""
        return (self.expires_s - now) / 86_400


def role_facts(state: RepositoryState) -> tuple[RoleFacts, ...]:
    """Every role of a state, root first."""
    root, targets = state.root, state.targets
    top = {"root": root, "targets": targets, "snapshot": state.snapshot, "timestamp": state.timestamp}
    signed = [(name, file, root.get_delegated_role(name)) for name, file in top.items()]
    signed += [(task, file, targets.get_delegated_role(task)) for task, file in state.roles.items()]
    return tuple(
        RoleFacts(
            name,
            file.version,
            role.threshold,
            tuple(role.keyids),
            file.expires.timestamp(),
            name not in ("root", "targets"),
        )
        for name, file, role in signed
    )
