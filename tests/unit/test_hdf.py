"""The HDF5 store: what is written is read again, by us and by HDF5; what is damaged says so; nothing is half done."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Eventually, Script
from executorlib.standalone import cache_file, hdf, hdf5_image, temporary_file
from executorlib.standalone.errors import TaskRemovedError
from executorlib.standalone.hdf import CacheFileError

EVERYTHING = {
    "fn": math.hypot,
    "args": (3, [4.0]),
    "kwargs": {"c": None},
    "output": {"x": [1, 2]},
    "resource_dict": {"cores": 2},
    "runtime": 0.25,
    "queue_id": 17,
    "error_log_file": "error.log",
}
NAMES = {"fn": "function", "args": "input_args", "kwargs": "input_kwargs"}


class Loud:
    """Says in a file that it was unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _note, (self.path,)


class Raising:
    """Cannot be unpickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def _note(path: str) -> str:
    with open(path, "a") as file:
        file.write("x")
    return "unpickled"


def _raise(error: BaseException) -> None:
    raise error


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cache" / "call_o.h5")


def write_with_h5py(path: str, compression: str | None = "gzip", **datasets: Any) -> None:
    """A file as executorlib 1.11 makes it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with h5py.File(path, "a") as file:
        for name, value in datasets.items():
            file.create_dataset(name, data=np.frombuffer(pickle.dumps(value), np.uint8), compression=compression)


# What is written is read


def test_everything_written_is_read_again(path: str) -> None:
    hdf.dump(path, EVERYTHING)
    assert hdf.load(path) == {
        "fn": math.hypot,
        "args": (3, [4.0]),
        "kwargs": {"c": None},
        "resource_dict": {"cores": 2},
        "error_log_file": "error.log",
    }
    assert hdf.get_output(path) == (True, True, {"x": [1, 2]})
    assert hdf.get_runtime(path) == 0.25
    assert hdf.get_queue_id(path) == 17


def test_hdf5_itself_reads_the_file(path: str) -> None:
    hdf.dump(path, EVERYTHING)
    with h5py.File(path, "r") as file:
        assert {name: pickle.loads(dataset[()].tobytes()) for name, dataset in file.items()} == {
            NAMES.get(key, key): value for key, value in EVERYTHING.items()
        }
        assert {dataset.dtype for dataset in file.values()} == {np.dtype("uint8")}


def test_hdf5_itself_can_add_to_the_file(path: str) -> None:
    hdf.dump(path, {"fn": math.hypot, "args": (3, 4)})
    write_with_h5py(path, output=5.0, queue_id=3, runtime=0.1, error_log_file=None, resource_dict={})
    assert hdf.get_output(path) == (True, True, 5.0)
    assert hdf.load(path)["args"] == (3, 4)


@pytest.mark.parametrize("compression", ["gzip", None])
def test_files_of_the_hdf5_library_are_read(path: str, compression: str | None) -> None:
    write_with_h5py(path, compression, function=math.hypot, output=np.arange(10000.0), queue_id=5)
    np.testing.assert_array_equal(hdf.get_output(path)[2], np.arange(10000.0))
    assert hdf.get_queue_id(path) == 5
    assert hdf.load(path) == {"fn": math.hypot, "args": (), "kwargs": {}, "resource_dict": {}}


def test_values_are_added_to_a_file_and_those_it_has_stay(path: str) -> None:
    hdf.dump(path, {"fn": math.hypot, "queue_id": 1})
    hdf.dump(path, {"queue_id": 2, "output": 3})
    assert hdf.get_queue_id(path) == 1
    assert hdf.get_output(path) == (True, True, 3)
    assert hdf.load(path)["fn"] is math.hypot


def test_an_error_is_told_from_a_result(path: str) -> None:
    hdf.dump(path, {"error": ValueError("no")})
    ended, succeeded, error = hdf.get_output(path)
    assert (ended, succeeded) == (True, False)
    assert isinstance(error, ValueError)
    assert error.args == ("no",)


def test_a_file_without_a_result_has_not_ended(path: str) -> None:
    hdf.dump(path, {"fn": math.hypot})
    assert hdf.get_output(path) == (False, False, None)
    assert hdf.get_runtime(path) == 0.0
    assert hdf.get_queue_id(path) is None


def test_none_is_a_result(path: str) -> None:
    hdf.dump(path, {"output": None})
    assert hdf.get_output(path) == (True, True, None)


