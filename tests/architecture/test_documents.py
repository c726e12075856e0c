"""The documents say what the code does: messages, topics, settings, help texts, links."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import vedette_schemas
from vedette_schemas import topics
from vedette_schemas.codec import Message

ROOT = Path(__file__).parents[2]
SCHEMAS_README = (ROOT / "schemas" / "README.md").read_text()
# Only what is the project's: caches beside it come and go while tests run.
PAGES = sorted(
    page
    for place in ROOT.iterdir()
    if not place.name.startswith(".")
    for page in (place.rglob("*.md") if place.is_dir() else [place])
    if page.suffix == ".md"
)
SCHEMA_MODULES = [
    import_module(f"vedette_schemas.{m.name}") for m in iter_modules(vedette_schemas.__path__) if m.name != "codec"
]
MESSAGES = {
    name: cls
    for module in SCHEMA_MODULES
    for name, cls in vars(module).items()
    if inspect.isclass(cls) and issubclass(cls, Message) and cls is not Message
}
ENVELOPE_TYPES = {value for module in SCHEMA_MODULES for name, value in vars(module).items() if name.endswith("_TYPE")}


def rows_of(page: str, first_column: str) -> list[list[str]]:
    """The rows of the table whose header starts with `first_column`, cells stripped."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


# --- schemas/README.md ---


def test_every_message_is_in_the_table_with_all_its_fields() -> None:
    table = {
        row[0].strip("`"): set(re.findall(r"`([a-z0-9_]+)`", row[2])) for row in rows_of(SCHEMAS_README, "message")
    }
    assert table == {name: set(cls.model_fields) for name, cls in MESSAGES.items()}


def test_every_topic_kind_is_in_the_table() -> None:
    source = inspect.getsource(topics._parse)
    parsed = {kind for case in re.findall(r"case \[(.*?)\]", source) for kind in re.findall(r'"([a-z]+)"', case)}
    structure = {"device", "up", "down", "public"}
    table = {row[0].strip("`") for row in rows_of(SCHEMAS_README, "kind")}
    assert table == parsed - structure


def test_the_topics_table_says_who_may_write_and_read() -> None:
    site = topics.Topics("s")
    fill = {"{id}": "gw-01", "{task}": "network", "{step}": "upload", "{gid}": "0", "{file}": "timestamp_json",
            "{sha256}": "ab" * 32, "{chunk}": "0", "{name}": "score", "{alert}": "al-1",
            "{token}": "enrol-1"}  # fmt: skip
    people = {role.value: role.value for role in topics.Role} | {"device": "gw-01", "bootstrap": "enrol-1"}
    for kind, pattern, writers, readers, *_ in rows_of(SCHEMAS_README, "kind"):
        for template in re.findall(r"`([^`]+)`", pattern):
            topic = f"{site.root}/{template}"
            for placeholder, value in fill.items():
                topic = topic.replace(placeholder, value)
            assert site.parse(topic).kind == kind.strip("`")
            for role, person in people.items():
                may_write = site.may_publish(topics.Role(role), person, topic)
                may_read = site.may_receive(topics.Role(role), person, topic)
                # rpc goes both ways: each side writes one of the two topics.
                direction = template.split("/")[2] if kind == "`rpc`" else ""
                expected_write = (
                    (role in writers)
                    and not (direction == "up" and role != "device")
                    and not (direction == "down" and role == "device")
                )
                expected_read = (
                    (role in readers)
                    and not (direction == "up" and role == "device")
                    and not (direction == "down" and role != "device")
                )
                assert (may_write, may_read) == (expected_write, expected_read), (template, role)


def test_every_envelope_type_is_in_the_table_of_topics() -> None:
    assert {value for value in ENVELOPE_TYPES if f"`{value}`" not in SCHEMAS_README} == set()


# --- links ---


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(aim), f"{target}: no such heading"


def test_every_page_that_the_code_names_is_there() -> None:
    lost = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("schemas", "core", "broker", "device_node", "aggregator_node", "cli", "bench", "grafana")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"[\w./-]+\.md\b", path.read_text())
        if not ((ROOT / name).is_file() or any((parent / name).is_file() for parent in path.parents[:3]))
    ]
    assert lost == []


def test_every_decision_is_linked_and_has_its_costs() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert len(decisions) >= 8
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    assert len({page.name[:4] for page in decisions}) == len(decisions), "two decisions of one number"
    for page in decisions:
        assert re.match(r"[0-9]{4}-[a-z]", page.name)
        assert f"({page.name})" in index
        text = page.read_text()
        for heading in ("Context", "Decision", "Consequences"):
            assert f"## {heading}" in text, f"{page.name} has no {heading}"
        assert "**Costs**" in text, f"{page.name} names no negative consequence"
        assert len(text.split()) < 600, f"{page.name} is longer than a page"


# --- help texts ---


def console_blocks(page: Path) -> list[tuple[str, str]]:
    """(command, expected output) of every ``console`` block that shows a help text."""
    blocks = re.findall(
        r"^```console\n\$ (vedette[^\n]*--help)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return [(command, output) for command, output in blocks]


def test_the_readme_shows_the_help_text_as_it_is() -> None:
    blocks = console_blocks(ROOT / "README.md")
    program = Path(sys.executable).with_name("vedette")
    assert "vedette --help" in {command for command, _ in blocks}, (
        "README.md has no block ```console that starts with `$ vedette --help`"
    )
    for command, expected in blocks:
        ran = subprocess.run(
            [str(program), *command.split()[1:]],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"},
        )
        assert ran.returncode == 0, ran.stderr
        found = "\n".join(line.rstrip() for line in ran.stdout.strip().splitlines())
        wanted = "\n".join(line.rstrip() for line in expected.strip().splitlines())
        assert found == wanted, f"README.md, `{command}`: the program prints\n{found}"
