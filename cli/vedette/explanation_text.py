"""An explained alert as a person reads it in a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vedette_device.alert_record import evidence_reference, rfc3339
from vedette_device.evidence import Evidence
from vedette_device.explanation import Column, Explanation, Moment
from vedette_device.reasons import describe, range_text, summarise, value_text
from vedette_schemas.errors import VedetteError

SHOWN_MAX: Final = 8
"""Columns of the table: what a person reads; JSON has them all."""
SHOWN_MIN: Final = 0.02
"""A smaller part by either attribution is summed up with the others, unless it is among the first three."""
COURSE_COLUMNS: Final = 3
BAR_CELLS: Final = 10
LEVELS: Final = "▁▂▃▄▅▆▇█"
NAME_CELLS: Final = 30


# -- what is kept -----------------------------------------------------------------------------------------------------


def kept_row(alert: str, evidence: Evidence | VedetteError) -> dict[str, Any]:
    """One alert of the list, as JSON has it."""
    if isinstance(evidence, VedetteError):
        return {"alert": alert, "damaged": str(evidence)}
    return {
        "alert": alert,
        "window_end": rfc3339(evidence.end_s),
        "task": evidence.model.task,
        "entity": evidence.entity,
        "score": evidence.score,
        "threshold": evidence.threshold,
        "model_version": evidence.model.version,
        "summary": summarise(evidence.entity, evidence.reasons),
    }


def print_kept(found: Sequence[tuple[str, Evidence | VedetteError]]) -> None:
    """Print the list, newest first: some lines an alert, so that ids can be copied and sentences read."""
    console = _console()
    for alert, evidence in found:
        if isinstance(evidence, VedetteError):
            console.print(Text(shown(alert), style="bold"))
            _print_below(console, str(evidence), "red")
            continue
        console.print(Text(alert, style="bold"))
        _print_below(console, summarise(evidence.entity, evidence.reasons))
        _print_below(console, f"{_clock(evidence.end_s)}, score {_score(evidence)}", "dim")
    if not found:
        console.print("no evidence of any alert is kept yet")


# -- one alert --------------------------------------------------------------------------------------------------------


def document(explained: Explanation) -> dict[str, Any]:
    """An explanation as plain data; the keys are in docs/operations.md."""
    evidence = explained.evidence
    names = evidence.schema.columns
    return {
        "alert": evidence.alert,
        "evidence": evidence_reference(evidence.alert),
        "task": evidence.model.task,
        "detector": evidence.schema.use_case,
        "entity": evidence.entity,
        "window_start": rfc3339(evidence.start_s),
        "window_end": rfc3339(evidence.end_s),
        "score": evidence.score,
        "threshold": evidence.threshold,
        "p_value": evidence.p_value,
        "calibration_size": evidence.calibration_size,
        "model": evidence.model.model_dump(mode="json"),
        "method": explained.method,
        "agreement": explained.agreement,
        "missing": explained.missing,
        "artifact_score": explained.artifact_score,
        "float_score": explained.float_score,
        "columns": [_plain(column) for column in explained.columns],
        "course": [
            {
                "end": rfc3339(moment.end_s),
                "scored": moment.scored,
                "score": moment.score,
                "p_value": moment.p_value,
                "values": dict(zip(names, (float(v) for v in moment.values), strict=True)),
            }
            for moment in explained.course
        ],
    }


def _plain(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "value": column.value,
        "usual": list(column.usual),
        "share": column.share,
        "gradient": column.gradient,
        "gradient_share": column.gradient_share,
        "behind": None if column.behind is None else column.behind.model_dump(mode="json"),
    }


def print_explanation(explained: Explanation) -> None:
    """Print an explanation for whoever has to decide what to do about an alert."""
    console = _console()
    evidence = explained.evidence
    console.print(Text(evidence.alert, style="bold"))
    model, length_s = evidence.model, evidence.end_s - evidence.start_s
    _print_below(console, summarise(evidence.entity, evidence.reasons))
    _print_below(console, f"{_clock(evidence.end_s)}, a window of {length_s:g} s")
    known = f"p-value {evidence.p_value:.2g} by {evidence.calibration_size} benign scores"
    _print_below(console, f"score {_score(evidence)}; {known}")
    _print_below(console, f"scored by release {model.version} of {model.task} ({model.digest})")
    console.print()
    _print_columns(console, explained)
    console.print()
    for sentence in verdict(explained):
        console.print(Text(sentence))
    console.print()
    _print_course(console, explained)


def verdict(explained: Explanation) -> list[str]:
    """What the attributions say together, in sentences."""
    first, leader = _called(explained.leading_share), explained.leading_gradient
    if leader is None:
        why = "Gradients do not apply" if explained.method == "ensemble" else "No gradients"
        return [shown(f"{why}: {explained.missing}."), f"By its share, look at {first} first."]
    second = _called(leader)
    lines = {
        "agree": [f"Both agree on {first}: that is where the error is, and what raised the score. Look there first."],
        "partly": [
            f"They agree in part: the error is largest in {first}, and {second} raised the score most; each is among "
            f"the first three of both. Look at {first} first, and at {second} next.",
        ],
        "differ": [
            f"They differ: the error is largest in {first}, but {second} raised the score most. The model makes each "
            f"column out of all of them: a wrong {second} spoils what it expects of an honest {first}. Look at "
            f"{second} first, and at {first} next.",
        ],
    }[explained.agreement or "differ"]
    if explained.is_rough:
        lines.append(
            f"The gradients are rough here: by the float weights the errors come to {explained.float_score:.3g}, as "
            f"they were scored to {explained.artifact_score:.3g} (the model is rounded, and its answers are bounded to "
            "what was seen here)."
        )
    return lines


def _print_columns(console: Console, explained: Explanation) -> None:
    columns, rest = _chosen(explained.columns)
    has_gradients = explained.method == "gradients"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  column", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("usually", justify="right")
    table.add_column("error", justify="right", no_wrap=True)
    if has_gradients:
        table.add_column("gradient", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in columns:
        leads = column in (explained.leading_share, explained.leading_gradient)
        cells = [
            f"  {_name(column)}",
            value_text(column.name, column.value),
            range_text(column.name, *column.usual),
            f"{100 * column.share:.1f} %",
            *([f"{100 * (column.gradient_share or 0.0):+.1f} %"] if has_gradients else []),
            "█" * round(BAR_CELLS * column.share),
        ]
        table.add_row(*(Text(cell, style="bold" if leads else "") for cell in cells))
        if column.behind is not None:
            behind = column.behind
            name = shown(behind.name)
            said = f"    {name} {value_text(name, behind.value)} (usual {range_text(name, *behind.usual)})"
            table.add_row(Text(said, style="dim"))
    console.print(table)
    if rest:
        part = 100 * sum(column.share for column in rest)
        _print_below(console, f"{len(rest)} more columns, together {part:.1f} % of the error", "dim")
    says = "error: the column's exact part of the score"
    if has_gradients:
        says += "; gradient: what its values added to the score, or took from it"
    _print_below(console, says, "dim")


def _chosen(columns: Sequence[Column]) -> tuple[list[Column], list[Column]]:
    """What the table shows, in the order of the shares, and what it sums up."""
    weight = {column.name: max(column.share, abs(column.gradient_share or 0.0)) for column in columns}
    ranked = sorted(columns, key=lambda column: -weight[column.name])
    named = {c.name for i, c in enumerate(ranked[:SHOWN_MAX]) if i < COURSE_COLUMNS or weight[c.name] >= SHOWN_MIN}
    return [c for c in columns if c.name in named], [c for c in columns if c.name not in named]


def _print_course(console: Console, explained: Explanation) -> None:
    course = _with_gaps(explained)
    windows = explained.course
    names = explained.evidence.schema.columns
    ranked = list(explained.columns[:COURSE_COLUMNS])
    leader = explained.leading_gradient
    if leader is not None and leader not in ranked:
        ranked[-1] = leader
    first, last = _clock(windows[0].end_s), _clock(windows[-1].end_s)
    ends = f"{first.removesuffix(' UTC')} to {last[11:] if first[:10] == last[:10] else last}"
    console.print(Text(f"{len(windows)} windows, {ends}; the alert rests on ▲", style="dim"))
    known = [moment.score for moment in windows if moment.score is not None]
    scores = [None if moment is None else moment.score for moment in course]
    rows = [("score", _spark(scores), f"{min(known):.3g} to {max(known):.3g}")]
    for column in ranked:
        place = names.index(column.name)
        values = [None if moment is None else float(moment.values[place]) for moment in course]
        seen = [value for value in values if value is not None]
        rows.append((_called(column), _spark(values), range_text(column.name, min(seen), max(seen))))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold", max_width=NAME_CELLS)
    table.add_column(overflow="fold", min_width=len(course))
    table.add_column()
    for name, line, extent in rows:
        table.add_row(Text(f"  {name}"), Text(line), Text(extent))
    table.add_row(Text(""), Text(_mark(course)), Text(""))
    console.print(table)


def _with_gaps(explained: Explanation) -> list[Moment | None]:
    """The course with a gap wherever windows are missing between two that are known."""
    length_s = explained.evidence.end_s - explained.evidence.start_s
    found: list[Moment | None] = []
    last_s = explained.course[0].end_s
    for moment in explained.course:
        if moment.end_s - last_s > 1.5 * length_s:
            found.append(None)
        found.append(moment)
        last_s = moment.end_s
    return found


def _spark(values: Sequence[float | None]) -> str:
    """One block a value, from the lowest to the highest; a gap where nothing is known."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    step = (high - low) / (len(LEVELS) - 1)
    return "".join(" " if v is None else LEVELS[round((v - low) / step) if step > 0 else 0] for v in values)


def _mark(course: Sequence[Moment | None]) -> str:
    return "".join("▲" if moment is not None and moment.scored else " " for moment in course)


def _name(column: Column) -> str:
    return shown(describe(column.name)[0])


def _called(column: Column) -> str:
    """A hashed column by the name behind it, where that is known."""
    return _name(column) if column.behind is None else shown(column.behind.name)


def _clock(event_s: float) -> str:
    text = rfc3339(event_s)
    return f"{text[:10]} {text[11:19]} UTC"


def _score(evidence: Evidence) -> str:
    """``1.67, 3.2 times the threshold``."""
    times = evidence.score / evidence.threshold if evidence.threshold > 0 else 0.0
    return f"{evidence.score:.3g}" + (f", {times:.1f} times the threshold" if times else "")


def _console() -> Console:
    return Console(highlight=False)


def _print_below(console: Console, text: str, style: str = "") -> None:
    """A paragraph that stays indented where it is broken."""
    console.print(Padding(Text(shown(text), style=style), (0, 0, 0, 2)))


def shown(text: str) -> str:
    """Text that may come from the network: it must not steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
