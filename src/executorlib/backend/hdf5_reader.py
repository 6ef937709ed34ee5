"""Program that reads files of the HDF5 library for another: ``python hdf5_reader.py DESCRIPTOR``, its socket."""

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.standalone.hdf5_process import serve

_IDLE_SECONDS = 1.0

if __name__ == "__main__":
    serve(int(sys.argv[1]), _IDLE_SECONDS)
