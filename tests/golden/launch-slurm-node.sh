#!/bin/bash
#SBATCH --job-name=p-1
#SBATCH --nodes=2
#SBATCH --ntasks=2
#SBATCH --exclusive
#SBATCH --no-requeue
#SBATCH --output=/shared/runs/p-1/run.log
#SBATCH --open-mode=append

run=/shared/runs/p-1
trap 'echo $? > "$run/exit-status"' EXIT
# The host of each task, in order.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
tasks=(); for node in 0 1; do tasks+=("${nodes[node]}"); done
printf "%s\n" "${tasks[@]}" > "$run/hosts"
export SLURM_HOSTFILE="$run/hosts" HEAD_NODE="${tasks[0]}"
export PORT=$((20000 + SLURM_JOB_ID % 20000))
export MALLOC_MMAP_THRESHOLD_=33554432
export MALLOC_TRIM_THRESHOLD_=68719476736
export OMP_NUM_THREADS=1
export PYTHONSAFEPATH=1
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
for attempt in 0; do
  srun --distribution=arbitrary --ntasks=2 --kill-on-bad-exit=1 \
    --cpu-bind=none --unbuffered bash -c 'exec python3 -P -m torch.distributed.run --nnodes=2 --nproc-per-node=2 --max-restarts=0 "--node-rank=$SLURM_PROCID" "--master-addr=$HEAD_NODE" "--master-port=$PORT" -m launch.runtime.train --plan /shared/runs/p-1/plan.json --run-dir /shared/runs/p-1'
  status=$?
  if [ "$status" = 0 ]; then exit 0; fi
done
exit "$status"