def test_unknown_keys_are_left_out(path: str) -> None:
    hdf.dump(path, {"output": 1, "colour": "red"})
    assert list(cache_file.read_all(path)) == ["output"]


def test_no_file_name_means_no_file() -> None:
    hdf.dump(None, EVERYTHING)
    assert hdf.get_queue_id(None) is None


def test_what_is_pickled_already_is_stored_as_it_is(path: str) -> None:
    hdf.dump(path, {"output": hdf.Pickled(pickle.dumps([1, 2]))})
    assert hdf.get_output(path) == (True, True, [1, 2])


def test_local_functions_and_lambdas_are_stored(path: str) -> None:
    offset = 3
    hdf.dump(path, {"fn": lambda x: x + offset})
    assert hdf.load(path)["fn"](4) == 7


@pytest.mark.parametrize("size", [1, 1000, 20_000, 3_000_000])
def test_arrays_of_any_size(path: str, size: int) -> None:
    array = np.random.default_rng(1).random(size)
    hdf.dump(path, {"output": [array, array[:1]], "fn": math.hypot})
    first, second = hdf.get_output(path)[2]
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second, array[:1])
    first[0] = 2.0  # writable, as the function returned it
    assert hdf.load(path)["fn"] is math.hypot


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.binary(min_size=1, max_size=50), max_size=16))
def test_any_set_of_datasets_is_a_file_for_hdf5_and_for_us(datasets: dict[str, bytes]) -> None:
    header = hdf5_image.encode_header({name: len(content) for name, content in datasets.items()})
    image = header + b"".join(datasets[name] for name in sorted(datasets))
    spans = hdf5_image.find(image[:4096], len(image))
    assert spans is not None
    assert {name: image[span.offset : span.offset + span.size] for name, span in spans.items()} == datasets
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(4096, False)
    access.set_file_image(image)
    with h5py.File(h5py.h5f.open(b"image", h5py.h5f.ACC_RDONLY, fapl=access)) as file:
        assert {name: dataset[()].tobytes() for name, dataset in file.items()} == datasets


def test_more_datasets_than_the_layout_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        hdf5_image.encode_header({f"d{number}": 1 for number in range(17)})
    with pytest.raises(ValueError, match="at least one byte"):
        hdf5_image.encode_header({"d": 0})


# What is missing or damaged


def test_a_missing_file_is_not_found(path: str) -> None:
    for read in (hdf.load, hdf.get_output, hdf.get_runtime):
        with pytest.raises(FileNotFoundError, match=r"call_o\.h5"):
            read(path)
    assert hdf.get_queue_id(path) is None


def test_a_file_cut_off_anywhere_says_so(path: str) -> None:
    hdf.dump(path, EVERYTHING)
    whole = Path(path).read_bytes()
    for length in range(0, len(whole), 7):
        Path(path).write_bytes(whole[:length])
        with pytest.raises(CacheFileError) as caught:
            hdf.get_output(path)
        assert caught.value.filename == path
        assert path in str(caught.value)


def test_a_file_of_the_hdf5_library_cut_off_anywhere_says_so(path: str) -> None:
    write_with_h5py(path, function=math.hypot, output=list(range(100)))
    whole = Path(path).read_bytes()
    for length in range(0, len(whole), 97):
        Path(path).write_bytes(whole[:length])
        with pytest.raises(CacheFileError):
            hdf.get_output(path)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_does_no_harm(position: int, change: int) -> None:
    header = hdf5_image.encode_header({"function": 30, "output": 5})
    image = bytearray(header + pickle.dumps(math.hypot)[:30].ljust(30, b".") + pickle.dumps(5))
    image[position % len(header)] ^= change
    with open(f"{os.environ['TMPDIR']}/changed_o.h5", "wb") as file:
        file.write(image)
    try:
        result = hdf.get_output(file.name)
    except CacheFileError:
        pass
    else:
        assert result in [(True, True, 5), (False, False, None)]
    finally:
        os.unlink(file.name)


def foreign_text(path: str) -> None:
    Path(path).write_text("This is no HDF5 file.\n" * 500)


def foreign_group(path: str) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("output")


def foreign_numbers(path: str) -> None:
    with h5py.File(path, "w") as file:
        file["output"] = [1.5, 2.5]


