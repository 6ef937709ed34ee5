"""Changed messages and files: they are refused or do no harm, and nothing in them is unpickled.

FUZZ_INPUTS is the number of inputs in all; ``make test-faults`` takes 100,000. A failure names the seed.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

INPUTS = int(os.environ.get("FUZZ_INPUTS", "5000"))
# Of the inputs, so many are for each reader. The HDF5 library is slow.
SHARES = {"wire": 0.4, "door": 0.2, "cache": 0.3, "hdf5": 0.1}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", SHARES)
def test_fuzz(kind: str, tmp_path: Path, script_environment: dict[str, str]) -> None:
    if kind == "hdf5":
        pytest.importorskip("h5py")
    seed = os.environ.get("FUZZ_SEED", str(secrets.randbelow(1 << 32)))
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            str(Path(__file__).with_name("fuzzing.py")),
            kind,
            seed,
            str(round(INPUTS * SHARES[kind])),
            str(tmp_path),
        ],
        env=script_environment,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert not (tmp_path / "canary").exists(), f"seed {seed}"
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr}"
    assert "Error" in done.stdout, "some are refused"
    print(done.stdout)
