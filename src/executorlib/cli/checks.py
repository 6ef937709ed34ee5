"""What `doctor` tries. Each check really does the thing, and says what to do where it does not work.

A check runs in a process of its own, see `executorlib.cli.doctor`: a library that hangs or crashes ends no other check.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from executorlib.standalone.hardware import GPU_VARIABLES, cgroup_cpus, gpus, usable_cpus

WORKS, ABSENT, BROKEN = "works", "absent", "broken"

_EXTRAS = {
    "h5py": "cache",
    "pysqa": "cluster",
    "mpi4py": "mpi",
    "networkx": "graph",
    "pygraphviz": "graph",
    "pydantic": "validation",
    "tqdm": "progress",
    "flux-python": "flux",
}
_COMMAND_SECONDS = 15.0
_SOONEST_SECONDS = 10  # Slurm may take so long to find a free core outside of an allocation


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        state: "works"; "absent" where the machine does not have it; "broken" where it has, to no use
        said: what was seen, in a sentence
        cure: what to do about it; empty where it works
        details: the same for programs
    """

    state: str
    said: str
    cure: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def check_python() -> Finding:
    """The interpreter, and whether this library supports it."""
    said = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}, {platform.platform()}"
    if (3, 10) <= sys.version_info < (3, 15):
        return Finding(WORKS, said)
    return Finding(BROKEN, said, "use Python 3.10 to 3.14")


def check_packages() -> Finding:
    """The versions of the libraries that this one uses."""
    found = {name: _version(name) for name in ("executorlib", "cloudpickle", *_EXTRAS)}
    there = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    missing = ", ".join(f"{name} (executorlib[{_EXTRAS[name]}])" for name in _EXTRAS if not found[name])
    said = there + (f"; not installed: {missing}" if missing else "")
    if found["cloudpickle"]:
        return Finding(WORKS, said, details=found)
    return Finding(BROKEN, said, "pip install cloudpickle", found)


def check_cores() -> Finding:
    """The CPUs that this program may use, and what limits them."""
    total = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = cgroup_cpus()
    limits = [f"affinity mask {affinity}"]
    limits.append(f"control group {quota:g}" if quota is not None else "no quota of a control group")
    said = f"{usable_cpus()} of {total} CPUs ({', '.join(limits)})"
    details = {"usable": usable_cpus(), "cpus": total, "affinity": affinity, "cgroup": quota}
    return Finding(WORKS, said, details=details)


def check_single() -> Finding:
    """Calls in a fresh and in a kept process."""
    from executorlib.executor.single import SingleNodeExecutor

    seconds = {}
    for name, keep in (("fresh", False), ("kept", True)):
        start = time.monotonic()
        with SingleNodeExecutor(max_workers=1, block_allocation=keep) as exe:
            if exe.submit(os.getpid).result() == os.getpid():
                return Finding(BROKEN, "a call has run in the program's own process", "please report this")
        seconds[name] = time.monotonic() - start
    said = ", ".join(f"a call in a {name} process {1000 * taken:.0f} ms" for name, taken in seconds.items())
    return Finding(WORKS, f"{said}, start and end included", details={"seconds": seconds})


def check_mpi() -> Finding:
    """A call on two ranks."""
    from executorlib.executor.single import SingleNodeExecutor
    from executorlib.standalone.command import mpiexec_path

    cure = "pip install mpi4py mpich, or load the module of an MPI library and pip install mpi4py"
    try:
        launcher = mpiexec_path()
    except FileNotFoundError:
        launcher = ""
    library = _version("mpi4py")
    if not launcher and not library:
        return Finding(ABSENT, "neither mpi4py nor mpiexec is installed", cure)
    if not launcher or not library:
        there, missing = ("mpi4py", "no mpiexec") if library else (launcher, "no mpi4py")
        return Finding(BROKEN, f"there is {there}, but {missing}", cure)
    details: dict[str, Any] = {"mpiexec": launcher, "mpi4py": library}
    with SingleNodeExecutor(max_cores=2) as exe:
        ranks = exe.submit(_rank, resource_dict={"cores": 2}).result()
    details["library"] = ranks[0][2]
    said = f"two ranks with {launcher} ({ranks[0][2]}), mpi4py {library}"
    if [rank[:2] for rank in ranks] == [(0, 2), (1, 2)]:
        return Finding(WORKS, said, details=details)
    return Finding(BROKEN, f"{said}: each believes to be {ranks}", cure, details)


