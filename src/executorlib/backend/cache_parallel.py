"""Program of a job that runs one task of the cache on several MPI ranks.

    mpiexec -n 2 python cache_parallel.py PATH, that of the task's <key>_i.h5

Each rank reads the input file and runs the task; rank 0 writes the results of all. A rank that fails while the others
wait for it, in a collective call that never ends, writes its error itself and ends them.
"""

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import time
from typing import Any

from executorlib.backend.cache_call import FileCall, Interruption, Outcome, combine, end, report, set_up, take_in_turn
from executorlib.backend.ranks import start_mpi
from executorlib.backend.worker import finish
from executorlib.standalone.cache_claim import TAKEN_EXIT_CODE
from executorlib.standalone.cache_outcome import is_ended, read_call
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.command import OTHER_MPI

_PAUSE = 1e-3
# When one rank has failed, the others get so long to come to an end themselves.
_RANK_SECONDS = 3.0


def main(argv: list[str]) -> int:
    """Run the task on this rank; returns the exit code."""
    paths = _task_of(argv)
    comm = start_mpi()
    code = comm.bcast(_begin(paths) if comm.rank == 0 else None)
    if code is not None:
        return int(code)
    try:
        call = FileCall(paths, read_call(paths))
        set_up(call.content)
        problem = _wrong_size(call.content, comm.size)
        if problem is not None:  # no fault of the function, and cured before the call is submitted again
            return report(problem, paths)
        _write_together(comm, call, call.run())
        finish()
    except (Exception, Interruption) as error:
        code = report(error, paths)
        sys.stderr.flush()
        comm.Abort(code)
    finally:
        if comm.rank == 0:
            end(paths)
    return 0


def _task_of(argv: list[str]) -> CachePaths:
    if argv[0] != "--array":
        return CachePaths.of_file(argv[0])
    from executorlib.backend import cache_array

    paths = cache_array.read_inputs(argv[1])[cache_array.own_number()]
    cache_array.enter(paths, os.path.dirname(argv[1]))
    return paths


def _begin(paths: CachePaths) -> int | None:
    if not take_in_turn(paths):
        return TAKEN_EXIT_CODE
    if is_ended(paths.output):
        end(paths)
        return 0
    return None


def _wrong_size(content: dict[str, bytes], size: int) -> Exception | None:
    import pickle

    asked = pickle.loads(content["resource_dict"]).get("cores", size) if "resource_dict" in content else size
    if asked == size:
        return None
    from mpi4py import MPI

    library = " ".join(MPI.Get_library_version().strip("\0 \n").splitlines()[0].split())
    return RuntimeError(
        f"The task was asked to run on {asked} MPI ranks but sees {size}: {OTHER_MPI}. Here mpi4py uses {library} "
        "(see Troubleshooting: WorkerStartError)"
    )


def _write_together(comm: Any, call: FileCall, outcome: Outcome) -> None:
    """Bring the outcomes together; rank 0 writes them."""
    barrier = comm.Ibarrier()
    deadline = None if outcome.succeeded else time.monotonic() + _RANK_SECONDS
    # A rank that has ended early waits for the slowest without taking a core from it.
    while not barrier.Test():
        if deadline is not None and time.monotonic() > deadline:
            call.write(outcome)
            end(call.paths)
            comm.Abort(1)
        time.sleep(_PAUSE)
    outcomes = comm.gather((outcome.succeeded, outcome.data, outcome.traceback, outcome.runtime))
    if outcomes is not None:
        call.write(combine([Outcome(*each) for each in outcomes]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