def foreign_bytes(path: str) -> None:
    with h5py.File(path, "w") as file:
        file["output"] = np.zeros(10, np.uint8)


def folder(path: str) -> None:
    os.mkdir(path)


@pytest.mark.parametrize("damage", [foreign_text, foreign_group, foreign_numbers, foreign_bytes, folder])
def test_what_is_no_cache_file_says_so(path: str, damage: Any) -> None:
    os.makedirs(os.path.dirname(path))
    damage(path)
    with pytest.raises(CacheFileError, match=r"call_o\.h5"):
        hdf.get_output(path)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read every file")
def test_a_file_that_may_not_be_read_says_so(path: str) -> None:
    hdf.dump(path, {"output": 1})
    os.chmod(path, 0)
    with pytest.raises(CacheFileError, match=r"call_o\.h5"):
        hdf.get_output(path)


@pytest.mark.parametrize("error", [ImportError("gone"), SystemExit(3), ZeroDivisionError()])
def test_a_result_that_cannot_be_unpickled_says_so(path: str, error: BaseException) -> None:
    hdf.dump(path, {"output": Raising(error)})
    with pytest.raises(CacheFileError, match="output") as caught:
        hdf.get_output(path)
    assert isinstance(caught.value.__cause__, type(error))


def test_a_file_without_a_function_cannot_be_called(path: str) -> None:
    hdf.dump(path, {"output": 1})
    with pytest.raises(TypeError, match="Function not found"):
        hdf.load(path)
    with pytest.raises(CacheFileError, match=r"call_o\.h5"):
        hdf.load(path)


def test_a_damaged_file_is_replaced(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    foreign_text(path)
    hdf.dump(path, {"output": 1})
    assert hdf.get_output(path) == (True, True, 1)


def test_an_error_of_the_store_survives_pickling(path: str) -> None:
    error = pickle.loads(pickle.dumps(CacheFileError.because(path, "cut off")))
    assert isinstance(error, CacheFileError)
    assert error.filename == path
    assert "cut off" in str(error)


# Nothing is half done


def test_only_the_owner_may_read_a_cache_file(path: str) -> None:
    hdf.dump(path, {"output": 1})
    hdf.dump(path, {"runtime": 1.0})
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_what_cannot_be_pickled_leaves_the_file_as_it_was(path: str) -> None:
    hdf.dump(path, {"fn": math.hypot})
    with pytest.raises(RuntimeError, match="not me"):
        hdf.dump(path, {"output": 1, "error": Unpicklable()})
    assert hdf.get_output(path) == (False, False, None)
    assert os.listdir(os.path.dirname(path)) == ["call_o.h5"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_file_as_it_was(path: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    hdf.dump(path, {"fn": math.hypot})
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match=r"No space left.*call_o.h5"):
            hdf.dump(path, {"output": 1})
    assert hdf.get_output(path) == (False, False, None)
    assert os.listdir(os.path.dirname(path)) == ["call_o.h5"]


def test_a_write_that_the_system_takes_in_pieces_is_complete(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:1000])))
    hdf.dump(path, {"output": b"x" * 5000})
    assert hdf.get_output(path)[2] == b"x" * 5000


def test_a_directory_that_vanishes_is_made_again(path: str) -> None:
    hdf.dump(path, {"output": 1})
    os.unlink(path)
    os.rmdir(os.path.dirname(path))
    hdf.dump(path, {"output": 2})
    assert hdf.get_output(path) == (True, True, 2)


def test_directories_with_odd_names(weird_path: Path) -> None:
    hdf.dump(str(weird_path / "call_o.h5"), {"output": 1})
    write_with_h5py(str(weird_path / "other_o.h5"), output=2)
    assert [entry["output"] for entry in hdf.get_cache_data(str(weird_path))] == [1, 2]


