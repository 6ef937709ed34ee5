# sbatch --output=/cache/simulate.log --error=/cache/simulate.log --open-mode=append --chdir=DIRECTORY/simulate --parsable DIRECTORY/simulate/run_queue.sh
#!/bin/bash
#SBATCH --job-name=simulate
#SBATCH --chdir=DIRECTORY/simulate
#SBATCH --ntasks=1

srun --ntasks=1 --exact --mem=0 --hint=nomultithread PYTHON BACKEND/cache_serial.py '/cache/it'"'"'s_i.h5'
