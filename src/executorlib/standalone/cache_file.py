"""One cache file on disk: named byte strings in HDF5, written as a whole and read in parts.

A file comes into being under a temporary name in its own directory, is flushed to the disk and renamed: whoever opens
the final name, on this host or another, finds a whole file, the old one or the new one. There are no locks and no
notifications: network file systems have neither, or have them broken.
"""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
from collections.abc import Collection, Mapping, Sequence

from executorlib.standalone import hdf5_image, temporary_file
from executorlib.standalone.cache_trust import open_trusted
from executorlib.standalone.hdf5_library import Wanted

Chunks = Sequence[bytes | bytearray | memoryview]
"""The bytes of one dataset, in pieces: a pickled array is not copied once more to stand in one piece."""

_HEAD_BYTES = 16384
_MOST_BYTES_PER_CALL = 1 << 30
_SMALL_BYTES = 65536


class CacheFileError(OSError):
    """A file is there but is no cache entry: cut off, empty, of another program or user, or its pickles do not load.

    To whoever looks for a result it means the same as no file. The attribute `filename` names it, and `strerror`
    says what is wrong.
    """

    @classmethod
    def because(cls, path: str, reason: object) -> CacheFileError:
        return cls(errno.EIO, f"not a readable cache file ({reason})", path)


class DamagedFileError(CacheFileError):
    """The file could be read, and is cut off, empty, or no HDF5 file: nobody anywhere can make use of it."""


def read(path: str, names: Collection[str]) -> dict[str, bytes]:
    """Those of the named datasets that the file has.

    Raises:
        FileNotFoundError: there is no such file.
        CacheFileError: the file cannot be opened, or is not a whole HDF5 file of byte strings.
    """
    found = _datasets(path, Wanted(tuple(names)))
    return {name: content for name, content in found.items() if content is not None}


def read_all(path: str, largest: int | None = None) -> dict[str, bytes | None]:
    """All datasets of the file; None for those of more than `largest` bytes, which are not read.

    Raises:
        FileNotFoundError, CacheFileError: as `read` does.
    """
    return _datasets(path, Wanted(largest=largest))


def _datasets(path: str, wanted: Wanted) -> dict[str, bytes | None]:
    try:
        return _read_once(path, wanted)
    except OSError as error:
        # Another host has replaced the file since NFS last looked up its name; the second open finds the new one.
        if error.errno != errno.ESTALE:
            raise
        return _read_once(path, wanted)


def _read_once(path: str, wanted: Wanted) -> dict[str, bytes | None]:
    try:
        descriptor = open_trusted(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return _read_descriptor(path, descriptor, wanted)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _unreadable(path: str, error: OSError) -> OSError:
    if isinstance(error, CacheFileError) or error.errno == errno.ESTALE:
        return error
    return CacheFileError.because(path, error.strerror or error)


def _read_descriptor(path: str, descriptor: int, wanted: Wanted) -> dict[str, bytes | None]:
    head = os.read(descriptor, _HEAD_BYTES)
    size = len(head) if len(head) < _HEAD_BYTES else os.fstat(descriptor).st_size
    try:
        spans = hdf5_image.find(head, size)
    except hdf5_image.TruncatedImageError as error:
        raise DamagedFileError.because(path, f"cut off: {error}") from error
    if spans is None:
        if hdf5_image.SIGNATURE not in head:
            raise DamagedFileError.because(path, "no HDF5 file" if head else "empty")
        return _read_library_file(path, descriptor, wanted)
    return {
        name: _read_span(descriptor, head, span) if wanted.has(name, span.size) else None
        for name, span in spans.items()
    }


def _read_span(descriptor: int, head: bytes, span: hdf5_image.Span) -> bytes:
    if span.offset + span.size <= len(head):
        return head[span.offset : span.offset + span.size]
    os.lseek(descriptor, span.offset, os.SEEK_SET)
    parts: list[bytes] = []
    rest = span.size
    while rest > 0:
        part = os.read(descriptor, min(rest, _MOST_BYTES_PER_CALL))
        if not part:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        parts.append(part)
        rest -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_library_file(path: str, descriptor: int, wanted: Wanted) -> dict[str, bytes | None]:
    """What the HDF5 library finds in a file that it wrote itself."""
    if importlib.util.find_spec("h5py") is None:
        raise CacheFileError.because(path, "h5py is needed: pip install 'executorlib[cache]'")
    from executorlib.standalone.hdf5_process import read_apart

    # h5py raises whatever the damaged spot in the file leads it to: OSError, RuntimeError, KeyError, ValueError, ...
    try:
        return read_apart(path, descriptor, wanted)
    except Exception as error:
        raise CacheFileError.because(path, error) from error


def write(path: str, datasets: Mapping[str, Chunks], *, flush: bool = True) -> None:
    """Put a file with these datasets in the place of whatever is there; its directory is made if it is missing.

    Readers see the old file or the new one. The file is readable by its owner only: results may be anything.

    Args:
        path: the file.
        datasets: what it is to hold.
        flush: wait until the disk has it. Without, a file that is lost or cut short by a power failure counts as
            unreadable afterwards; the death of this process does no harm either way.

    Raises:
        OSError: the disk is full, the directory cannot be written to, ... Nothing is left behind.
    """
    names = sorted(datasets)
    header = hdf5_image.encode_header({name: sum(map(len, datasets[name])) for name in names})
    chunks: Chunks = [header, *itertools.chain.from_iterable(datasets[name] for name in names)]
    descriptor, temporary = temporary_file.create(os.path.dirname(path))
    try:
        try:
            _write_all(descriptor, chunks)
            if flush:
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
