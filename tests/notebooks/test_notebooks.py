"""The notebooks run, and print what they are stored with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="reads notebooks; in executorlib[test]")
pytest.importorskip("nbclient", reason="runs notebooks; in executorlib[test]")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=150, resources={"metadata": {"path": "."}}).execute()
nbformat.write(notebook, sys.argv[2])
"""
# A number of milliseconds, or a process, is another each time.
_CHANGES = re.compile(r"\d+(?= ms)|(?<=pid )\d+")

pytestmark = [pytest.mark.integration, pytest.mark.mpi, pytest.mark.timeout(180)]


def printed(notebook: Any) -> list[str]:
    """What each cell has printed, and the text of its result."""
    found = []
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
        found.append(_CHANGES.sub("N", " ".join("".join(texts).split())))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_prints_what_is_stored(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "new.ipynb"
    # In a process of its own: what it leaves open is not what is tested here.
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(copy)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    stored, new = (nbformat.read(each, as_version=4) for each in (path, copy))
    assert printed(new) == printed(stored)
    for before, after in zip(stored.cells, new.cells, strict=True):
        kinds = [[sorted(each.get("data", {})) for each in cell.get("outputs", [])] for cell in (before, after)]
        assert [kind for kind in kinds[0] if kind] == [kind for kind in kinds[1] if kind], "pictures are stored too"


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3
