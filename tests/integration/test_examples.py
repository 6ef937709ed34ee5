"""Every script in examples/, as a user runs it: in a process of its own, from another directory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.py"), EXAMPLES / "notebook" / "analysis.py"])
PRINTED = {
    "analysis.py": r"on the moon 246\.9 m\nbest angle 50 degrees, as a Throw",
    "asyncio_tasks.py": r"^9592 primes below 100000",
    "dask_array.py": r"sum of squares: (\d+), should be \1\n",
    "demo.py": r"32032 likelihoods on \d+ cores",
    "dynesty_evidence.py": r"ln\(evidence\) = -[45]\.\d+ \+- 0\.\d+, should be -4\.61",
    "emcee_posterior.py": r"mean .*\nvariance",
    "lammps_melt.py": r"relative difference of the energies: (\d\.\de-(0[7-9]|1\d)|0\.0e\+00)",
    "omp4py_pi.py": r"pi = 3\.1\d+, counted by 4 threads",
    "pipefunc_pipeline.py": r"one executor: +z = \[2, 5, 10\]\none executor per output: +z = \[2, 5, 10\]",
    "scipy_minimum.py": r"at \[1\. 1\. 1\.\]",
}

# Seconds as a rule, but they use all cores, and the machine may be busy with other things.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def script_parameter(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.mpi] if path.stem == "lammps_melt" else [])


@pytest.mark.parametrize("path", [script_parameter(path) for path in SCRIPTS])
def test_a_script_prints_its_result(path: Path, tmp_path: Path) -> None:
    if path.stem == "lammps_melt":
        pytest.importorskip("pylammpsmpi", reason="pylammpsmpi needs Python 3.11")
    # An unclosed socket or file would be printed.
    command = [sys.executable, "-W", "error::ResourceWarning", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(PRINTED[path.name], done.stdout), done.stdout
    assert not list(tmp_path.iterdir())
