# sbatch --output=/cache/simulate.log --error=/cache/simulate.log --open-mode=append '--chdir=/scratch/a b' --parsable DIRECTORY/simulate/run_queue.sh
#!/bin/bash
#SBATCH --job-name=simulate
#SBATCH --chdir=DIRECTORY/simulate
#SBATCH --account=physics
#SBATCH --qos=low
#SBATCH --ntasks=1

PYTHON BACKEND/cache_serial.py '/cache/it'"'"'s_i.h5'
