"""A disk whose power can be cut before any of its operations; a write that is cut leaves half of its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class PowerCutError(BaseException):
    """The process is gone: nothing may catch it and carry on."""


class PowerCut:
    """Counts the operations that change the disk, and cuts the power before operation `at` (0 is the first)."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.done, self.dead = at, 0, False
        self.synchronised: set[str] = set()

    def _step(self) -> bool:
        if self.dead:
            raise PowerCutError
        self.dead = self.done == self.at
        self.done += 1
        return self.dead

    @contextmanager
    def armed(self) -> Iterator[PowerCut]:
        write, fsync, replace, unlink = os.write, os.fsync, os.replace, os.unlink

        def cut(function: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                if self._step():
                    raise PowerCutError
                return function(*args, **kwargs)

            return step

        def torn_write(handle: int, data: Any) -> int:
            if self._step():
                write(handle, bytes(data)[: len(data) // 2])
                raise PowerCutError
            return write(handle, data)

        def noted_fsync(handle: int) -> None:
            fsync(handle)
            self.synchronised.add(str(Path(f"/proc/self/fd/{handle}").readlink()))

        def checked_replace(source: Any, target: Any, **kwargs: Any) -> None:
            name = os.path.realpath(source)
            ours = name.endswith(".new") and not Path(name).is_dir()
            assert not ours or name in self.synchronised, f"{name} was renamed before it was synchronised"
            self.synchronised.discard(name)
            replace(source, target, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", torn_write)
            patch.setattr(os, "fsync", cut(noted_fsync))
            patch.setattr(os, "replace", cut(checked_replace))
            patch.setattr(os, "unlink", cut(unlink))
            yield self


def count_steps(action: Callable[[], Any]) -> int:
    """How many operations on the disk an action takes."""
    disk = PowerCut()
    with disk.armed():
        action()
    return disk.done


def run_until_cut(action: Callable[[], Any], at: int) -> None:
    """Run an action with the power cut before its operation `at`."""
    with PowerCut(at).armed(), pytest.raises(PowerCutError):
        action()
