"""What is published: the wheel and the sdist, in an environment that has nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = """
from concurrent.futures import Executor, Future

from executorlib import BaseExecutor, SingleNodeExecutor, get_cache_data, get_item_from_future
from executorlib.api import TestClusterExecutor
from executorlib.standalone.errors import WorkerDiedError
from executorlib.standalone.resources import ResourceDict

resources: ResourceDict = {"threads_per_core": 2}


def run(exe: BaseExecutor) -> list[int]:
    future: Future[int] = exe.submit(pow, 2, 3, resource_dict={"cores": 1})
    return [future.result(), *exe.map(abs, [1, -2])]


def main() -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True, restart_limit=1) as exe:
        standard: Executor = exe
        print(run(exe), exe.max_workers, standard.submit(str, 1).result())


if __name__ == "__main__":
    main()
"""
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180), pytest.mark.xdist_group("package")]


def call(*command: object, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    build = pytest.importorskip("build", reason="builds the packages; in executorlib[test]")
    folder = tmp_path_factory.mktemp("dist")
    code = f"import sys; sys.path.append({str(Path(build.__file__).parents[1])!r}); from build.__main__ import main; "
    call(sys.executable, "-c", f"{code} main([{str(ROOT)!r}, '-o', {str(folder)!r}])")
    return folder


def environment(folder: Path, package: Path) -> Path:
    """The interpreter of a new environment with a package in it."""
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check", package)
    return python


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_a_package_works_in_an_empty_environment(dist: Path, tmp_path: Path, pattern: str) -> None:
    (package,) = dist.glob(pattern)
    python = environment(tmp_path / "env", package)
    script = tmp_path / "user.py"
    script.write_text(USER)
    assert call(python, script, cwd=tmp_path) == "[8, 1, 2] 2 1\n"
    command = python.with_name("executorlib")
    assert call(command, "doctor", "single", cwd=tmp_path).startswith("works  single")
    if pattern == "*.whl":
        mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "mypy"]
        assert "no issues found" in call(*mypy, "--python-executable", python, script, cwd=tmp_path)


def test_the_wheel_has_what_belongs_to_it(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "executorlib/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"executorlib"}