def test_costly_results_are_flushed_and_cheap_ones_are_not(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    hdf.dump(path, {"output": 1, "runtime": 0.001})
    assert not flushed
    hdf.dump(path + "2", {"output": 1, "runtime": 0.5})
    hdf.dump(path + "3", {"fn": math.hypot})
    hdf.dump(path + "4", {"output": 1, "runtime": 0.001}, flush=True)
    assert len(flushed) == 3


WRITER = """
import sys
from executorlib.standalone.cache_file import write
number = int(sys.argv[2])
for _ in range(int(sys.argv[3])):
    write(sys.argv[1], {"output": [bytes([number]) * 30000], "error": [bytes([number]) * 10]}, flush=False)
"""


def test_readers_see_whole_files_while_several_processes_write(path: str, script_environment: dict[str, str]) -> None:
    cache_file.write(path, {"output": [b"0" * 30000], "error": [b"0" * 10]})
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(number), "300"], env=script_environment)
        for number in (1, 2, 3)
    ]
    looks = 0
    while any(writer.poll() is None for writer in writers):
        content = cache_file.read(path, ["output", "error"])
        assert {len(content["output"]), len(content["error"])} == {30000, 10}
        assert len(set(content["output"] + content["error"])) == 1
        looks += 1
    assert looks > 10
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert os.listdir(os.path.dirname(path)) == ["call_o.h5"]


def test_threads_write_into_one_directory(path: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: hdf.dump(f"{path}{number % 5}", {"output": number}), range(100)))
    assert sorted(os.listdir(os.path.dirname(path))) == [f"call_o.h5{number}" for number in range(5)]


def test_a_file_open_elsewhere_in_this_process_is_read(path: str) -> None:
    write_with_h5py(path, output=1)
    with h5py.File(path, "r", locking=True):
        assert hdf.get_output(path) == (True, True, 1)


def test_the_temporary_file_of_a_killed_writer_is_removed(path: str, script_environment: dict[str, str]) -> None:
    directory = os.path.dirname(path)
    program = f"""
import os, signal
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
from executorlib.standalone import hdf
hdf.dump({path!r}, {{"output": 1}})
"""
    ended = subprocess.run([sys.executable, "-c", program], env=script_environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(os.listdir(directory)) == 1
    assert hdf.get_cache_files(directory) == []
    living, _ = temporary_file.create(directory)
    temporary_file.remove_abandoned(directory)
    assert len(os.listdir(directory)) == 1, "that of a process at work stays"
    os.close(living)


def test_the_temporary_file_of_another_host_is_removed_after_a_day(tmp_path: Path) -> None:
    other = tmp_path / ".executorlib-0123456789ab-1-0.tmp"
    other.touch()
    temporary_file.remove_abandoned(str(tmp_path))
    assert other.exists()
    os.utime(other, (time.time() - 90000,) * 2)
    temporary_file.remove_abandoned(str(tmp_path))
    assert not other.exists()
    temporary_file.remove_abandoned(str(tmp_path / "missing"))


# What the cache holds


def test_the_cache_lists_what_it_has_of_each_task(tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "a_o.h5"), EVERYTHING)
    hdf.dump(str(tmp_path / "sub" / "b_i.h5"), {"fn": math.hypot, "args": [1], "kwargs": {}})
    hdf.dump(str(tmp_path / "c_r.h5"), EVERYTHING)
    (tmp_path / "notes.txt").write_text("mine")
    assert hdf.get_cache_data(str(tmp_path)) == [
        {NAMES.get(key, key): value for key, value in EVERYTHING.items()} | {"filename": str(tmp_path / "a_o.h5")},
        {
            "function": math.hypot,
            "input_args": [1],
            "input_kwargs": {},
            "filename": str(tmp_path / "sub" / "b_i.h5"),
        },
    ]


def test_a_cache_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert hdf.get_cache_data(str(tmp_path / "missing")) == []
    assert not (tmp_path / "missing").exists()


def test_listing_unpickles_nothing_that_nobody_looks_at(tmp_path: Path) -> None:
    note = tmp_path / "note"
    for number in range(20):
        hdf.dump(str(tmp_path / f"{number:02}_o.h5"), {"output": Loud(str(note)), "runtime": float(number)})
    entries = hdf.get_cache_data(str(tmp_path))
    assert [entry["runtime"] for entry in entries] == list(range(20))
    assert [sorted(entry) for entry in entries] == [["filename", "output", "runtime"]] * 20
    assert not note.exists()
    assert entries[3]["output"] == "unpickled"
    assert entries[3]["output"] == "unpickled"
    assert note.read_text() == "x"


def test_large_results_stay_in_their_files_until_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a_o.h5"
    hdf.dump(str(path), {"output": np.zeros(100_000), "runtime": 1.0})
    (entry,) = hdf.get_cache_data(str(tmp_path))
    path.unlink()
    assert entry["runtime"] == 1.0
    with pytest.raises(FileNotFoundError, match=r"a_o\.h5"):
        entry["output"]
    write_with_h5py(str(path), output=np.ones(100_000))
    (entry,) = hdf.get_cache_data(str(tmp_path))
    np.testing.assert_array_equal(entry["output"], np.ones(100_000))


