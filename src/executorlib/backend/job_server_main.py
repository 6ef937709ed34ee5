"""Program of the job server: ``python job_server_main.py DESCRIPTOR``, the descriptor of its control socket."""

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.backend.job_server import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
