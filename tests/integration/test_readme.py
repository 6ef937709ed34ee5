"""The Python blocks of the README and of the documentation run, and print what they say they print."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pytest

from executorlib.standalone import errors
from executorlib.standalone.resources import ResourceDict

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A block, and the block of what it prints, where one follows.
_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_RANKS = re.compile(r"""\"cores\": [2-9]""")
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")

pytestmark = pytest.mark.integration


class Block(NamedTuple):
    page: str
    code: str
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(page.name, match["code"], match["printed"])


BLOCKS = [
    pytest.param(block, id=f"{block.page}-{number}", marks=[pytest.mark.mpi] if _RANKS.search(block.code) else [])
    for page in PAGES
    for number, block in enumerate(blocks(page), start=1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_and_prints_what_it_says(block: Block, tmp_path: Path) -> None:
    if "pylammpsmpi" in block.code:
        pytest.importorskip("pylammpsmpi", reason="pylammpsmpi needs Python 3.11")
    script = tmp_path / "block.py"
    script.write_text(block.code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    if block.printed is not None:
        assert done.stdout == block.printed


def test_every_python_block_is_found() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("```python\n") == len(list(blocks(page))), page


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "resources.md"], ids=["README", "resources"])
def test_the_table_has_every_resource(page: Path) -> None:
    named = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(get_type_hints(ResourceDict)) <= set(named)


def test_links_lead_somewhere() -> None:
    dead = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))
        if not (page.parent / target).exists()
    ]
    assert not dead


def test_every_exception_has_an_entry_in_troubleshooting() -> None:
    entries = re.findall(
        r"^### (\w+)$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__ and not name.startswith("_")
    ]
    assert set(classes) - set(entries) == {"ExecutorlibSocketError", "ExplainedError"}  # the bases of the others


def test_the_figures_are_those_that_were_measured() -> None:
    """The tables of the README and of the results come from the file of all measurements."""
    folder = ROOT / "benchmarks"
    program = (
        "import pathlib, sys, report\n"
        "table = report.from_json(pathlib.Path('results/results.json').read_text())\n"
        "sys.stdout.write({}(table))\n"
    )

    def text(maker: str) -> str:
        command = [sys.executable, "-c", program.format(maker)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=True).stdout

    assert text("report.as_summary") in (ROOT / "README.md").read_text(encoding="utf-8")
    assert text("report.as_markdown") == (folder / "results" / "results.md").read_text(encoding="utf-8")
