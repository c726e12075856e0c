"""Write the published JSON Schema of the alert: ``python schemas/publish.py``."""

from __future__ import annotations

import json
from pathlib import Path

from vedette_schemas import alert


def main() -> None:
    """Write ``alert.schema.json`` beside this file."""
    target = Path(__file__).with_name("alert.schema.json")
    target.write_text(json.dumps(alert.json_schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
