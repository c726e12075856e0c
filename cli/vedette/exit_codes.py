"""What the exit status of `vedette` means, and which error gives which."""

from __future__ import annotations

from enum import IntEnum

from vedette_schemas.errors import ConfigError, PeerError, RefusedError, VedetteError


class ExitCode(IntEnum):
    """Exit status of every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIGURATION = 3
    BROKER_UNREACHABLE = 4
    AUTHENTICATION = 5
    INTEGRITY = 6
    CHECK_FAILED = 7


def exit_code(error: VedetteError) -> ExitCode:
    """The exit status for an error that reached the command line."""
    from vedette_core.runtime.mqtt import AuthenticationError, UnreachableError

    match error:
        case AuthenticationError():
            return ExitCode.AUTHENTICATION
        case UnreachableError():
            return ExitCode.BROKER_UNREACHABLE
        case RefusedError() | ConfigError():
            return ExitCode.CONFIGURATION
        case PeerError():
            return ExitCode.INTEGRITY
    return ExitCode.FAILURE
