"""pylammpsmpi: one worker of several MPI ranks that keeps LAMMPS between the calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pylammpsmpi", reason="pylammpsmpi needs Python 3.11")

import ase.build
import lammps_melt
from pylammpsmpi import LammpsASELibrary, LammpsLibrary
from pylammpsmpi.wrapper.concurrent import init_function, start_lmp

from executorlib import SingleNodeExecutor

pytestmark = [pytest.mark.integration, pytest.mark.mpi]

QUIET = ["-screen", "none", "-log", "none"]


def argon() -> Any:
    return ase.build.bulk("Ar", "fcc", a=5.26, cubic=True) * (3, 3, 3)


def argon_energy(lmp: LammpsASELibrary) -> float:
    lmp.interactive_structure_setter(
        structure=argon(), units="metal", dimension=3, boundary="p p p", atom_style="atomic", el_eam_lst=["Ar"]
    )
    lmp.interactive_lib_command("pair_style lj/cut 8.5")
    lmp.interactive_lib_command("pair_coeff 1 1 0.0104 3.4")
    lmp.interactive_lib_command("run 0")
    return float(lmp.interactive_energy_pot_getter())


def pair_energies(atoms: Any) -> float:
    """The same energy, by NumPy."""
    difference = atoms.positions[:, None] - atoms.positions[None]
    lengths = atoms.cell.lengths()
    difference -= lengths * np.round(difference / lengths)
    # The cutoff exceeds half the box, so that more images than the nearest count.
    energy = 0.0
    for shift in np.ndindex(3, 3, 3):
        r = np.linalg.norm(difference + (np.array(shift) - 1) * lengths, axis=2)
        r = r[(r > 1e-6) & (r < 8.5)]
        energy += 0.5 * float(np.sum(4 * 0.0104 * ((3.4 / r) ** 12 - (3.4 / r) ** 6)))
    return energy


def test_the_energy_of_two_ranks_is_that_of_one() -> None:
    parallel, serial = lammps_melt.melt(ranks=2), lammps_melt.melt(ranks=1)
    assert parallel["atoms"] == serial["atoms"] == 864
    assert parallel["total"] == pytest.approx(serial["total"], rel=1e-6)
    assert parallel["potential"] == pytest.approx(serial["potential"], rel=1e-6)
    assert 1.5 < parallel["temperature"] < 1.8  # from 3.0, as half of the energy goes into the potential
    assert "mpi4py.MPI" not in sys.modules  # this process needs no MPI for it


def test_ase_structures() -> None:
    with SingleNodeExecutor(
        max_workers=1, resource_dict={"cores": 2}, block_allocation=True, init_function=init_function
    ) as exe:
        lmp = LammpsASELibrary(cores=2, executor=exe)
        energy = argon_energy(lmp)
        lmp.close()
    assert energy == pytest.approx(pair_energies(argon()), rel=1e-6)


def test_an_executor_that_pylammpsmpi_makes_itself(tmp_path: Path) -> None:
    lmp = LammpsLibrary(cores=2, working_directory=str(tmp_path), cmdargs=["-screen", "none"])
    try:
        lmp.command("region box block 0 2 0 1 0 1")
        lmp.command("create_box 1 box")
    finally:
        lmp.close()
    assert "2 by 1 by 1 MPI processor grid" in (tmp_path / "log.lammps").read_text()


def test_without_the_init_function_the_error_says_what_is_missing() -> None:
    with SingleNodeExecutor(resource_dict={"cores": 2}) as exe, pytest.raises(TypeError) as caught:
        exe.submit(start_lmp, argument_lst=QUIET).result()  # what LammpsLibrary does first
    assert "init_function" in caught.value.__notes__[0]
    assert "'lmp'" in caught.value.__notes__[0]


def test_an_error_of_lammps_arrives_and_the_worker_goes_on() -> None:
    with SingleNodeExecutor(
        max_workers=1, resource_dict={"cores": 2}, block_allocation=True, init_function=init_function
    ) as exe:
        lmp = LammpsLibrary(cores=2, executor=exe, cmdargs=QUIET)
        with pytest.raises(Exception, match="Unknown command"):
            lmp.command("no_such_command")
        assert lmp.natoms == 0
        lmp.close()
