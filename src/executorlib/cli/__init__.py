"""The command ``executorlib``, which is also ``python -m executorlib``.

main ──┬── doctor ──► checks    what works here, each thing tried in a process of its own
       └── cache  ──► tasks     what runs have left in a cache directory
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words behind the command's name; those of the command line by default

    Returns:
        The exit status: 0; 1 where something does not work, or a task is not there; 2 for a wrong command line.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return status


def _parser() -> argparse.ArgumentParser:
    from executorlib.cli import cache, doctor

    parser = argparse.ArgumentParser(
        prog="executorlib", description="Find out what works on this machine, and look after the tasks of a cache."
    )
    parser.add_argument("--version", action="version", version=f"executorlib {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    doctor.add_to(commands)
    cache.add_to(commands)
    return parser


def _version() -> str:
    import executorlib

    return str(executorlib.__version__)
