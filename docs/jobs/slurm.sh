#!/bin/bash
# Four machines with four GPUs each: sbatch slurm.sh
#SBATCH --job-name=niwaki
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue

# All machines have to see the folders of images and results.
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 4 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" \
    -m niwaki audit torchvision:resnet50 /data/images --limit 100000 --device cuda --out /results/audit
