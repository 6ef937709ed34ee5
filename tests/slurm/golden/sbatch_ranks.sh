# sbatch --output=/cache/simulate.log --error=/cache/simulate.log --open-mode=append --chdir=DIRECTORY/simulate --parsable DIRECTORY/simulate/run_queue.sh
#!/bin/bash
#SBATCH --job-name=simulate
#SBATCH --chdir=DIRECTORY/simulate
#SBATCH --ntasks=4
#SBATCH --cpus-per-task=2

srun --ntasks=4 --kill-on-bad-exit=1 --cpus-per-task=2 --exact --mem=0 PYTHON BACKEND/cache_parallel.py '/cache/it'"'"'s_i.h5'
