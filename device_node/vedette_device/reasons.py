"""Why a window was scored as it was, in words that an operator understands.

A score is a root mean square over columns, so each column has an exact share of it. The columns with the largest
shares are named with the value that was measured, and with the range in which it usually lies on this device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vedette_schemas.alert import FeatureReason
from vedette_schemas.features import DIFFERENCE_SUFFIX

REASONS_MAX: Final = 3
"""Columns that an alert names: what a person reads at a glance, and what fits in 1 kB of JSON."""
SHARE_MIN: Final = 0.05
"""A column that made less than this of a score is no reason, and is named only if there is no other."""
SUMMARY_CHARACTERS_MAX: Final = 200
ENTITY_CHARACTERS_MAX: Final = 60
COLUMN_CHARACTERS_MAX: Final = 60
"""Limits of the alert schema."""

_WORDS: Final = {
    "packets_in": ("packets received", ""),
    "packets_out": ("packets sent", ""),
    "bytes_in": ("bytes received", ""),
    "bytes_out": ("bytes sent", ""),
    "size_mean_bytes": ("mean packet size", "B"),
    "size_std_bytes": ("spread of packet sizes", "B"),
    "size_max_bytes": ("largest packet", "B"),
    "interarrival_mean_s": ("mean time between packets", "s"),
    "interarrival_std_s": ("spread of times between packets", "s"),
    "tcp_share": ("TCP", "%"),
    "udp_share": ("UDP", "%"),
    "internal_share": ("traffic inside the site", "%"),
    "syn_count": ("connection attempts (SYN)", ""),
    "rst_count": ("connection resets (RST)", ""),
    "flows_new": ("new flows", ""),
    "peers_distinct": ("distinct peers", ""),
    "service_ports_distinct": ("distinct service ports", ""),
    "dns_queries": ("DNS queries", ""),
    "dns_name_length_mean": ("mean DNS name length", "characters"),
    "mqtt_publishes": ("MQTT publishes", ""),
    "mqtt_subscribes": ("MQTT subscribes", ""),
    "connects_failed": ("failed connects", ""),
    "retransmissions": ("retransmissions", ""),
    "service_port_entropy_bits": ("entropy of service ports", "bits"),
}
"""Words and unit of the network columns; a share (0–1) is shown in per cent."""

_UNITS: Final = {
    "m": "m",
    "mm": "mm",
    "lpm": "L/min",
    "kw": "kW",
    "w": "W",
    "pct": "%",
    "kpa": "kPa",
    "bar": "bar",
    "c": "°C",
    "k": "K",
    "v": "V",
    "a": "A",
    "hz": "Hz",
    "rpm": "1/min",
    "s": "s",
    "ms": "ms",
    "bytes": "B",
    "bits": "bits",
}
"""Unit of a column by the last part of its name, as channels are named: ``pressure_kpa``."""


def top_reasons(
    squared_ratio: npt.NDArray[np.floating[Any]],
    values: npt.NDArray[np.floating[Any]],
    usual: npt.NDArray[np.floating[Any]],
    columns: Sequence[str],
) -> tuple[FeatureReason, ...]:
    """The columns that made a score.

    Args:
        squared_ratio: ``(windows, columns)`` squared error over the usual squared one; their mean is the squared score.
        values: ``(windows, columns)`` what was measured, in the columns' own units, same windows.
        usual: ``(2, columns)`` benign 5th and 95th percentile, in the columns' own units.
        columns: names.

    Returns:
        At most `REASONS_MAX` reasons, largest share first; the value is that of the window where the error was largest.
    """
    by_column = squared_ratio.sum(axis=0, dtype=np.float64)
    total = float(by_column.sum())
    if not total > 0.0:
        return ()
    order: list[int] = np.argsort(-by_column, kind="stable")[:REASONS_MAX].tolist()
    named = [j for j in order if by_column[j] >= SHARE_MIN * total] or order[:1]
    worst = squared_ratio.argmax(axis=0)
    return tuple(
        FeatureReason(
            name=columns[j][:COLUMN_CHARACTERS_MAX],
            value=_rounded(float(values[worst[j], j])),
            usual=(_rounded(float(usual[0, j])), _rounded(float(usual[1, j]))),
            share=round(min(float(by_column[j]) / total, 1.0), 3),
        )
        for j in named
    )


def summarise(entity: str, reasons: Sequence[FeatureReason]) -> str:
    """One sentence of at most 200 characters, for example ``10.0.0.4: distinct service ports 950 (usual 0–3)``."""
    name = entity[:ENTITY_CHARACTERS_MAX]
    clauses = [clause(reason) for reason in reasons]
    while clauses:
        text = f"{name}: {', '.join(clauses)}"
        if len(text) <= SUMMARY_CHARACTERS_MAX:
            return text
        clauses.pop()
    return f"{name}: unlike its usual behaviour"


def clause(reason: FeatureReason) -> str:
    """One reason in words: ``pressure 12.4 kPa (usual 15.0–21.3 kPa)``."""
    words, _ = describe(reason.name)
    return f"{words} {value_text(reason.name, reason.value)} (usual {range_text(reason.name, *reason.usual)})"


def value_text(column: str, value: float) -> str:
    """A column's value with its unit: ``12.4 kPa``."""
    factor, behind = _scale(column)
    return f"{_number(factor * value)}{behind}"


def range_text(column: str, low: float, high: float) -> str:
    """A column's range with its unit: ``15.0–21.3 kPa``, ``-2 to 3``, or one value where both ends are the same."""
    factor, behind = _scale(column)
    first, last = _number(factor * low), _number(factor * high)
    if first == last:
        return f"{first}{behind}"
    return f"{first} to {last}{behind}" if "-" in first else f"{first}–{last}{behind}"


def _scale(column: str) -> tuple[float, str]:
    _, unit = describe(column)
    return (100.0 if unit == "%" and column in _WORDS else 1.0), (f" {unit}" if unit else "")


def describe(column: str) -> tuple[str, str]:
    """Words and unit of a column; a column that is not ours is read as ``name_unit``."""
    if column in _WORDS:
        return _WORDS[column]
    change = column.endswith(DIFFERENCE_SUFFIX)
    stem = column.removesuffix(DIFFERENCE_SUFFIX)
    head, _, last = stem.rpartition("_")
    unit = _UNITS.get(last, "") if head else ""
    words = (head if unit else stem).replace("_", " ")
    return (f"step of {words}" if change else words), unit


def _number(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _rounded(value: float) -> float:
    """Four significant digits: readings are not better, and each digit costs a byte of 1,024."""
    return float(f"{value:.4g}")
