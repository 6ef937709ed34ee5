"""The rows of the table: what is measured, with which libraries, and what has to be reached."""

# The sign of multiplication is meant.
# ruff: noqa: RUF001
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = "executorlib"
PEERS = ("futures", "multiprocessing", "loky", "dask", "parsl", "published")
POOLS = ("futures", "multiprocessing", "loky", "published")
GRAPHS = ("dask", "parsl", "published")

NAMES = {
    OURS: "this library",
    "futures": "ProcessPoolExecutor",
    "multiprocessing": "multiprocessing.Pool",
    "loky": "loky",
    "dask": "dask.distributed",
    "parsl": "parsl HTEX",
    "published": "executorlib 1.11",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for our figure.

    Attributes:
        bound: the figure, or its ratio to another one
        at_least: whether more is better
        of: the peer whose figure in the same row is the measure, or ``row:`` and another row of ours
    """

    bound: float
    at_least: bool
    of: str | None = None


def at_least(bound: float, of: str | None = None) -> Goal:
    return Goal(bound, True, of)


def at_most(bound: float, of: str | None = None) -> Goal:
    return Goal(bound, False, of)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        key: its name on the command line
        title: what is measured
        unit: of the figure
        case: the function in ``cases/`` that measures it
        goals: all have to be reached
        peers: the libraries that can do it too
        arguments: of the case
        smoke: what is different in a smoke test
        fewer: what is different for a peer that would take minutes
        limit: seconds after which a measurement is given up
        slurm: whether it needs a Slurm that runs
        flux: whether it needs the command ``flux``
    """

    key: str
    title: str
    unit: str
    case: str
    goals: tuple[Goal, ...]
    peers: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    fewer: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limit: float = 60.0
    slurm: bool = False
    flux: bool = False

    @property
    def more_is_better(self) -> bool:
        return self.goals[0].at_least

    def arguments_of(self, library: str, smoke: bool) -> dict[str, Any]:
        return {**self.arguments, **self.fewer.get(library, {}), **(self.smoke if smoke else {})}


ROWS = (
    Row(
        "import",
        "`import executorlib`, over bare Python",
        "ms",
        "import",
        (at_most(30),),
        ("published",),
        {"runs": 15, "package_only": True},
        {"runs": 1},
    ),
    Row(
        "import_class",
        "import of the executor class, over bare Python",
        "ms",
        "import",
        (at_most(30),),
        PEERS,
        {"runs": 9},
        {"runs": 1},
    ),
    Row(
        "first_result",
        "script to first result, default mode",
        "ms",
        "first_result",
        (at_most(1.5, "futures"), at_most(150)),
        PEERS,
    ),
    Row(
        "fresh",
        "a fresh process per call, 200 empty calls",
        "/s",
        "fresh",
        (at_least(250),),
        ("futures", "multiprocessing", "published"),
        {"calls": 200},
        {"calls": 4},
        {"published": {"calls": 30}, "futures": {"calls": 50}},
    ),
    Row(
        "submit",
        "block allocation, 5,000 × submit + result",
        "/s",
        "submit",
        (at_least(3, "futures"),),
        PEERS,
        {"calls": 5000},
        {"calls": 50},
        {"dask": {"calls": 1000}, "parsl": {"calls": 2000}},
    ),
    Row(
        "map",
        "block allocation, `map` of 20,000, default chunksize",
        "/s",
        "map",
        (at_least(8, "futures"),),
        PEERS,
        {"calls": 20_000},
        {"calls": 50},
        {"dask": {"calls": 2000}, "parsl": {"calls": 2000}, "published": {"calls": 10_000}},
    ),
    Row(
        "round_trip",
        "round trip of one empty call",
        "µs",
        "round_trip",
        (at_most(1.0, "futures"),),
        PEERS,
        {"calls": 2000},
        {"calls": 10},
        {"dask": {"calls": 100}, "parsl": {"calls": 300}, "published": {"calls": 100}},
    ),
    Row(
        "chain",
        "chain of 1,000 dependent calls",
        "/s",
        "chain",
        (at_least(5000),),
        GRAPHS,
        {"calls": 1000},
        {"calls": 10},
        {"published": {"calls": 200}},
    ),
    Row(
        "graph",
        "graph of 2,001 tasks",
        "/s",
        "graph",
        (at_least(20_000),),
        GRAPHS,
        {"leaves": 1000},
        {"leaves": 10},
    ),
    Row(
        "large_graph",
        "graph of 100,001 tasks",
        "/s",
        "graph",
        (at_least(0.7, "row:graph"),),
        (),
        {"leaves": 50_000},
        {"leaves": 20},
        limit=120,
    ),
    Row(
        "emcee",
        "emcee, 32 walkers, 100 steps, empty likelihood",
        "steps/s",
        "emcee",
        (at_least(1.0, "multiprocessing"),),
        POOLS,
        {"steps": 100},
        {"steps": 2},
        {"published": {"steps": 20}},
    ),
    Row(
        "emcee_data",
        "emcee whose likelihood carries 50 MB",
        "steps/s",
        "emcee",
        (at_least(5, "multiprocessing"),),
        POOLS,
        {"steps": 5, "megabytes": 50},
        {"steps": 1, "megabytes": 1},
        {"published": {"steps": 1}, "futures": {"steps": 1}, "loky": {"steps": 1}},
        limit=90,
    ),
    Row(
        "array",
        "64 MB array there and back",
        "MB/s",
        "array",
        (at_least(2.5, "best"),),
        PEERS,
        {"megabytes": 64, "trips": 5},
        {"megabytes": 1, "trips": 1},
    ),
    Row(
        "cpu",
        "parent's CPU while calls run and wait, block allocation",
        "% of a core",
        "waiting_cpu",
        (at_most(0.5),),
        PEERS,
        {"seconds": 2.0},
        {"seconds": 0.2},
    ),
    Row(
        "cpu_fresh",
        "parent's CPU while calls run and wait, fresh processes",
        "% of a core",
        "waiting_cpu",
        (at_most(0.5),),
        ("multiprocessing", "published"),
        {"seconds": 2.0, "kept": False},
        {"seconds": 0.2},
    ),
    Row(
        "memory",
        "memory per queued task, its future included",
        "B",
        "queue_memory",
        (at_most(2000),),
        PEERS,
        {"calls": 20_000},
        {"calls": 100},
        {"dask": {"calls": 3000}, "parsl": {"calls": 3000}, "published": {"calls": 10_000}},
    ),
    Row(
        "mpi_idle",
        "idle MPI worker, 2 ranks: CPU of the busier one",
        "% of a core",
        "mpi_idle_cpu",
        (at_most(5),),
        ("published",),
        {"seconds": 2.0},
        {"seconds": 0.2},
    ),
    Row(
        "mpi_start",
        "idle MPI worker, 2 ranks: submit to start of a task",
        "ms",
        "mpi_start",
        (at_most(2),),
        ("published",),
        {"calls": 15},
        {"calls": 1},
    ),
    Row(
        "sleepers",
        "64 block workers, tasks of 10 ms",
        "/s",
        "sleepers",
        (at_least(5760),),
        ("futures", "multiprocessing", "loky", "parsl", "published"),
        {"calls": 6400},
        {"calls": 32, "workers": 8},
        limit=90,
    ),
    Row(
        "mixed",
        "tasks of 1 s and 1 ms, 4 workers: makespan / ideal",
        "×",
        "mixed",
        (at_most(1.05),),
        PEERS,
        {"long": 4, "short": 4000},
        {"long": 0, "short": 20},
        {"dask": {"short": 1000}, "parsl": {"short": 1000}},
    ),
    Row(
        "slurm_fresh",
        "Slurm, in an allocation: a fresh process per call",
        "/s",
        "slurm_fresh",
        (at_least(100),),
        ("published",),
        {"calls": 300},
        {"calls": 4},
        {"published": {"calls": 20}},
        limit=90,
        slurm=True,
    ),
    Row(
        "slurm_block",
        "Slurm, in an allocation: block allocation, submit + result",
        "/s",
        "slurm_block",
        (at_least(10_000),),
        ("published",),
        {"calls": 10_000},
        {"calls": 50},
        limit=90,
        slurm=True,
    ),
    Row(
        "slurm_map",
        "Slurm, batch jobs: `map` of 200",
        "/s",
        "slurm_map",
        (at_least(20),),
        ("published",),
        {"calls": 200},
        {"calls": 4},
        {"published": {"calls": 30}},
        limit=120,
        slurm=True,
    ),
    Row(
        "flux_fresh",
        "Flux, in an instance: a fresh process per call",
        "/s",
        "flux_fresh",
        (at_least(100),),
        ("published",),
        {"calls": 300},
        {"calls": 4},
        {"published": {"calls": 20}},
        limit=90,
        flux=True,
    ),
    Row(
        "flux_block",
        "Flux, in an instance: block allocation, submit + result",
        "/s",
        "flux_block",
        (at_least(12_000),),
        ("published",),
        {"calls": 10_000},
        {"calls": 50},
        limit=90,
        flux=True,
    ),
    Row(
        "flux_jobs",
        "Flux, a job for each call",
        "/s",
        "flux_jobs",
        (at_least(5),),
        ("published",),
        {"calls": 60},
        {"calls": 4},
        {"published": {"calls": 20}},
        limit=120,
        flux=True,
    ),
    Row(
        "cache_write",
        "block allocation with a cache: results written",
        "/s",
        "cache",
        (at_least(1500),),
        ("published",),
        {"calls": 3000, "reload": False},
        {"calls": 10},
        {"published": {"calls": 1000}},
    ),
    Row(
        "cache_reload",
        "block allocation with a cache: results found",
        "/s",
        "cache",
        (at_least(5000),),
        ("published",),
        {"calls": 3000, "reload": True},
        {"calls": 10},
        {"published": {"calls": 1000}},
    ),
    Row(
        "cache_write_many",
        "the same beside 20,000 files: written",
        "/s",
        "cache",
        (at_least(0.8, "row:cache_write"),),
        (),
        {"calls": 3000, "reload": False, "files": 20_000},
        {"calls": 10, "files": 10},
    ),
    Row(
        "cache_reload_many",
        "the same beside 20,000 files: found",
        "/s",
        "cache",
        (at_least(0.8, "row:cache_reload"),),
        (),
        {"calls": 3000, "reload": True, "files": 20_000},
        {"calls": 10, "files": 10},
    ),
    Row(
        "jobs",
        "TestClusterExecutor, 20 empty calls",
        "/s",
        "jobs",
        (at_least(4, "published"),),
        ("published",),
        {"calls": 20},
        {"calls": 2},
    ),
)
