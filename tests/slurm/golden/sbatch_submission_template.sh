# sbatch --output=/cache/simulate.log --error=/cache/simulate.log --open-mode=append --chdir=DIRECTORY/simulate --parsable DIRECTORY/simulate/run_queue.sh
#!/bin/sh
# 1 3
PYTHON BACKEND/cache_serial.py '/cache/it'"'"'s_i.h5'
