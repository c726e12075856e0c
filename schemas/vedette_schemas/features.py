"""What a feature window holds: named columns, how long a window is, how many of them one model input covers.

A schema travels inside every model file, and a round refuses a device whose schema differs: two columns that
changed places would otherwise average into a model that is wrong everywhere and fails nowhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vedette_schemas.errors import ConfigError

COLUMNS_MAX = 256
"""Most columns of a schema: the largest published set (AfterImage) has 115, with first differences 230."""

HISTORY_MAX = 256
"""Most windows in one model input: 16 are usual, 256 would be 20 minutes of 5 s windows."""

COLUMN_NAME_CHARACTERS_MAX = 64
"""Longest column name, so that an alert which names three columns stays within 1 kB."""

COLUMNS_SHOWN_MAX = 5
"""Most column names in a message: one that a person reads fits on a line or two."""

DIFFERENCE_SUFFIX = "_diff"
"""What the name of a channel's first difference ends in."""


class FeatureSchema(BaseModel):
    """Names and shape of a stream of feature windows.

    Attributes:
        use_case: ``"network"`` (traffic of one local device), ``"sensor"`` (readings of one site) or ``"behaviour"``
            (counts of named things on one host, hashed).
        version: raised whenever the *meaning* of a column changes while its name stays.
        columns: names in the order of the values, without repetition.
        window_s: seconds that one window covers; for sensors the nominal sample period.
        history: windows that one model input covers; an input has the shape ``(history, len(columns))``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    use_case: Literal["network", "sensor", "behaviour"]
    version: int = Field(ge=1, le=65_535)
    columns: tuple[str, ...] = Field(min_length=1, max_length=COLUMNS_MAX, strict=False)
    window_s: float = Field(gt=0, le=86_400, allow_inf_nan=False, strict=False)
    history: int = Field(ge=1, le=HISTORY_MAX)

    @field_validator("columns")
    @classmethod
    def _names_are_distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for name in columns:
            if not name or len(name) > COLUMN_NAME_CHARACTERS_MAX or not name.isprintable():
                raise ValueError(
                    f"column name {name!r}: expected 1 to {COLUMN_NAME_CHARACTERS_MAX} printable characters"
                )
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        if repeated:
            raise ValueError(f"columns appear more than once: {', '.join(repeated)}")
        return columns

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of the canonical encoding: compact JSON with sorted keys, in UTF-8."""
        fields = {
            "columns": list(self.columns),
            "history": self.history,
            "use_case": self.use_case,
            "version": self.version,
            # repr() of a float is its shortest exact form, the same on every platform.
            "window_s": repr(float(self.window_s)),
        }
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def input_shape(self) -> tuple[int, int]:
        """Shape of one model input: ``(history, columns)``."""
        return self.history, len(self.columns)

    def index(self, column: str) -> int:
        """Position of a column.

        Raises:
            ConfigError: there is no such column; the message lists those that exist.
        """
        try:
            return self.columns.index(column)
        except ValueError:
            raise ConfigError(
                f"feature {column!r} is not in the {self.use_case} schema; it has: {', '.join(self.columns)}"
            ) from None

    def difference(self, other: FeatureSchema) -> str:
        """Say in words how ``other`` differs from this one.

        Args:
            other: what was found; this schema is what was expected.

        Returns:
            One line of clauses joined by semicolons, empty when both are the same.
        """
        clauses = []
        for name in ("use_case", "version", "window_s", "history"):
            found, expected = getattr(other, name), getattr(self, name)
            if found != expected:
                clauses.append(f"{name} is {found!r}, expected {expected!r}")
        if other.columns != self.columns:
            clauses.append(self._column_difference(other.columns))
        return "; ".join(clauses)

    def _column_difference(self, found: tuple[str, ...]) -> str:
        missing = [name for name in self.columns if name not in found]
        unknown = [name for name in found if name not in self.columns]
        if not missing and not unknown:
            at = next(i for i, (a, b) in enumerate(zip(found, self.columns, strict=True)) if a != b)
            return f"columns are in another order: column {at} is {found[at]!r}, expected {self.columns[at]!r}"
        parts = []
        if missing:
            parts.append(f"lacks columns {_named(missing)}")
        if unknown:
            parts.append(f"has unknown columns {_named(unknown)}")
        return " and ".join(parts)


def _named(columns: list[str]) -> str:
    shown = ", ".join(columns[:COLUMNS_SHOWN_MAX])
    rest = len(columns) - COLUMNS_SHOWN_MAX
    return f"{shown} and {rest} more" if rest > 0 else shown


