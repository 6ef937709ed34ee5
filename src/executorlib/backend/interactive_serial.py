"""Program of a serial worker that connects over TCP.

    python interactive_serial.py --host HOST --zmqport PORT [--worker NUMBER]

The key of the executor is in the environment, see `executorlib.standalone.interactive.listener.key_variable`.
"""

import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    import os

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.backend.remote import Arguments, introduce, watch_lifeline
from executorlib.backend.runner import Runner
from executorlib.backend.worker import finish, make_main


def main(argv: list[str]) -> None:
    """Work until the executor says stop or is gone."""
    arguments = Arguments.parse(argv)
    watch_lifeline()
    connection = introduce(arguments)
    make_main()
    Runner(connection).serve()
    finish()
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1:])