def as_keywords(**values: Any) -> dict[str, Any]:
    return values


@pytest.mark.parametrize(
    "read",
    [
        dict,
        lambda entry: {**entry},
        lambda entry: as_keywords(**entry),
        lambda entry: dict(entry.items()),
        lambda entry: dict(zip(entry, entry.values(), strict=True)),
        lambda entry: {key: entry.get(key) for key in entry},
        lambda entry: {key: entry.pop(key) for key in list(entry)},
        lambda entry: {key: entry.setdefault(key, 7) for key in entry},
        lambda entry: dict([entry.popitem() for _ in range(len(entry))]),
        lambda entry: entry.copy(),
        lambda entry: entry | {},
        lambda entry: {} | entry,
        copy.copy,
        copy.deepcopy,
        lambda entry: pickle.loads(pickle.dumps(entry)),
        lambda entry: json.loads(json.dumps(entry)),
        lambda entry: eval(repr(entry)),
    ],
)
def test_an_entry_is_read_like_any_dict(tmp_path: Path, read: Any) -> None:
    path = str(tmp_path / "a_o.h5")
    hdf.dump(path, {"output": [1, 2], "runtime": 0.5})
    (entry,) = hdf.get_cache_data(str(tmp_path))
    assert read(entry) == {"output": [1, 2], "runtime": 0.5, "filename": path}


