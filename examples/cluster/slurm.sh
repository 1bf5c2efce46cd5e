#!/usr/bin/env bash
# A sweep on Slurm: a Ray cluster over the nodes of the job, and one worker on each
# GPU but the last of a node.
#
#     sbatch examples/cluster/slurm.sh sweep.toml results/sweep
#
# The environment of Python and the models are on a file system that all nodes share. A second call
# with the same arguments continues a stopped sweep. The command itself loads the model too, on the
# last GPU of the first node: set `device = "cuda:3"` in the file of the sweep.
#SBATCH --job-name=eepolicy
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
set -euo pipefail

sweep=${1:?give the TOML file of the sweep}
out=${2:?give the folder for the results}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_USAGE_STATS_ENABLED=0

# The command runs on every node: each starts Ray, the head runs the sweep, and then all stop.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$((SLURM_GPUS_ON_NODE - 1))" -- \
    eepolicy sweep "$sweep" --out "$out" --ray auto --gpus-per-worker 1
