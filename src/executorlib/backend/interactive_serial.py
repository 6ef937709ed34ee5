"""Program of a serial worker that connects over TCP.

    python interactive_serial.py --host HOST --zmqport PORT [--worker NUMBER]

It serves an executor, or a `SocketInterface`. Their key is in the environment, see
`executorlib.standalone.interactive.listener.key_variable`.
"""

import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    import os

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.backend.dict_calls import DictLink
from executorlib.backend.remote import Arguments, introduce, watch_lifeline
from executorlib.backend.runner import Runner
from executorlib.backend.worker import finish, make_main


def main(argv: list[str]) -> None:
    """Work until the executor says stop or is gone."""
    arguments = Arguments.parse(["--worker" if argument == "--worker-id" else argument for argument in argv])
    watch_lifeline()
    connection = introduce(arguments)
    make_main()
    link = DictLink(connection, arguments.worker, connection.fileno())
    link.serve(Runner(link))
    finish()
    connection.close()


def _leave_folder() -> None:
    """Take this package's folder from the path: in the Python of another environment its NumPy would be a stranger."""
    import importlib.util

    folder = sys.path.pop(0)
    if importlib.util.find_spec("cloudpickle") is None:  # pure Python, and needed to receive most functions
        sys.path.append(folder)
        try:
            importlib.import_module("cloudpickle")
        except ImportError:  # each function that needs it will say so
            pass
        sys.path.remove(folder)


if __name__ == "__main__":
    _leave_folder()
    main(sys.argv[1:])
