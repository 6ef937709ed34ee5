"""``executorlib doctor``: what works on this machine, found out by trying it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from typing import Any

from executorlib.cli.checks import ABSENT, BROKEN, CHECKS, WORKS, Finding

_NEEDED = ("python", "packages", "single")
"""What has to work where nothing is asked for: no executor works without these."""

_SIGNS = {WORKS: "works", ABSENT: "  -  ", BROKEN: "FAILS"}


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "doctor",
        help="find out what works here, by trying it",
        description="Try what the executors need, and say what to do where it does not work. Each check is a process "
        "of its own with a time limit. With Slurm or Flux, jobs of a few seconds are started.",
        epilog=f"checks: {', '.join(CHECKS)}. Exit status: 1 if one of those that were named does not work; without "
        f"names, if one of {', '.join(_NEEDED)} does not.",
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", type=_check, help="what has to work; all if none")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="limit of each check (60)")
    parser.set_defaults(run=run)


def _check(name: str) -> str:
    if name not in CHECKS:
        raise argparse.ArgumentTypeError(f"no check {name!r}; they are {', '.join(CHECKS)}")
    return name


def run(options: argparse.Namespace) -> int:
    """Make the checks and print what they have found."""
    names = list(dict.fromkeys(options.checks)) or list(CHECKS)
    wanted = options.checks or _NEEDED
    findings: dict[str, dict[str, Any]] = {}
    for name in names:
        start = time.monotonic()
        finding = try_out(name, options.timeout)
        findings[name] = {
            "state": finding.state,
            "said": finding.said,
            "cure": finding.cure,
            "seconds": round(time.monotonic() - start, 3),
            "details": finding.details,
        }
        if not options.json:
            _tell(name, finding)
    failed = [name for name in wanted if findings[name]["state"] != WORKS]
    if options.json:
        print(json.dumps({"works": not failed, "wanted": list(wanted), "checks": findings}, indent=2))
    elif failed:
        print(f"\ndoes not work here: {', '.join(failed)}")
    return 1 if failed else 0


def try_out(name: str, seconds: float) -> Finding:
    """Make a check in a process of its own; what it has started is ended with it when its time is up."""
    path = [os.path.abspath(entry) for entry in sys.path]
    # The same modules are to be found as here, wherever they come from, and the same mpiexec.
    code = (
        f"import sys; sys.path[:] = {path!r}; sys.executable = {sys.executable!r}; "
        f"from executorlib.cli.checks import main; main({name!r})"
    )
    with (
        tempfile.TemporaryDirectory(prefix="executorlib-doctor-", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=folder,  # pysqa, for one, notes failures in the working directory
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            found, printed = process.communicate(timeout=seconds)
        except BaseException as error:
            _end(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Finding(BROKEN, f"no answer after {seconds:g} s", "try again with a longer --timeout")
    try:
        return Finding(**json.loads(found))
    except ValueError:
        last = printed.strip().splitlines()[-1:] or ["it has printed nothing"]
        return Finding(BROKEN, f"the check crashed with exit code {process.returncode}: {last[0]}", "")


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def _tell(name: str, finding: Finding) -> None:
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 140))
    indent = " " * 17
    lines = [finding.said, *([f"→ {finding.cure}"] if finding.cure else [])]
    text = "\n".join(textwrap.fill(line, width - len(indent), subsequent_indent="  ") for line in lines)
    print(f"{_SIGNS[finding.state]}  {name:9} {textwrap.indent(text, indent).lstrip()}", flush=True)