def check_gpu() -> Finding:
    """A call with a GPU, which its driver can use."""
    from executorlib.executor.single import SingleNodeExecutor

    names = gpus()
    if not names:
        limits = {name: os.environ[name] for name in GPU_VARIABLES if name in os.environ}
        said = f"no GPU is offered: {limits}" if limits else "there are no /dev/nvidia* and no AMD GPUs"
        return Finding(ABSENT, said, f"unset {', '.join(limits)}" if limits else "")
    with SingleNodeExecutor(max_workers=1) as exe:
        given, seen = exe.submit(_driver_gpus, resource_dict={"gpus_per_core": 1}).result()
    said = f"{len(names)} offered; a call with one of them got {given!r}, of which its driver sees {seen}"
    details = {"gpus": names}
    if seen == 1:
        return Finding(WORKS, said, details=details)
    return Finding(
        BROKEN, said, "look at the output of nvidia-smi or rocm-smi: the driver and the devices must fit", details
    )


def check_h5py() -> Finding:
    """A result that is kept, and found again: in files that this library writes, and in those of the HDF5 library."""
    if not _version("h5py"):
        return Finding(ABSENT, "h5py is not installed", "pip install 'executorlib[cache]'")
    import h5py
    import numpy as np

    from executorlib.standalone.cache_file import read, write

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = os.path.join(folder, "ours.h5"), os.path.join(folder, "theirs.h5")
        write(ours, {"output": [b"text"]})
        with h5py.File(ours, "r") as file:
            read_by_library = file["output"][()].tobytes()
        with h5py.File(theirs, "w") as file:
            file["output"] = np.frombuffer(b"text", np.uint8)
        read_by_us = read(theirs, ["output"])["output"]
    said = f"h5py {_version('h5py')} with HDF5 {h5py.version.hdf5_version}"
    if read_by_library == read_by_us == b"text":
        return Finding(WORKS, f"{said} reads what this library writes, and the other way round")
    return Finding(BROKEN, f"{said}: {read_by_library!r} and {read_by_us!r} were read", "reinstall h5py")


def check_cache() -> Finding:
    """A call that becomes a job which works through files, and is not run again."""
    from executorlib.executor.single import TestClusterExecutor

    with tempfile.TemporaryDirectory() as folder:
        times = []
        for _ in range(2):
            start = time.monotonic()
            with TestClusterExecutor(cache_directory=folder) as exe:
                pid = exe.submit(_process).result()
            times.append(pid)
            seconds = time.monotonic() - start
    if times[0] == times[1] != os.getpid():
        return Finding(WORKS, f"a call ran as a job and was kept in a file; found again in {1000 * seconds:.0f} ms")
    return Finding(BROKEN, f"the call ran twice: {times}", f"is {tempfile.gettempdir()} a usual file system?")


def check_pysqa() -> Finding:
    """The library that submits batch jobs, and what its queueing system answers."""
    if not _version("pysqa"):
        return Finding(ABSENT, "pysqa is not installed", "pip install 'executorlib[cluster]'")
    from pysqa import QueueAdapter

    kinds = [kind for kind, command in (("slurm", "squeue"), ("flux", "flux")) if shutil.which(command)]
    said = f"pysqa {_version('pysqa')}"
    if not kinds:
        return Finding(WORKS, f"{said}; there is no queueing system here that it could ask")
    told = []
    for kind in kinds:
        try:
            jobs = QueueAdapter(queue_type=kind).get_queue_status()
        except Exception as error:  # pysqa raises whatever the command makes of it
            return Finding(BROKEN, f"{said} gets no answer from {kind}: {_short(error)}", f"see the check {kind}")
        told.append(f"{kind} tells it of {len(jobs)} jobs")
    return Finding(WORKS, f"{said}; {', '.join(told)}")


