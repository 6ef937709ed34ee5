"""The notebooks run, and print what they are stored with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_fixtures import FIXTURES, AllocationOf

nbformat = pytest.importorskip("nbformat", reason="reads notebooks; in executorlib[test]")
pytest.importorskip("nbclient", reason="runs notebooks; in executorlib[test]")

slurm_conf, in_slurm, shared_allocation, allocation, *_ = FIXTURES
FOLDER = Path(__file__).parents[2] / "notebooks"
BATCH_JOBS, ALLOCATION = FOLDER / "2-hpc-cluster.ipynb", FOLDER / "3-hpc-job.ipynb"
ANYWHERE = sorted(set(FOLDER.glob("*.ipynb")) - {BATCH_JOBS, ALLOCATION})
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


def check(path: Path, tmp_path: Path) -> None:
    """Run a notebook; it must print what is stored in it."""
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


@pytest.mark.parametrize("path", ANYWHERE, ids=[path.stem for path in ANYWHERE])
def test_a_notebook_prints_what_is_stored(path: Path, tmp_path: Path) -> None:
    check(path, tmp_path)


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_the_notebook_of_batch_jobs(in_slurm: None, tmp_path: Path) -> None:
    check(BATCH_JOBS, tmp_path)


@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
def test_the_notebook_of_an_allocation(allocation: AllocationOf, tmp_path: Path) -> None:
    check(ALLOCATION, tmp_path)


def test_there_are_notebooks() -> None:
    assert len(ANYWHERE) >= 3
