"""The messages in the table of incidents of `docs/airflow-switch.md` are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs/airflow-switch.md").read_text().partition("## Incidents")[2]
INCIDENTS = re.findall(r"^\| ([^|]*) \| [^|]* \| [^|]* \|$", TABLE, re.MULTILINE)[2:]
NOT_OURS = ("Task ", "airflow ", "Executor ")
VARIABLE = re.compile(r"…|\d[\d.]*|celery@[A-Z]+|'\w+'|URL|the tables of Celery|[:,;]|\[\w+\]")
SOURCE = re.sub(r'"\s*f?"', "", "".join(path.read_text() for path in (ROOT / "src/celeriac").rglob("*.py")))
"""The code. A literal in several parts is joined."""


def fragments(text: str) -> list[str]:
    """Return the fixed parts of the messages in a cell: words between variable parts."""
    messages = [message for message in re.findall(r"`([^`]+)`", text) if not message.startswith(NOT_OURS)]
    parts = [part.strip(" ()") for message in messages for part in VARIABLE.split(message)]
    return [part for part in parts if " " in part]


@pytest.mark.parametrize("incident", INCIDENTS)
def test_each_message_is_in_the_code(incident):
    for fragment in fragments(incident):
        assert fragment in SOURCE, fragment


def test_messages_are_found():
    assert len(INCIDENTS) > 15
    assert sum(bool(fragments(incident)) for incident in INCIDENTS) > 12
