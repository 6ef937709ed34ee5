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
from executorlib.backend.remote import Arguments, introduce, leave_package_folder, watch_lifeline
from executorlib.backend.runner import Runner
from executorlib.backend.watcher import start_watcher
from executorlib.backend.worker import finish, make_main


def main(argv: list[str]) -> None:
    """Work until the executor says stop or is gone."""
    arguments = Arguments.parse(argv)
    watch_lifeline()
    watch = start_watcher()
    connection = introduce(arguments)
    watch(connection)
    make_main()
    link = DictLink(connection, arguments.worker, connection.fileno())
    link.serve(Runner(link))
    finish()
    connection.close()


if __name__ == "__main__":
    leave_package_folder()
    main(sys.argv[1:])
