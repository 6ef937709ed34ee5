"""One measurement in a process of its own, which leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import environment_of, variables

_CASES = Path(__file__).resolve().parent / "cases"
_MARK = "EXECUTORLIB_BENCHMARK"
# Of all measurements, and removed when the program ends: where thousands of files were deleted a moment ago, ext4 is
# several times slower to make new ones, and that would be measured.
_FOLDER = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure, or why there is none."""

    value: float | None
    failure: str | None = None


def measure(case: str, library: str, arguments: dict[str, Any], limit: float) -> Outcome:
    """Run a case with a library's Python, and end all processes that it leaves."""
    command = [str(environment_of(library).python), str(_CASES / "one.py"), case, library, json.dumps(arguments)]
    mark = uuid.uuid4().hex
    directory = tempfile.mkdtemp(dir=_FOLDER.name)
    out, err = Path(directory) / "out", Path(directory) / "err"
    work = Path(directory) / "work"
    work.mkdir()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=_variables(library, mark),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Outcome(None, "timed out")
        finally:
            process.kill()
            process.wait()
            _end_remains(mark, work.resolve())
    if code:
        lines = err.read_text(errors="replace").replace(str(work), ".").strip().splitlines()
        return Outcome(None, f"failed: {lines[-1][:200]}" if lines else f"failed: exit code {code}")
    return Outcome(float(json.loads(out.read_text().splitlines()[-1])["value"]))


def _variables(library: str, mark: str) -> dict[str, str]:
    """The environment is activated: some libraries look for their programs on the path."""
    directory = environment_of(library).directory
    path = f"{directory / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return variables(PATH=path, VIRTUAL_ENV=str(directory), PYTHONPATH=str(_CASES), **{_MARK: mark})


def _end_remains(mark: str, work: Path) -> None:
    """End what a measurement has left, whatever sessions and groups it has made.

    Its processes have inherited a mark; those that write over their environment are in its directory.
    """
    entry = f"{_MARK}={mark}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            marked = entry in (directory / "environ").read_bytes().split(b"\0")
            if marked or Path(os.readlink(directory / "cwd")).is_relative_to(work):
                os.kill(int(directory.name), signal.SIGKILL)
        except OSError:  # It has ended, or belongs to someone else.
            pass
