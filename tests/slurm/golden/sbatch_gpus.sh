# sbatch --output=/cache/simulate.log --error=/cache/simulate.log --open-mode=append --chdir=DIRECTORY/simulate --parsable DIRECTORY/simulate/run_queue.sh
#!/bin/bash
#SBATCH --job-name=simulate
#SBATCH --chdir=DIRECTORY/simulate
#SBATCH --ntasks=2
#SBATCH --gpus-per-task=1

srun --ntasks=2 --kill-on-bad-exit=1 --gpus-per-task=1 --exact --mem=0 PYTHON BACKEND/cache_parallel.py '/cache/it'"'"'s_i.h5'
