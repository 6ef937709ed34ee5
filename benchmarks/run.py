"""Measure this library beside others, and write a table and a plot.

Each measurement is a process of its own, in the environment of the library that it measures. The libraries take turns,
so that what else the machine does hits all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine
import plot
import report
from environments import CACHE, ROOT, environment_of, flux_version
from measure import Outcome, measure
from report import Line, Table
from rows import NAMES, OURS, PEERS, ROWS, Row

# Seconds that a row may spend on one peer: one that needs longer is measured less often.
_ENOUGH = 8.0
# The figures in the README stand between these.
_FIGURES, _END = "<!-- figures of make bench -->", "<!-- end of the figures -->"
# Seconds after which a smoke test leaves the peers aside, so that it ends in a minute.
_SMOKE_PEERS = 30.0


def main() -> int:
    options = _options()
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.key, pattern) for pattern in options.only)]
    if any(row.slurm for row in rows) and not _has_slurm():
        print("no Slurm answers: its rows are left out (.ci/slurm start)", file=sys.stderr)
        rows = [row for row in rows if not row.slurm]
    if any(row.flux for row in rows) and flux_version() is None:
        print("there is no command flux: its rows are left out", file=sys.stderr)
        rows = [row for row in rows if not row.flux]
    if not rows:
        raise SystemExit(f"no such benchmark; there are {', '.join(row.key for row in ROWS)}")
    peers = _prepare(options.peers, options.smoke)
    load, start = machine.load(), time.monotonic()
    lines = []
    for row in rows:
        late = options.smoke and options.peers is None and time.monotonic() - start > _SMOKE_PEERS
        lines.append(_measure_row(row, [] if late else peers, options))
    table = Table(
        machine=machine.describe(peers),
        repeat=options.repeat,
        load=(load, machine.load()),
        minutes=(time.monotonic() - start) / 60,
        lines=lines,
    )
    failures = [line.row.key for line in lines if line.ours is None]
    if failures:
        print(f"no figure for: {', '.join(failures)}", file=sys.stderr)
    if options.update:
        if not failures:
            _update(table)
        return bool(failures)
    directory = options.output or _directory(options, complete=len(rows) == len(ROWS) and len(peers) == len(PEERS))
    _write(table, directory)
    if not options.smoke:  # The figures of a smoke test mean nothing.
        print(report.as_markdown(table))
    return bool(failures)


def _update(new: Table) -> None:
    """Put rows into the kept table; the rest of it stays."""
    directory = ROOT / "benchmarks" / "results"
    old = report.from_json((directory / "results.json").read_text())
    measured = {line.row.key: line for line in new.lines}
    lines = [measured.get(line.row.key, line) for line in old.lines]
    anew = tuple(line.row.key for line in lines if line.row.key in {*old.anew, *measured})
    _write(dataclasses.replace(old, lines=lines, anew=anew), directory)


def _has_slurm() -> bool:
    """Whether a Slurm answers: that of this machine's tests, or the site's."""
    script = Path(__file__).resolve().parent.parent / ".ci" / "slurm"
    if "SLURM_CONF" not in os.environ and subprocess.run([script, "status"], capture_output=True).returncode == 0:
        conf = subprocess.run([script, "conf"], capture_output=True, text=True, check=True)
        os.environ["SLURM_CONF"] = conf.stdout.strip()
    try:
        return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="every benchmark once and short, to see that they work")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="benchmarks by name")
    parser.add_argument("--peers", nargs="*", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--update", action="store_true", help="put the rows into the kept table of the last whole run")
    parser.add_argument("--repeat", type=int, metavar="N", help="measurements of each figure; their median counts")
    parser.add_argument("--output", type=Path, metavar="DIR", help="benchmarks/results for a complete run, else .bench")
    options = parser.parse_args()
    if options.update and (options.smoke or options.peers is not None):
        parser.error("--update measures rows as a whole run does: without --smoke and --peers")
    options.repeat = options.repeat or (1 if options.smoke else 5)
    return options


def _prepare(chosen: list[str] | None, smoke: bool) -> list[str]:
    """Make the environments; the peers to measure. A smoke test takes those that are there."""
    peers = list(PEERS) if chosen is None else chosen
    if smoke and chosen is None:
        peers = [peer for peer in peers if environment_of(peer).ready]
    for name in (OURS, *peers):
        environment_of(name).make()
    return peers


def _measure_row(row: Row, peers: list[str], options: argparse.Namespace) -> Line:
    libraries = [OURS, *(peer for peer in peers if peer in row.peers)]
    outcomes: dict[str, list[Outcome]] = {library: [] for library in libraries}
    spent = dict.fromkeys(libraries, 0.0)
    print(f"{row.key:14}", end="", file=sys.stderr, flush=True)
    for _ in range(options.repeat):
        for library in libraries:
            if any(outcome.failure for outcome in outcomes[library]) or (library != OURS and spent[library] > _ENOUGH):
                continue
            start = time.monotonic()
            outcome = measure(row.case, library, row.arguments_of(library, options.smoke), row.limit)
            outcomes[library].append(outcome)
            spent[library] += time.monotonic() - start
        print(".", end="", file=sys.stderr, flush=True)
    line = Line(row, {library: _median(found) for library, found in outcomes.items()}, outcomes)
    figures = ", ".join(f"{NAMES[library]} {report.figure(line, library)}" for library in libraries)
    print(f" {figures} {row.unit}", file=sys.stderr, flush=True)
    return line


def _median(outcomes: list[Outcome]) -> Outcome:
    """The figure of a library, or why it has none."""
    for outcome in outcomes:
        if outcome.failure:
            return outcome
    return Outcome(statistics.median(outcome.value for outcome in outcomes if outcome.value is not None))


def _directory(options: argparse.Namespace, complete: bool) -> Path:
    """Only a complete run replaces the figures that are kept."""
    return ROOT / "benchmarks" / "results" if complete and not options.smoke else CACHE / "results"


def _write(table: Table, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(report.as_json(table))
    (directory / "results.md").write_text(report.as_markdown(table))
    (directory / "results.svg").write_text(plot.as_svg(table))
    if directory == ROOT / "benchmarks" / "results":
        _write_readme(table)


def _write_readme(table: Table) -> None:
    """The README shows the kept figures."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(_FIGURES)
    _, end, after = rest.partition(_END)
    if not end:
        raise SystemExit(f"README.md has no {_FIGURES} with {_END} behind it")
    readme.write_text(f"{before}{_FIGURES}\n\n{report.as_summary(table)}\n{_END}{after}")


if __name__ == "__main__":
    sys.exit(main())
