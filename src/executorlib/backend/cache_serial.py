"""Program of a job that runs one task of the cache: ``python cache_serial.py PATH``, that of its ``<key>_i.h5``.

As an element of an array of jobs: ``python cache_serial.py --array LIST``, see `executorlib.backend.cache_array`.
"""

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.backend.cache_call import work
from executorlib.standalone.cache_paths import CachePaths


def main(argv: list[str]) -> int:
    """Run the task; returns the exit code."""
    if argv[0] == "--array":
        from executorlib.backend import cache_array

        return cache_array.main(argv[1])
    return work(CachePaths.of_file(argv[0]))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # All is written: the end of the interpreter would only take its time.
    os._exit(code)
