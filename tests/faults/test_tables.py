"""What docs/reliability.md, docs/security.md and docs/troubleshooting.md name, and what names them, must be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from executorlib.standalone import cache_watch  # noqa: F401  # its errors too
from executorlib.standalone.errors import ExplainedError

TESTS = Path(__file__).parent.parent
DOCS = TESTS.parent / "docs"


@pytest.mark.faults
@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_the_tests_of_a_table_exist(page: str) -> None:
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", (DOCS / page).read_text()))
    assert named
    files = {path.name for path in TESTS.rglob("test_*.py")}
    functions = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert named - files - functions == set()


@pytest.mark.faults
def test_an_error_that_names_troubleshooting_has_its_entry() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    named = [error.__name__ for error in ExplainedError.__subclasses__()]
    assert len(named) >= 6
    assert [name for name in named if f"\n### {name}\n" not in page] == []