def test_an_entry_is_changed_like_any_dict(tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": [1, 2], "runtime": 0.5})
    (entry,) = hdf.get_cache_data(str(tmp_path))
    entry["status"] = "finished"
    entry.update({"output": 3})
    del entry["filename"]
    assert entry == {"output": 3, "runtime": 0.5, "status": "finished"}
    assert entry != {"output": 3}
    assert entry.get("filename", "gone") == "gone"
    assert entry.pop("filename", None) is None
    with pytest.raises(KeyError):
        entry["filename"]


def test_a_file_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": 1})
    (tmp_path / "b_o.h5").write_text("no HDF5 file")
    hdf.dump(str(tmp_path / "c_o.h5"), {"output": 2})
    with pytest.warns(RuntimeWarning, match=r"b_o\.h5"):
        entries = hdf.get_cache_data(str(tmp_path))
    assert [entry["output"] for entry in entries] == [1, 2]


def test_a_task_that_ends_while_the_cache_is_listed_is_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hdf.dump(str(tmp_path / "a_i.h5"), {"fn": math.hypot})
    listed = hdf.get_cache_files(str(tmp_path))
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": 1})
    os.unlink(tmp_path / "a_i.h5")
    monkeypatch.setattr(hdf, "get_cache_files", lambda directory: listed)
    assert [entry["output"] for entry in hdf.get_cache_data(str(tmp_path))] == [1]


# Futures from the cache


def test_a_task_that_has_ended_gives_an_ended_future(tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": [1]})
    hdf.dump(str(tmp_path / "b_o.h5"), {"error": ValueError("no")})
    assert hdf.get_future_from_cache(str(tmp_path), "a").result(timeout=0) == [1]
    assert isinstance(hdf.get_future_from_cache(str(tmp_path), "b").exception(timeout=0), ValueError)


def test_a_task_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Neither input nor output file for cache key a found"):
        hdf.get_future_from_cache(str(tmp_path), "a")


@pytest.mark.parametrize("suffix", ["_i.h5", "_r.h5"])
def test_the_future_of_a_running_task_ends_with_the_task(tmp_path: Path, suffix: str) -> None:
    hdf.dump(str(tmp_path / f"a{suffix}"), {"fn": math.hypot})
    futures = [hdf.get_future_from_cache(str(tmp_path), "a") for _ in range(3)]
    assert not any(future.done() for future in futures)
    assert futures[2].cancel()
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": 5})
    os.unlink(tmp_path / f"a{suffix}")
    assert [future.result(timeout=5) for future in futures[:2]] == [5, 5]


def test_the_future_of_a_task_that_is_removed_ends(tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "a_i.h5"), {"fn": math.hypot})
    future = hdf.get_future_from_cache(str(tmp_path), "a")
    os.unlink(tmp_path / "a_i.h5")
    with pytest.raises(TaskRemovedError, match="a has been removed"):
        future.result(timeout=10)


def test_what_a_callback_does_ends_no_other_future(tmp_path: Path) -> None:
    for name in ("a", "b"):
        hdf.dump(str(tmp_path / f"{name}_i.h5"), {"fn": math.hypot})
    first, second = (hdf.get_future_from_cache(str(tmp_path), name) for name in ("a", "b"))
    first.add_done_callback(lambda _: sys.exit(3))
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": 1})
    assert first.result(timeout=10) == 1
    hdf.dump(str(tmp_path / "b_o.h5"), {"output": 2})
    assert second.result(timeout=10) == 2


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), MemoryError("too large")])
def test_a_result_that_cannot_be_read_ends_no_other_future(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing = [error, error, error]

    def read(path: str) -> Any:
        if path.endswith("a_o.h5") and os.path.exists(path) and failing:
            raise failing.pop()
        return get_output(path)

    get_output = hdf.get_output
    monkeypatch.setattr(hdf, "get_output", read)
    for name in ("a", "b"):
        hdf.dump(str(tmp_path / f"{name}_i.h5"), {"fn": math.hypot})
    first, second = (hdf.get_future_from_cache(str(tmp_path), name) for name in ("a", "b"))
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": 1})
    if isinstance(error, OSError):
        assert first.result(timeout=10) == 1
    else:
        assert first.exception(timeout=10) is error
    hdf.dump(str(tmp_path / "b_o.h5"), {"output": 2})
    assert second.result(timeout=10) == 2


def test_the_future_of_a_task_with_a_damaged_output_ends(tmp_path: Path) -> None:
    (tmp_path / "a_o.h5").write_text("no HDF5 file")
    assert isinstance(hdf.get_future_from_cache(str(tmp_path), "a").exception(timeout=0), CacheFileError)


def test_no_thread_stays_when_no_future_waits(tmp_path: Path, eventually: Eventually) -> None:
    hdf.dump(str(tmp_path / "a_i.h5"), {"fn": math.hypot})
    future = hdf.get_future_from_cache(str(tmp_path), "a")
    hdf.dump(str(tmp_path / "a_o.h5"), {"output": 5})
    assert future.result(timeout=5) == 5
    eventually(lambda: not any(thread.name == "executorlib-cache-watch" for thread in threading.enumerate()))


# What is imported


def test_the_store_is_light(script: Script, tmp_path: Path) -> None:
    """A batch job reads its task and writes its result without h5py and numpy: they take longer than the rest."""
    ended = script(
        """
import sys
from executorlib.standalone import cache_key, cache_paths, hdf
assert not {"h5py", "numpy", "cloudpickle"} & set(sys.modules)
hdf.dump("call_o.h5", {"fn": len, "args": ("abc",), "output": 3, "runtime": 0.1})
assert hdf.get_output("call_o.h5") == (True, True, 3)
assert hdf.load("call_o.h5")["fn"] is len
assert not {"h5py", "numpy"} & set(sys.modules)
""",
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr


def test_without_h5py_a_file_of_the_hdf5_library_names_the_cure(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_with_h5py(path, output=1)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CacheFileError, match=r"executorlib\[cache\]"):
        hdf.get_output(path)


def test_a_crash_of_the_hdf5_library_is_an_unreadable_file(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crashes on some damaged files; which ones depends on its version, so here it is made to."""
    write_with_h5py(path, output=1)
    good = str(tmp_path / "good_o.h5")
    write_with_h5py(good, output=2)
    (tmp_path / "sitecustomize.py").write_text("import os, h5py\nh5py.h5f.open = lambda *args, **kwargs: os.abort()\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(CacheFileError, match="died of it: SIGABRT"):
            hdf.get_output(path)
    assert hdf.get_output(good) == (True, True, 2)


def test_files_of_the_hdf5_library_are_read_in_a_forked_child_too(script: Script, path: str) -> None:
    write_with_h5py(path, output=1)
    done = script(
        "import os, sys\n"
        "from executorlib.standalone import hdf\n"
        "assert hdf.get_output(sys.argv[1])[2] == 1\n"
        "child = os.fork()\n"
        "assert hdf.get_output(sys.argv[1])[2] == 1\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n",
        path,
        flags=("-W", "error"),
    )
    assert done.returncode == 0, done.stderr
