"""``python -m executorlib``: the command line, see `executorlib.cli`."""

import sys

from executorlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
