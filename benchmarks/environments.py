"""One virtual environment for each library, all made by the same command."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rows import OURS

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"

# The libraries of the standard library share an environment without any other.
_REQUIREMENTS = {
    OURS: ("numpy", "emcee", "mpi4py", "mpich", "h5py", "pysqa"),
    "published": ("numpy", "emcee", "mpi4py", "mpich", "executorlib[cache,cluster]==1.11.*"),
    "stdlib": ("numpy", "emcee"),
    "loky": ("numpy", "emcee", "loky"),
    "dask": ("numpy", "distributed"),
    "parsl": ("numpy", "parsl"),
}
_SHARED = {"futures": "stdlib", "multiprocessing": "stdlib"}


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a library is installed."""

    name: str

    @property
    def directory(self) -> Path:
        return CACHE / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether it has what it should have, from an earlier run."""
        return _read(self.directory / ".requirements") == self._wanted

    @property
    def _wanted(self) -> str:
        return "\n".join([sys.version, *self._requirements])

    @property
    def _requirements(self) -> tuple[str, ...]:
        """With the Python package of the Flux that is here, which has to be of its version."""
        version = flux_version() if self.name in (OURS, "published") else None
        return (*_REQUIREMENTS[self.name], *([] if version is None else [f"flux-python=={version}", "ply"]))

    def make(self) -> None:
        """Make it where it is missing, and install this library anew where its source has changed."""
        if not self.ready:
            print(f"making the environment of {self.name}", file=sys.stderr, flush=True)
            CACHE.mkdir(exist_ok=True)
            (CACHE / ".gitignore").write_text("*\n")
            _run([sys.executable, "-m", "venv", "--clear", str(self.directory)])
            self._install(*self._requirements)
            (self.directory / ".requirements").write_text(self._wanted)
        if self.name == OURS:
            self._install_source()

    def _install_source(self) -> None:
        """Not editable: that is how users have it, and an editable one is slower to import."""
        digest, stamp = _source_digest(), self.directory / ".source"
        if _read(stamp) != digest:
            print("installing this library from the working tree", file=sys.stderr, flush=True)
            self._install(str(ROOT))
            stamp.write_text(digest)

    def _install(self, *arguments: str) -> None:
        _run([str(self.python), "-m", "pip", "--disable-pip-version-check", "-q", "install", *arguments])

    def versions(self) -> dict[str, str]:
        """The installed packages."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return dict(line.split("==", 1) for line in lines if "==" in line)


@functools.cache
def flux_version() -> str | None:
    """The version of the command ``flux``; None where there is none."""
    try:
        said = subprocess.run(["flux", "version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"commands:\s*(\d+\.\d+\.\d+)", said)
    return found[1] if found is not None else None


def environment_of(library: str) -> Environment:
    return Environment(_SHARED.get(library, library))


def variables(**extra: str) -> dict[str, str]:
    """The environment variables of a measurement: modules are compiled once, as they are for users."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, **extra}


def _run(command: list[str]) -> None:
    """Run a command in silence.

    Raises:
        SystemExit: it failed; what it printed is in the message
    """
    done = subprocess.run(command, env=variables(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted([ROOT / "pyproject.toml", *(ROOT / "src").rglob("*.py")]):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
