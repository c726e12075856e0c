"""The two slots of a task's models on disk: one runs, the other is staged into, or kept to fall back to.

``state.json`` is the commit point, replaced atomically; a model file is named by its digest and is on disk before the
state names it. So after a crash at any step the state names whole files, and what a failed attempt left over is
removed by the next. Bytes are checked against their digest whenever they are loaded: a damaged slot counts as empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from vedette_core.runtime.durable import file_error, make_directory, remove_durable, write_durable
from vedette_device.update_events import InstalledModel, SlotsView
from vedette_schemas import codec
from vedette_schemas.codec import Message
from vedette_schemas.errors import PeerError, RefusedError, TransientError

STATE_FILE: Final = "state.json"


class SlotStatus(StrEnum):
    """What is known of a slot's model: stored, running on trial, or confirmed."""

    STAGED = "staged"
    TRIAL = "trial"
    GOOD = "good"


class _Slot(Message):
    model: InstalledModel
    status: Annotated[SlotStatus, Field(strict=False)]


class _State(Message):
    v: Literal[1] = 1
    active: Literal["a", "b"] | None = None
    a: _Slot | None = None
    b: _Slot | None = None


class ModelSlots:
    """A task's A/B slots; one writer at a time.

    Args:
        directory: the task's own; holds ``slot-a/``, ``slot-b/`` and ``state.json``.

    Raises:
        ConfigError: the directory cannot be made.
        TransientError: the disk is full.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in ("a", "b"):
            make_directory(self._folder(name))
        self.damaged = ""
        """Why the state file was not usable at the start; empty if it was."""
        self._state = self._load()

    def view(self) -> SlotsView:
        """What the slots hold, every digest checked."""
        active, spare = self._sound(self._state.active), self._sound(self._spare_name)
        return SlotsView(
            active=None if active is None else active.model,
            spare=None if spare is None else spare.model,
            trial=active is not None and active.status is SlotStatus.TRIAL,
            spare_good=spare is not None and spare.status is SlotStatus.GOOD,
        )

    def holds(self, model: InstalledModel) -> bool:
        """Whether the spare slot already has a model's bytes, sound: then nothing need be fetched."""
        spare = self._sound(self._spare_name)
        return spare is not None and spare.model.sha256 == model.sha256

    def stage(self, model: InstalledModel, data: bytes) -> None:
        """Put a model into the spare slot, durably. On any failure the slots stay as they were.

        Raises:
            RefusedError: the active model is on trial: the spare slot is the one to fall back to.
            PeerError: the bytes do not have the model's length and digest.
            TransientError: the disk is full.
        """
        if self._trial:
            raise RefusedError(
                f"task {model.task}: found release {model.version} to stage during a trial, expected none until the "
                "trial is over: the spare slot holds the last good model",
                rule="trial",
            )
        _check(model, data)
        name = self._spare_name
        path = self._path(name, model)
        write_durable(path, data)
        try:
            self._commit(self._with(name, _Slot(model=model, status=SlotStatus.STAGED)))
        finally:
            self._sweep()

    def stage_again(self, model: InstalledModel) -> None:
        """Make the spare slot's bytes (see `holds`) those of another announcement of the same file.

        A model that was confirmed once stays a good one to fall back to.

        Raises:
            RefusedError: the spare slot does not hold it.
            TransientError: the disk is full.
        """
        name = self._spare_name
        found = self._sound(name)
        if found is None or found.model.sha256 != model.sha256 or self._trial:
            raise RefusedError(f"task {model.task}: found no sound copy of {model.sha256[:12]}…", rule="digest")
        self._commit(self._with(name, _Slot(model=model, status=found.status)))

    def activate(self, model: InstalledModel) -> None:
        """Switch to the spare slot, on trial; done already if the model is active.

        Raises:
            RefusedError: the spare slot does not hold it, or its bytes are damaged.
            TransientError: the disk is full; the old model stays active.
        """
        active, name = self._sound(self._state.active), self._spare_name
        if active is not None and active.model.sha256 == model.sha256:
            return
        if not self.holds(model):
            raise RefusedError(
                f"task {model.task}: found no sound copy of release {model.version} in spare slot {name}, expected it "
                "staged there",
                rule="slot",
            )
        slot = _Slot(model=model, status=SlotStatus.TRIAL)
        self._commit(self._with(name, slot).model_copy(update={"active": name}))

    def confirm(self, model: InstalledModel) -> None:
        """End the trial of the active model: it is good.

        Raises:
            RefusedError: another model is active.
            TransientError: the disk is full; it stays on trial.
        """
        name = self._state.active
        slot = self._slot(name)
        if name is None or slot is None or slot.model.sha256 != model.sha256:
            raise RefusedError(f"task {model.task}: found release {model.version} not active, expected it", rule="slot")
        self._commit(self._with(name, _Slot(model=slot.model, status=SlotStatus.GOOD)))

    def fall_back(self) -> InstalledModel | None:
        """Leave a model that is on trial or damaged for the last good one; None if there is none.

        Changes nothing if the active model is sound and confirmed.

        Raises:
            TransientError: the disk is full; the shell must not load the model that was left.
        """
        active = self._sound(self._state.active)
        if active is not None and active.status is SlotStatus.GOOD:
            return active.model
        name = self._spare_name
        spare = self._sound(name)
        good = spare is not None and spare.status is SlotStatus.GOOD
        left = self._state.active
        state = self._state if left is None else self._with(left, None)
        self._commit(state.model_copy(update={"active": name if good else None}))
        self._sweep()
        return spare.model if spare is not None and good else None

    def drop(self, digests: Collection[str], successor: str) -> InstalledModel | None:
        """Empty every slot that holds one of these models, confirmed or not; returns what is to run, None for nothing.

        Args:
            digests: hex digests of the models.
            successor: of the model that becomes active if the active one was dropped; it must have been confirmed.

        Raises:
            TransientError: the disk is full; the shell must not load a model that was dropped.
        """
        state = self._state
        for name in ("a", "b"):
            slot = self._slot(name)
            if slot is not None and slot.model.sha256 in digests:
                state = state.model_copy(update={name: None, **({"active": None} if name == state.active else {})})
        if state.active is None and self._state.active is not None:
            other = self._spare_name
            slot = self._sound(other)
            good = slot is not None and slot.status is SlotStatus.GOOD and slot.model.sha256 == successor
            state = state.model_copy(update={"active": other if good and successor not in digests else None})
        if state != self._state:
            self._commit(state)
        self._sweep()
        active = self._sound(self._state.active)
        return None if active is None else active.model

    def held(self, sha256: str) -> bytes | None:
        """The bytes of whichever slot holds this digest, checked; None if none does."""
        for name in ("a", "b"):
            slot = self._slot(name)
            if slot is not None and slot.model.sha256 == sha256:
                with suppress(RefusedError):
                    return self._read(name, slot.model)
        return None

    def load(self, model: InstalledModel) -> bytes:
        """A model's bytes, from whichever slot holds it, digest checked.

        Raises:
            RefusedError: no slot holds it, or its bytes are damaged.
        """
        damaged: RefusedError | None = None
        for name in ("a", "b"):
            slot = self._slot(name)
            if slot is not None and slot.model.sha256 == model.sha256:
                try:
                    return self._read(name, slot.model)
                except RefusedError as fault:
                    damaged = fault
        raise damaged or RefusedError(
            f"task {model.task}: found no slot with release {model.version} ({model.sha256[:12]}…)", rule="slot"
        )

    @property
    def _spare_name(self) -> Literal["a", "b"]:
        return "b" if self._state.active == "a" else "a"

    @property
    def _trial(self) -> bool:
        slot = self._sound(self._state.active)
        return slot is not None and slot.status is SlotStatus.TRIAL

    def _slot(self, name: str | None) -> _Slot | None:
        return {"a": self._state.a, "b": self._state.b}.get(name or "")

    def _sound(self, name: str | None) -> _Slot | None:
        slot = self._slot(name)
        if name is None or slot is None:
            return None
        try:
            self._read(name, slot.model)
        except RefusedError:
            return None
        return slot

    def _read(self, name: str, model: InstalledModel) -> bytes:
        path = self._path(name, model)
        try:
            data = path.read_bytes()
            _check(model, data)
        except (OSError, PeerError) as fault:
            raise RefusedError(
                f"task {model.task}: found slot {name} damaged ({fault}), expected release {model.version}",
                rule="digest",
            ) from fault
        return data

    def _with(self, name: str, slot: _Slot | None) -> _State:
        return self._state.model_copy(update={name: slot})

    def _commit(self, state: _State) -> None:
        write_durable(self._directory / STATE_FILE, codec.pack_json(state))
        self._state = state

    def _sweep(self) -> None:
        """Remove model files that the state does not name; what cannot be removed now is removed later."""
        for name in ("a", "b"):
            slot = self._slot(name)
            for path in self._folder(name).iterdir():
                if slot is None or path != self._path(name, slot.model):
                    with suppress(TransientError):
                        remove_durable(path)

    def _load(self) -> _State:
        path = self._directory / STATE_FILE
        try:
            return codec.unpack_json(_State, path.read_bytes())
        except FileNotFoundError:
            return _State()
        except OSError as fault:
            raise file_error(fault, f"read model slots {path}") from fault
        except PeerError as fault:
            # Nobody is at an unattended gateway: start empty, and the next refresh fetches the release again.
            self.damaged = f"{path}: found a damaged state ({fault}); starting with empty slots"
            return _State()

    def _folder(self, name: str) -> Path:
        return self._directory / f"slot-{name}"

    def _path(self, name: str, model: InstalledModel) -> Path:
        return self._folder(name) / f"{model.sha256}.model"


def _check(model: InstalledModel, data: bytes) -> None:
    found = hashlib.sha256(data).hexdigest()
    if len(data) != model.length or found != model.sha256:
        raise PeerError(
            f"release {model.task} {model.version}: found {len(data)} bytes with sha256 {found}, expected "
            f"{model.length} with {model.sha256}",
            reason="digest",
        )
