"""One cache file on disk: named byte strings in HDF5, written as a whole and read in parts.

A file comes into being under a temporary name in its own directory, is flushed to the disk and renamed: whoever opens
the final name, on this host or another, finds a whole file, the old one or the new one. There are no locks and no
notifications: network file systems have neither, or have them broken.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from hashlib import md5
from typing import Any

from executorlib.standalone import hdf5_image

Chunks = Sequence[bytes | bytearray | memoryview]
"""The bytes of one dataset, in pieces: a pickled array is not copied once more to stand in one piece."""

_HEAD_BYTES = 16384
_MOST_BYTES_PER_CALL = 1 << 30
_SMALL_BYTES = 65536
_TEMPORARY_PREFIX = ".executorlib-"
_TEMPORARY_SUFFIX = ".tmp"
_ABANDONED_AFTER_SECONDS = 86400.0
# Absent on Windows, where there is no such distinction.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_counter = itertools.count()


class CacheFileError(OSError):
    """A file is there but is no cache entry: cut off, empty, of another program, or its pickles cannot be loaded.

    To whoever looks for a result it means the same as no file. The attribute `filename` names it, and `strerror`
    says what is wrong.
    """

    @classmethod
    def because(cls, path: str, reason: object) -> CacheFileError:
        return cls(errno.EIO, f"not a readable cache file ({reason})", path)


def read(path: str, names: Collection[str] | None = None) -> dict[str, bytes]:
    """The datasets of a file, or those of the given names that it has.

    Raises:
        FileNotFoundError: there is no such file.
        CacheFileError: the file cannot be opened, or is not a whole HDF5 file of byte strings.
    """
    try:
        return _read_once(path, names)
    except OSError as error:
        # Another host has replaced the file since NFS last looked up its name; the second open finds the new one.
        if error.errno != errno.ESTALE:
            raise
        return _read_once(path, names)


def _read_once(path: str, names: Collection[str] | None) -> dict[str, bytes]:
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return _read_descriptor(path, descriptor, names)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _unreadable(path: str, error: OSError) -> OSError:
    if isinstance(error, CacheFileError) or error.errno == errno.ESTALE:
        return error
    return CacheFileError.because(path, error.strerror or error)


def _read_descriptor(path: str, descriptor: int, names: Collection[str] | None) -> dict[str, bytes]:
    head = os.read(descriptor, _HEAD_BYTES)
    size = len(head) if len(head) < _HEAD_BYTES else os.fstat(descriptor).st_size
    try:
        spans = hdf5_image.find(head, size)
    except hdf5_image.TruncatedImageError as error:
        raise CacheFileError.because(path, f"cut off: {error}") from error
    if spans is None:
        return _read_with_h5py(path, head + _read_from(descriptor, len(head), size - len(head)), names)
    return {
        name: head[span.offset : span.offset + span.size]
        if span.offset + span.size <= len(head)
        else _read_from(descriptor, span.offset, span.size)
        for name, span in spans.items()
        if names is None or name in names
    }


def _read_from(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    parts: list[bytes] = []
    while size > 0:
        part = os.read(descriptor, min(size, _MOST_BYTES_PER_CALL))
        if not part:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_with_h5py(path: str, content: bytes, names: Collection[str] | None) -> dict[str, bytes]:
    """What the HDF5 library finds in a file that it wrote itself.

    It is given the bytes, not the path: it then takes no lock, which some network file systems refuse and which
    would clash with other openings of the same file in this process.
    """
    if hdf5_image.SIGNATURE not in content:
        raise CacheFileError.because(path, "no HDF5 file" if content else "empty")
    try:
        import h5py
    except ImportError as error:
        raise CacheFileError.because(path, "h5py is needed: pip install 'executorlib[cache]'") from error
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(1 << 16, False)
    access.set_file_image(content)
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=access)
        try:
            found = [name.decode() for name in h5py.h5g.open(file, b"/")]
            return {name: _dataset(file, name) for name in found if names is None or name in names}
        finally:
            file.close()
    # h5py raises whatever the damaged spot in the file leads it to: OSError, RuntimeError, KeyError, ValueError, ...
    except Exception as error:
        raise CacheFileError.because(path, error) from error


def _dataset(file: Any, name: str) -> bytes:
    import h5py
    import numpy as np

    dataset = h5py.h5d.open(file, name.encode())
    content = np.empty(dataset.shape, dataset.dtype)
    if content.dtype != np.uint8:
        raise ValueError(f"the dataset {name!r} does not hold bytes")
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, content)
    return content.tobytes()


def write(path: str, datasets: Mapping[str, Chunks]) -> None:
    """Put a file with these datasets in the place of whatever is there; its directory is made if it is missing.

    Readers see the old file or the new one. The file is readable by its owner only: results may be anything.

    Raises:
        OSError: the disk is full, the directory cannot be written to, ... Nothing is left behind.
    """
    names = sorted(datasets)
    header = hdf5_image.encode_header({name: sum(map(len, datasets[name])) for name in names})
    chunks: Chunks = [header, *itertools.chain.from_iterable(datasets[name] for name in names)]
    descriptor, temporary = _open_temporary(os.path.dirname(path))
    try:
        try:
            _write_all(descriptor, chunks)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path
        raise


def _write_all(descriptor: int, chunks: Chunks) -> None:
    if sum(map(len, chunks)) <= _SMALL_BYTES:
        chunks = [b"".join(chunks)]
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(descriptor, rest[:_MOST_BYTES_PER_CALL]) :]


def _open_temporary(directory: str) -> tuple[int, str]:
    name = f"{_TEMPORARY_PREFIX}{_process_space()}-{os.getpid()}-{next(_counter)}{_TEMPORARY_SUFFIX}"
    path = os.path.join(directory, name)
    try:
        return os.open(path, _WRITE_FLAGS, 0o600), path
    except FileNotFoundError:
        os.makedirs(directory, exist_ok=True)
    except FileExistsError:  # left by a dead process that had our process id
        os.unlink(path)
    return os.open(path, _WRITE_FLAGS, 0o600), path


def remove_abandoned(directory: str) -> None:
    """Remove the temporary files that writers in this directory left when they were killed.

    Those of processes on this host that no longer live; those of other hosts after a day. Files that cannot be
    removed, or that others remove at the same time, are passed over.
    """
    try:
        with os.scandir(directory) as entries:
            abandoned = [entry.path for entry in entries if _is_abandoned(entry)]
    except OSError:
        return
    for path in abandoned:
        try:
            os.unlink(path)
        except OSError:
            pass


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    if not (entry.name.startswith(_TEMPORARY_PREFIX) and entry.name.endswith(_TEMPORARY_SUFFIX)):
        return False
    space, _, rest = entry.name[len(_TEMPORARY_PREFIX) :].partition("-")
    pid = rest.partition("-")[0]
    if space == _process_space() and pid.isdigit() and not _is_alive(int(pid)):
        return True
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and time.time() - info.st_mtime > _ABANDONED_AFTER_SECONDS


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there os.kill(pid, 0) ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@cache
def _process_space() -> str:
    """Names the set of processes in which a process id means the same: this host, this boot, this container."""
    parts = [socket.gethostname()]
    for source in ("/proc/self/ns/pid", "/proc/sys/kernel/random/boot_id"):
        try:
            parts.append(os.readlink(source) if os.path.islink(source) else _first_line(source))
        except OSError:  # not Linux
            pass
    return md5("\n".join(parts).encode(), usedforsecurity=False).hexdigest()[:12]


def _first_line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline()
