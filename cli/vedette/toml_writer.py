"""Writes settings files; reading them is the standard library's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any


def dumps(tables: Mapping[str, Any]) -> str:
    """Nested mappings as TOML: scalars first, then tables, then arrays of tables; None is left out."""
    return "\n".join(_table((), tables)).strip() + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    plain = {k: v for k, v in table.items() if v is not None and not _nested(v)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in plain.items()]
    for key, value in table.items():
        below = (*path, _key(key))
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(below)}]", *_table(below, value)]
        elif _nested(value):
            for item in value:
                lines += ["", f"[[{'.'.join(below)}]]", *_table(below, item)]
    return lines


def _nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return _is_list(value) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, PurePath)):
        return _string(str(value))
    if _is_list(value):
        return f"[{', '.join(_value(v) for v in value)}]"
    raise TypeError(f"found a {type(value).__name__}, expected a TOML value")


def _string(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, and DEL needs one too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