def check_slurm() -> Finding:
    """A job step, inside of an allocation or not, and which PMI its ranks find each other with."""
    if shutil.which("srun") is None:
        return Finding(ABSENT, "there is no srun on PATH", "on a Slurm cluster: load its module")
    partitions = _run(["sinfo", "-h", "-o", "%P %D %T"])
    if partitions.returncode != 0:
        cure = "is this a login or compute node of the cluster, and SLURM_CONF right?"
        return Finding(BROKEN, f"no answer to sinfo: {_said(partitions)}", cure)
    inside = os.environ.get("SLURM_JOB_ID")
    where = ["--overlap"] if inside else [f"--immediate={_SOONEST_SECONDS}", "--time=1"]
    details: dict[str, Any] = {"job": inside, "partitions": partitions.stdout.split("\n")[:-1]}
    step = _run(["srun", "-n", "1", *where, sys.executable, "-c", "print('step')"])
    if "step" not in step.stdout:
        cure = "give what the cluster wants by slurm_cmd_args, or SLURM_ACCOUNT and SLURM_PARTITION"
        if inside:
            cure = "the allocation must have a free core and this Python on its nodes"
        return Finding(BROKEN, f"no job step: {_said(step)}", cure, details)
    said = f"a job step {f'in allocation {inside}' if inside else 'outside of an allocation'} ran"
    if not _version("mpi4py"):
        return Finding(WORKS, f"{said}; without mpi4py no ranks", details=details)
    modes = [mode for mode in (None, "pmi2", "pmix") if _slurm_ranks(mode, where)]
    details["pmi_modes"] = modes
    if not modes:
        return Finding(
            WORKS,
            f"{said}, but several ranks do not find each other",
            "for cores > 1: `srun --mpi=list` shows what Slurm offers; mpi4py must be built for an MPI library "
            "that uses one of these",
            details,
        )
    named = ", ".join("the default" if mode is None else repr(mode) for mode in modes)
    return Finding(WORKS, f"{said}; ranks find each other with pmi_mode: {named}", details=details)


def _slurm_ranks(mode: str | None, where: list[str]) -> bool:
    program = "from mpi4py import MPI; print('size', MPI.COMM_WORLD.size)"
    pmi = [] if mode is None else [f"--mpi={mode}"]
    return _run(["srun", "-n", "2", *pmi, *where, sys.executable, "-c", program]).stdout.count("size 2") == 2


def check_flux() -> Finding:
    """A job in the Flux instance that the program runs in."""
    command = shutil.which("flux")
    try:
        import flux.job
    except ImportError as error:
        if command is None and isinstance(error, ModuleNotFoundError) and error.name == "flux":
            return Finding(ABSENT, "neither flux nor its Python module is installed", "")
        told = _run([command, "--version"]).stdout.split() if command else []
        version_of = f" ({told[told.index('libflux-core:') + 1]} here)" if "libflux-core:" in told else ""
        return Finding(
            BROKEN,
            f"import flux: {error}",
            f"pip install flux-python ply, flux-python of the same version as flux-core{version_of}",
        )
    try:
        handle = flux.Flux()
    except OSError as error:
        return Finding(BROKEN, f"no Flux instance: {error}", "start the program with `flux start` or `flux alloc`")
    del handle
    jobspec = flux.job.JobspecV1.from_command([sys.executable, "-c", "pass"])
    jobspec.environment = dict(os.environ)
    with flux.job.FluxExecutor() as exe:
        code = exe.submit(jobspec).result()
    said = f"a job in the instance {os.environ.get('FLUX_URI', 'of the system')} ended with exit code {code}"
    if code == 0:
        return Finding(WORKS, said, details={"flux": _version("flux-python")})
    return Finding(BROKEN, said, "`flux job attach` of the last job (`flux jobs -a`) shows what it printed")


