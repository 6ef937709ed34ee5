"""The tables of docs/reliability.md and docs/security.md name tests: they must be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
