"""Write the golden vectors anew: ``python tests/vectors/regenerate.py``.

A change in the files is a change of the wire: it belongs under "Wire" in CHANGELOG.md.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import golden
import refused


@lru_cache(maxsize=1)
def files() -> dict[str, Any]:
    """Name of a file beside this one → what belongs into it."""
    return {
        "messages.json": [
            {
                "name": g.name,
                "message": type(g.message).__name__,
                "encoding": g.encoding,
                "topic": g.topic,
                "type": g.kind,
                "sender": g.sender,
                "hex": g.data().hex(),
            }
            for g in golden.good()
        ],
        "refused.json": [
            {
                "name": b.name,
                "message": b.message.__name__,
                "encoding": b.encoding,
                "type": b.kind,
                "sender": b.sender,
                "hex": b.data.hex(),
                "reason": b.reason,
                "says": b.says,
            }
            for b in refused.bad()
        ],
        "digests.json": golden.digests(),
    }


def main() -> None:
    for name, content in files().items():
        (golden.FOLDER / name).write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