def check_network() -> Finding:
    """A connection to this program under the name of this host, as workers of other machines make it."""
    host = socket.gethostname()
    cure = f"have {host} in /etc/hosts or the DNS; hostname_localhost=True where all workers run on this machine"
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        return Finding(BROKEN, f"the name of this host, {host}, has no address: {error}", cure)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        start = time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=5.0):
                pass
        except OSError as error:
            return Finding(BROKEN, f"{host} ({address}) port {port} cannot be reached: {error}", cure)
        taken = time.monotonic() - start
    said = f"{host} is {address}; its ports answer in {1000 * taken:.1f} ms"
    if str(address).startswith("127."):
        said += " (a loopback address: other machines must know this host by another)"
    return Finding(WORKS, said, details={"host": host, "address": address})


def check_graph() -> Finding:
    """A dependency graph as a picture."""
    missing = [name for name in ("networkx", "pygraphviz") if not _version(name)]
    if missing:
        return Finding(ABSENT, f"not installed: {', '.join(missing)}", "pip install 'executorlib[graph]'")
    from executorlib.executor.single import SingleNodeExecutor

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "graph.svg")
        with SingleNodeExecutor(plot_dependency_graph_filename=path) as exe:
            exe.submit(sum, [exe.submit(pow, 2, 2), 1])
        with open(path, encoding="utf-8") as file:
            drawn = "<svg" in file.read()
    if drawn:
        return Finding(WORKS, f"drawn with pygraphviz {_version('pygraphviz')}")
    return Finding(BROKEN, "the picture is no SVG", "pip install --force-reinstall pygraphviz")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "packages": check_packages,
    "cores": check_cores,
    "single": check_single,
    "mpi": check_mpi,
    "gpu": check_gpu,
    "h5py": check_h5py,
    "cache": check_cache,
    "pysqa": check_pysqa,
    "slurm": check_slurm,
    "flux": check_flux,
    "network": check_network,
    "graph": check_graph,
}
"""The checks by the names under which they can be asked for, in the order of the report."""


def main(name: str) -> None:
    """Make one check in this process, and write what it has found to standard output, as JSON.

    What the libraries print goes to standard error.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            finding = CHECKS[name]()
        except Exception as error:
            finding = Finding(BROKEN, _short(error), "docs/troubleshooting.md has an entry for each error")
        json.dump(asdict(finding), out)


# Called in workers.


def _process() -> int:
    return os.getpid()


def _rank() -> tuple[int, int, str]:
    from mpi4py import MPI

    library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, " ".join(library.split())


def _driver_gpus() -> tuple[str, int]:
    """The GPU that this process was given, and how many of them the driver lets it use."""
    given = next((os.environ[name] for name in GPU_VARIABLES if name in os.environ), "")
    count = ctypes.c_int(0)
    for library, start, ask in (
        ("libcuda.so.1", "cuInit", "cuDeviceGetCount"),
        ("libamdhip64.so", "hipInit", "hipGetDeviceCount"),
    ):
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        if getattr(driver, start)(0) == 0 and getattr(driver, ask)(ctypes.byref(count)) == 0:
            break
    return given, count.value


# In words


def _version(name: str) -> str | None:
    if name == "executorlib":  # it may be run from a source tree
        import executorlib

        return str(executorlib.__version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer after {_COMMAND_SECONDS:g} s")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a program has printed."""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}, without a word"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) > 600:  # what a program has printed last is at the end
        text = f"{text[:250]} … {text[-300:]}"
    return f"{type(error).__name__}: {text}"
