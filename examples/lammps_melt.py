"""pylammpsmpi: LAMMPS on two MPI ranks, driven call by call from a serial program.

A Lennard-Jones crystal melts. One worker of two ranks is kept (block allocation), and the init function of pylammpsmpi
gives it the object that holds LAMMPS between the calls. The energy has to be that of a run on one rank.
"""

import sys

from pylammpsmpi import LammpsLibrary
from pylammpsmpi.wrapper.concurrent import init_function

from executorlib import SingleNodeExecutor

# The melt of the LAMMPS distribution (examples/melt), smaller. Velocities come from positions, not from atom
# numbers, because these depend on the number of ranks.
SETUP = """
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 6 0 6 0 6
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 3.0 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
neighbor 0.3 bin
fix 1 all nve
thermo_modify norm no
"""
STEPS = 100


def melt(ranks: int) -> dict[str, float]:
    """Number of atoms, temperature and energies after the run, in Lennard-Jones units."""
    with SingleNodeExecutor(
        max_workers=1,
        resource_dict={"cores": ranks},
        block_allocation=True,
        init_function=init_function,
    ) as exe:
        lmp = LammpsLibrary(cores=ranks, executor=exe, cmdargs=["-screen", "none", "-log", "none"])
        for line in SETUP.strip().splitlines():
            lmp.command(line)
        lmp.command(f"run {STEPS}")
        names = {"temperature": "temp", "potential": "pe", "total": "etotal"}
        state = {name: float(lmp.get_thermo(keyword)) for name, keyword in names.items()}
        state["atoms"] = lmp.get_natoms()
        lmp.close()
    return state


def main() -> int:
    parallel, serial = melt(ranks=2), melt(ranks=1)
    difference = abs(parallel["total"] / serial["total"] - 1.0)
    for name, state in {"two ranks": parallel, "one rank": serial}.items():
        print(f"{name:<10} {state['atoms']} atoms, T = {state['temperature']:.4f}, E = {state['total']:.6f}")
    print(f"relative difference of the energies: {difference:.1e}")
    return 0 if difference < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
