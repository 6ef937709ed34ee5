"""A cache directory into which other users of the machine can write."""

from __future__ import annotations

import os
import pickle
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tasks

from conftest import STRANGER, needs_owners, root_only
from executorlib import SingleNodeExecutor, get_cache_data
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_trust import VARIABLE
from executorlib.standalone.hdf import dump, get_future_from_cache, get_output, load

pytestmark = [pytest.mark.faults, needs_owners]


class Canary:
    """Leaves a directory where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    path = tmp_path / "canary"
    yield Canary(path)
    assert not path.exists(), "a foreign file was unpickled"


def put(path: Path, canary: Canary, by_hdf5: bool = False) -> Path:
    """A file that runs the canary, whichever of its values is looked at."""
    path.parent.mkdir(exist_ok=True)
    if by_hdf5:
        with h5py.File(path, "w") as file:
            for name in ("function", "input_args", "output"):
                file.create_dataset(name, data=np.frombuffer(pickle.dumps(canary), "u1"), track_times=True)
    else:
        dump(str(path), {"fn": canary, "args": canary, "output": canary, "runtime": canary})
    return path


def assert_refused(path: Path, words: str) -> None:
    for look in (get_output, load):
        with pytest.raises(CacheFileError, match=words):
            look(str(path))
    with pytest.warns(RuntimeWarning, match=words):
        assert get_cache_data(str(path.parent)) == []
    with pytest.raises(CacheFileError, match=words):
        get_future_from_cache(str(path.parent), path.name.removesuffix("_o.h5")).result(10)


@root_only
@pytest.mark.parametrize("by_hdf5", [False, True])
def test_a_file_of_another_user_is_not_unpickled(tmp_path: Path, canary: Canary, by_hdf5: bool) -> None:
    path = put(tmp_path / "cache" / "key_o.h5", canary, by_hdf5)
    os.chown(path, STRANGER, STRANGER)
    assert_refused(path, f"belongs to the user {STRANGER}.*{VARIABLE}")


@root_only
def test_the_call_is_run_in_spite_of_a_planted_result(tmp_path: Path, canary: Canary) -> None:
    cache = tmp_path / "cache"
    path = put(cache / "key_o.h5", canary)
    os.chown(path, STRANGER, STRANGER)
    cache.chmod(0o777)
    resources = {"cache_key": "key", "cache_directory": str(cache)}
    with SingleNodeExecutor(max_workers=1) as executor, pytest.warns(RuntimeWarning, match="belongs to the user"):
        assert executor.submit(tasks.add, 1, 2, resource_dict=resources).result(30) == 3
    assert os.stat(path).st_uid == os.geteuid(), "our result stands in its place"
    assert get_output(str(path)) == (True, True, 3)


def test_a_file_that_everybody_may_write_is_not_unpickled(tmp_path: Path, canary: Canary) -> None:
    path = put(tmp_path / "cache" / "key_o.h5", canary)
    path.chmod(0o666)
    assert_refused(path, "everybody may write to it")


def test_a_group_may_share_its_files(tmp_path: Path) -> None:
    path = tmp_path / "key_o.h5"
    dump(str(path), {"fn": abs, "args": (1,), "output": 1})
    path.chmod(0o664)
    assert get_output(str(path)) == (True, True, 1)


@root_only
@pytest.mark.parametrize("owners", [str(STRANGER), f"no_such_user, {STRANGER}", "*"])
def test_owners_that_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owners: str) -> None:
    path = tmp_path / "key_o.h5"
    dump(str(path), {"fn": abs, "args": (1,), "output": 1})
    os.chown(path, STRANGER, STRANGER)
    monkeypatch.setenv(VARIABLE, owners)
    assert get_output(str(path)) == (True, True, 1)
    monkeypatch.setenv(VARIABLE, "12345")
    with pytest.raises(CacheFileError):
        get_output(str(path))


# Links


def test_a_link_in_a_directory_where_others_may_write_is_not_followed(tmp_path: Path, canary: Canary) -> None:
    """It could lead to any file of this user, such as one that came with a mail."""
    attachment = put(tmp_path / "mail" / "data_o.h5", canary)
    cache = tmp_path / "cache"
    cache.mkdir()
    link = cache / "key_o.h5"
    link.symlink_to(attachment)
    cache.chmod(0o1777)
    assert_refused(link, "symbolic link")


@root_only
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, canary: Canary) -> None:
    attachment = put(tmp_path / "mail" / "data_o.h5", canary)
    cache = tmp_path / "cache"
    cache.mkdir()
    link = cache / "key_o.h5"
    link.symlink_to(attachment)
    os.lchown(link, STRANGER, STRANGER)
    assert_refused(link, "symbolic link")


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    dump(str(store / "object"), {"fn": abs, "args": (1,), "output": 1})
    (tmp_path / "cache").mkdir(mode=0o755)
    (tmp_path / "cache" / "key_o.h5").symlink_to(store / "object")
    assert get_output(str(tmp_path / "cache" / "key_o.h5")) == (True, True, 1)


def test_a_result_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    victim = tmp_path / "precious"
    victim.write_text("mine")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "key_o.h5").symlink_to(victim)
    (cache / "dangling_o.h5").symlink_to(tmp_path / "made by others")
    cache.chmod(0o1777)
    with SingleNodeExecutor(max_workers=1) as executor, warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for key in ("key", "dangling"):
            resources = {"cache_key": key, "cache_directory": str(cache)}
            assert executor.submit(tasks.add, 1, 2, resource_dict=resources).result(30) == 3
    assert victim.read_text() == "mine"
    assert not (tmp_path / "made by others").exists()
    assert not (cache / "key_o.h5").is_symlink()


def test_a_pipe_or_a_device_in_the_place_of_a_result_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe_o.h5")
    (tmp_path / "folder_o.h5").mkdir()
    start = time.monotonic()
    for name in ("pipe_o.h5", "folder_o.h5"):
        with pytest.raises(CacheFileError, match="not a regular file"):
            get_output(str(tmp_path / name))
    assert time.monotonic() - start < 5


@root_only
def test_an_alias_of_another_user_is_not_believed(tmp_path: Path) -> None:
    """It would answer one call with the result of another."""
    from executorlib.standalone.cache_paths import CachePaths, aliased_output, remember_alias

    paths = CachePaths.of(tmp_path, "key")
    dump(paths.output, {"fn": abs, "args": (1,), "output": 1})
    remember_alias(paths, "alias")
    assert aliased_output(tmp_path, "alias") == paths
    for link in (tmp_path / ".executorlib-moved").iterdir():
        os.lchown(link, STRANGER, STRANGER)
    assert aliased_output(tmp_path, "alias") is None


# What we write ourselves


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_directories_and_files_are_for_their_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cache = tmp_path / "not there" / "cache"
        with SingleNodeExecutor(max_workers=1, cache_directory=str(cache)) as executor:
            assert executor.submit(tasks.add, 1, 2).result(30) == 3
            assert executor.submit(tasks.add, 3, resource_dict={"cache_key": "a/b"}).result(30) == 3
    finally:
        os.umask(before)
    for path in [tmp_path / "not there", *(tmp_path / "not there").rglob("*")]:
        if not path.is_symlink():
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_permissions_of_a_directory_that_is_there_stay(tmp_path: Path) -> None:
    cache = tmp_path / "shared"
    cache.mkdir()
    cache.chmod(0o2770)
    with SingleNodeExecutor(max_workers=1, cache_directory=str(cache)) as executor:
        assert executor.submit(tasks.add, 1, 2).result(30) == 3
    assert stat.S_IMODE(cache.stat().st_mode) == 0o2770