NETWORK_FLOWS = FeatureSchema(
    use_case="network",
    version=1,
    columns=(
        "packets_in",
        "packets_out",
        "bytes_in",
        "bytes_out",
        "size_mean_bytes",
        "size_std_bytes",
        "size_max_bytes",
        "interarrival_mean_s",
        "interarrival_std_s",
        "tcp_share",
        "udp_share",
        "syn_count",
        "rst_count",
        "flows_new",
        "peers_distinct",
        "service_ports_distinct",
        "internal_share",
        "dns_queries",
        "dns_name_length_mean",
        "mqtt_publishes",
        "mqtt_subscribes",
        "connects_failed",
        "retransmissions",
        "service_port_entropy_bits",
    ),
    window_s=5.0,
    history=16,
)
"""Traffic of one local device in tumbling windows of 5 s (``vedette_device.features.network`` defines each column)."""

FLOW_LOGS = FeatureSchema(
    use_case="network",
    version=1,
    columns=(
        "flows_out",
        "flows_in",
        "bytes_out",
        "bytes_in",
        "packets_out",
        "packets_in",
        "flow_max_bytes",
        "packet_mean_bytes",
        "duration_mean_s",
        "duration_max_s",
        "tcp_share",
        "udp_share",
        "failed_out",
        "failed_in",
        "failed_share",
        "resets",
        "unanswered_share",
        "peers_distinct",
        "peers_new",
        "service_ports_distinct",
        "service_port_entropy_bits",
        "internal_share",
        "dns_flows",
        "mqtt_flows",
    ),
    window_s=60.0,
    history=16,
)
"""Flows of one local device, as a log tells of them, in tumbling windows of 60 s
(``vedette_device.features.flow_log_columns`` defines each column). A log has no sizes, times, flags and
names of single packets, so it cannot fill ``NETWORK_FLOWS``; and as flows are logged when a timer gives them up, a
shorter window would show the timers' beat."""

_PUBLISHED = {NETWORK_FLOWS.digest: "packets", FLOW_LOGS.digest: "flow-logs"}


def known_as(digest: str) -> str:
    """Name of a schema that is the same everywhere, in brackets behind a blank; nothing for any other digest.

    Where only digests are compared, a message can then say what differs: what a device's task reads.
    """
    name = _PUBLISHED.get(digest)
    return f" ({name})" if name else ""


BEHAVIOUR_WINDOW_S = 60.0
"""Seconds over which named counts are summed: long enough for rare events to be counts, short enough to alert."""

BEHAVIOUR_SCHEMA_VERSION = 1

HASH_MARK_PATTERN = "^[0-9a-f]{4}$"
"""Form of the mark that tells hashing keys apart."""


def behaviour_schema(width: int, mark: str) -> FeatureSchema:
    """Schema of counts that are hashed into a fixed number of columns, with a sign.

    A column's name holds the mark of the site's hashing key: under another key the same column counts other names, and
    a model of one must never be taken for a model of the other. One window is one input: a program that starts is in
    one window and not in the ones before it.

    Args:
        width: number of columns.
        mark: four hexadecimal digits, made of the key (``vedette_core.learning.hashing.FeatureHasher.mark``).

    Raises:
        ConfigError: another form of mark, or a width out of range.
    """
    if not re.fullmatch(HASH_MARK_PATTERN, mark):
        raise ConfigError(f"hash mark: found {mark!r}, expected four hexadecimal digits")
    if not 2 <= width <= COLUMNS_MAX:
        raise ConfigError(f"hashed columns: found {width}, expected 2 to {COLUMNS_MAX}")
    return FeatureSchema(
        use_case="behaviour",
        version=BEHAVIOUR_SCHEMA_VERSION,
        columns=tuple(f"h{index:02x}.{mark}" for index in range(width)),
        window_s=BEHAVIOUR_WINDOW_S,
        history=1,
    )


SENSOR_SCHEMA_VERSION = 1


def sensor_schema(channels: tuple[str, ...], *, window_s: float = 1.0, history: int = 16) -> FeatureSchema:
    """Schema of sensor readings: the channels as they were read, then the first difference of each.

    Args:
        channels: channel names, in the order of the values.
        window_s: nominal sample period in seconds.
        history: samples that one model input covers, usually 8 to 16.

    Returns:
        A schema of ``2 * len(channels)`` columns.

    Raises:
        ConfigError: no channel, too many of them, a name twice, or a number out of range.
    """
    columns = (*channels, *(name + DIFFERENCE_SUFFIX for name in channels))
    try:
        return FeatureSchema(
            use_case="sensor",
            version=SENSOR_SCHEMA_VERSION,
            columns=columns,
            window_s=window_s,
            history=history,
        )
    except ValueError as error:
        raise ConfigError(f"sensor channels {', '.join(channels) or '(none)'}: {error}") from error
