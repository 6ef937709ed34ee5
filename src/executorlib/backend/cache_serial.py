"""Program of a job that runs one task of the cache: ``python cache_serial.py PATH``, that of its ``<key>_i.h5``."""

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.backend.cache_call import FileCall, begin, end, report, set_up
from executorlib.backend.worker import finish, make_main
from executorlib.standalone.cache_paths import CachePaths


def main(argv: list[str]) -> int:
    """Run the task; returns the exit code."""
    paths = CachePaths.of_file(argv[0])
    try:
        content = begin(paths)
        if content is not None:
            set_up(content)
            make_main()
            call = FileCall(paths, content)
            outcome = call.run()
            finish()
            call.write(outcome)
    except Exception as error:
        return report(error, paths)
    end(paths)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # All is written: the end of the interpreter has nothing to add but its time.
    sys.stderr.flush()
    os._exit(code)
