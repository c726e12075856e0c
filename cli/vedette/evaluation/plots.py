"""Pictures as SVG, written by hand: a ROC curve, a timeline of scores, and promised against realised rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np

from vedette.evaluation.judging import Outcome
from vedette.evaluation.metrics import roc_curve

WIDTH, HEIGHT, MARGIN = 640, 420, 60
COLOURS: Final = ("#0b6e99", "#c0392b", "#2e7d32", "#8e44ad", "#d68910", "#5d6d7e", "#16a085", "#7b241c", "#2c3e50")
ALPHAS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
POINTS_MAX: Final = 600
"""Points of a line: more than there are pixels say nothing."""
RATE_LOG_MIN: Final = -3.5

Points = Sequence[tuple[float, float]]


def roc(title: str, outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """ROC of each detector, all devices that have both classes pooled by their thresholds (score over threshold)."""
    lines = {}
    for name, each in outcomes.items():
        scores = np.concatenate([o.scores[o.counted] / max(o.threshold, 1e-12) for o in each])
        labels = np.concatenate([o.labels[o.counted] == 1 for o in each])
        curve = roc_curve(scores, labels)
        if curve is not None:
            lines[name] = _thin(curve.fpr, curve.tpr)
    return _chart(f"{title}: ROC", "false-positive rate", "true-positive rate", lines, (0, 1), (0, 1))


def reliability(title: str, outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Realised over promised rate, both in powers of ten, by thresholds fixed before the test stretch."""
    lines: dict[str, Points] = {"as promised": [(float(np.log10(a)),) * 2 for a in ALPHAS]}
    for name, each in outcomes.items():
        points = []
        for alpha in ALPHAS:
            above = total = 0
            for o in each:
                size = len(o.calibration)
                benign = o.scores[o.labels == 0]
                if (rank := int(alpha * (size + 1))) < 1:
                    continue  # too few scores to promise this much by rank
                above += int((benign > o.calibration[size - rank]).sum())
                total += len(benign)
            if total:
                points.append((float(np.log10(alpha)), float(np.log10(max(above / total, 10**RATE_LOG_MIN)))))
        if points:
            lines[name] = points
    span = (RATE_LOG_MIN, 0.0)
    return _chart(f"{title}: promised and realised", "log₁₀ promised", "log₁₀ realised", lines, span, span)


def timeline(title: str, outcomes: Sequence[Outcome]) -> str:
    """Scores over their threshold along the test stretch of the device with most attacks; attacks are shaded."""
    o = max(outcomes, key=lambda each: int((each.labels == 1).sum()))
    count = max(len(o.scores), 1)
    values = np.log10(np.maximum(o.scores / max(o.threshold, 1e-12), 1e-3))
    step = max(1, count // POINTS_MAX)
    peaks = [(float(i), float(values[i : i + step].max())) for i in range(0, len(values), step)]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (o.labels == 1).astype(int), [0]])))
    shaded = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    top = max(1.0, float(values.max(initial=0.0)) * 1.05)
    lines: dict[str, Points] = {"score / threshold": peaks, "threshold": [(0.0, 0.0), (float(count), 0.0)]}
    low = min(-1.0, float(values.min(initial=0.0)))
    return _chart(
        f"{title}: {o.device}",
        "window of the test stretch",
        "log₁₀ score / threshold",
        lines,
        (0, count),
        (low, top),
        shaded,
    )


def _thin(x: np.ndarray, y: np.ndarray) -> Points:
    places = np.unique(np.linspace(0, len(x) - 1, POINTS_MAX).astype(np.intp))
    return list(zip(x[places].tolist(), y[places].tolist(), strict=True))


def _chart(
    title: str,
    below: str,
    beside: str,
    lines: Mapping[str, Points],
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    shaded: Sequence[tuple[float, float]] = (),
) -> str:
    wide, high = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        across = (min(max(x, x_span[0]), x_span[1]) - x_span[0]) / (x_span[1] - x_span[0])
        up = (min(max(y, y_span[0]), y_span[1]) - y_span[0]) / (y_span[1] - y_span[0])
        return MARGIN + across * wide, HEIGHT - MARGIN - up * high

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="24" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for start, end in shaded:
        (left, top), (right, _) = place(start, y_span[1]), place(end, y_span[1])
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1.0):.1f}" height="{high}" fill="#f5b7b1"/>'
        )
    parts.append(
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{wide}" height="{high}" fill="none" stroke="#999"/>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(below)}</text>'
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">'
        f"{escape(beside)}</text>"
    )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = (span[0] + share * (span[1] - span[0]) for span in (x_span, y_span))
        left, foot = place(x, y)
        parts.append(f'<text x="{left:.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{x:.4g}</text>')
        parts.append(f'<text x="{MARGIN - 6}" y="{foot + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for i, (name, points) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        label = escape(name.replace("_", " "))
        parts.append(
            f'<text x="{WIDTH - MARGIN + 4 - 130}" y="{HEIGHT - MARGIN - 8 - 13 * i}" fill="{colour}">{label}</text>'
        )
    return "\n".join(parts) + "\n</svg>\n"
