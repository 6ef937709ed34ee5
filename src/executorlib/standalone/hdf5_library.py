"""Files that the HDF5 library has written, read with h5py.

The library takes what a file says of itself for true: a damaged file, about one in three thousand of those that were
changed at random, makes it end its whole process with a segmentation fault, and no program should die of a file in
its cache. So where it can be done, a process of its own reads such a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Wanted(NamedTuple):
    """Which datasets of a file are read: those with one of the names (None: all), and not more bytes than `largest`."""

    names: tuple[str, ...] | None = None
    largest: int | None = None

    def has(self, name: str, size: int) -> bool:
        return (self.names is None or name in self.names) and (self.largest is None or size <= self.largest)


def read_with_h5py(path: str, descriptor: int, wanted: Wanted) -> dict[str, bytes | None]:
    """All datasets of a file by name; None for those that are not wanted.

    Raises:
        Exception: whatever the damaged spot in a file leads h5py to
    """
    import h5py

    with _opened(path, descriptor) as file:
        group = h5py.h5g.open(file.id, b"/")
        return {name.decode(): _dataset(h5py.h5d.open(group, name), name.decode(), wanted) for name in group}


@contextmanager
def _opened(path: str, descriptor: int) -> Iterator[Any]:
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    try:
        # Some network file systems refuse locks, others wait for them for ever.
        access.set_file_locking(False, True)
        # By its descriptor where that is possible: the name may by now stand for another file.
        opened = f"/proc/self/fd/{descriptor}"
        name = opened if os.path.exists(opened) else path
        file = h5py.File(h5py.h5f.open(os.fsencode(name), h5py.h5f.ACC_RDONLY, fapl=access))
    except Exception:
        # HDF5 cannot do without locks before 1.10.7, and never if this process has the file open with locks.
        file = None
    if file is not None:
        with file:
            yield file
        return
    # Through Python's own file object, which takes twice the time and no locks.
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as stream, h5py.File(stream, "r") as file:
        yield file


def _dataset(dataset: Any, name: str, wanted: Wanted) -> bytes | None:
    import h5py
    import numpy as np

    if dataset.dtype != np.uint8:
        raise ValueError(f"the dataset {name!r} does not hold bytes")
    if not wanted.has(name, dataset.get_space().get_simple_extent_npoints()):
        return None
    content = np.empty(dataset.shape, np.uint8)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, content)
    return content.tobytes()
