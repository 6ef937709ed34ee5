"""The HDF5 store: what is kept of a task in its cache directory.

File names and contents are those of executorlib 1.11, so that each reads what the other has written:

    <key>_i.h5   a task that waits or runs: function, input_args, input_kwargs, resource_dict, error_log_file, queue_id
    <key>_r.h5   the same file while executorlib 1.11 adds the result to it
    <key>_o.h5   a task that has ended: the same, and runtime, and output or error

Each name stands for a dataset of unsigned bytes that holds a pickle. A file is only ever replaced as a whole, so a
program that is killed leaves no half of one. Arrays stay inside the pickle: executorlib 1.11 would not look for them
elsewhere. Unpickling runs code, so a cache directory is to be trusted like a directory of programs.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from executorlib.standalone import cache_file
from executorlib.standalone.cache_file import CacheFileError, Chunks
from executorlib.standalone.cache_entry import CacheEntry

__all__ = [
    "CacheFileError",
    "Pickled",
    "dump",
    "get_cache_data",
    "get_cache_files",
    "get_future_from_cache",
    "get_output",
    "get_queue_id",
    "get_runtime",
    "load",
]
