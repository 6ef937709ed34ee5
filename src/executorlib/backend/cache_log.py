"""Program of a batch job in a directory where other users may write: ``python cache_log.py LOG DIRECTORY COMMAND...``.

A queueing system would follow a link that another user has put in the place of the log, or of the working directory,
while the job waited. Here both are opened only if they are this user's own; then the command takes over the process.
"""

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from executorlib.standalone.cache_trust import open_own, open_own_directory


def main(argv: list[str]) -> None:
    """Become the command.

    Args:
        argv: the log; the working directory, empty where the job stays where it is; the command
    """
    path, directory, *command = argv
    try:
        log = open_own(path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:  # a job that has waited for hours is worth more than what it prints
        print(f"executorlib: there is no log: {error}", file=sys.stderr)
    else:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    if directory:
        descriptor = open_own_directory(directory)
        os.fchdir(descriptor)
        os.close(descriptor)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
