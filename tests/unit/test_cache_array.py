"""An element of an array of jobs, without a queueing system."""

from __future__ import annotations

from pathlib import Path

import pytest

from executorlib.backend.cache_array import Element


def test_an_element_whose_task_was_called_off_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper has begun it and is gone; the program has taken the task away. There is nothing to wait for."""
    folder = tmp_path / "array"
    folder.mkdir(mode=0o700)
    listing = folder / "tasks"
    listing.write_bytes(b"\0".join(str(tmp_path / f"{name}_i.h5").encode() for name in ("first", "second")))
    (folder / "1.begun").touch()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setattr("executorlib.backend.cache_array.time.sleep", lambda seconds: pytest.fail("it waits"))
    assert Element(str(listing)).run() == 0
