"""Makes a release of a candidate, again and again while what is in the way can be mended, but not for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from vedette_aggregator.countersigning import AwaitsValidatorError
from vedette_aggregator.publication import Publication
from vedette_aggregator.releases import Releases
from vedette_aggregator.round_events import PublishCandidate, Released, ReleaseFailed
from vedette_schemas.errors import ConfigError, PeerError, RefusedError, TransientError

log = logging.getLogger("vedette.aggregator")

RETRY_S: Final = 5.0
REASON_CHARACTERS_MAX: Final = 200


async def attempt_release(
    releases: Releases, task: str, effect: PublishCandidate, patience_s: float
) -> tuple[Released, Publication] | ReleaseFailed:
    """Release a candidate, or say why it is none.

    Args:
        releases: of the task.
        task: the task.
        effect: the candidate with its plan.
        patience_s: how long a validator's word is waited for. Behind that the candidate is given up: the rounds of the
            task stand still meanwhile.
    """
    since: float | None = None
    while True:
        try:
            return await asyncio.to_thread(releases.release, effect.candidate, effect.plan, time.time())
        except (TransientError, ConfigError) as error:
            if isinstance(error, AwaitsValidatorError):
                since = time.monotonic() if since is None else since
                if time.monotonic() >= since + patience_s:
                    return await _given_up(releases, task, effect, patience_s)
            # A missing key or a read-only disk can be mended while the candidate waits.
            log.error("release of %s: %s; trying again", task, error)
            await asyncio.sleep(RETRY_S)
        except (PeerError, RefusedError) as error:
            log.error("release of %s: %s", task, error)
            return ReleaseFailed(str(error)[:REASON_CHARACTERS_MAX])
        except Exception as fault:
            # Without an answer the rounds of the task would stand still until a restart.
            log.exception("release of %s", task)
            return ReleaseFailed(f"{type(fault).__name__}: {fault}"[:REASON_CHARACTERS_MAX])


async def _given_up(
    releases: Releases, task: str, effect: PublishCandidate, patience_s: float
) -> tuple[Released, Publication] | ReleaseFailed:
    reason = f"the validator said nothing for {patience_s:g} s; see `vedette validator run`"
    try:
        signed = await asyncio.to_thread(releases.give_up, effect.candidate, reason)
    except (TransientError, ConfigError) as error:
        log.error("release of %s: %s", task, error)
        signed = None
    if signed is not None:
        return signed  # in the last moment
    log.error("release of %s: %s", task, reason)
    return ReleaseFailed(reason)
