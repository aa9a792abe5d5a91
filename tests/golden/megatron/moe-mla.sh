#!/bin/bash
# Plan p-1, tp2 pp16 dp1 shard8 zero1 ep16 mbs1 full-recompute, for Megatron-LM (megatron-core 0.19.2).
# deepseek-v3, 64 sequences of 4096 tokens a step, 256 ranks.
# What it is given starts the ranks: `bash train.sh torchrun --nproc-per-node=...`
# Other than in the plan: the seed is 1, the least that it takes.
set -eu
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -f "$HERE/settings.sh" ]; then . "$HERE/settings.sh"; fi
[ -n "${MEGATRON:-}" ] || { echo 'set MEGATRON: checkout of Megatron-LM, with pretrain_gpt.py' >&2; exit 2; }
[ -n "${DATA_PATH:-}" ] || { echo 'set DATA_PATH: tokenized data: its path without .bin, or `mock`: made-up tokens' >&2; exit 2; }
[ -n "${ROPE_ARGS:-}" ] || { echo 'set ROPE_ARGS: arguments of the model'"'"'s yarn rope_scaling, --rope-type yarn --rotary-scaling-factor FACTOR ...' >&2; exit 2; }
export MEGATRON DATA_PATH ROPE_ARGS
export CUDA_DEVICE_MAX_CONNECTIONS=1
ARGS=(
  # model: deepseek_v3
  --num-layers 61
  --hidden-size 7168
  --ffn-hidden-size 18432
  --num-attention-heads 128
  --padded-vocab-size 129280
  --max-position-embeddings 4096
  --normalization RMSNorm
  --norm-epsilon 1e-06
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --swiglu
  --disable-bias-linear
  --untie-embeddings-and-output-weights
  --mtp-num-layers 1
  # attention
  --position-embedding-type rope
  --rotary-base 10000
  $ROPE_ARGS
  --kv-channels 128
  --multi-latent-attention
  --q-lora-rank 1536
  --kv-lora-rank 512
  --qk-head-dim 128
  --qk-pos-emb-head-dim 64
  --v-head-dim 128
  --qk-layernorm
  # experts
  --num-experts 256
  --moe-ffn-hidden-size 2048
  --moe-router-topk 8
  --moe-router-score-function sigmoid
  --moe-token-dispatcher-type alltoall
  --moe-grouped-gemm
  --moe-layer-freq '([0]*3+[1]*58)'
  --moe-router-enable-expert-bias
  --moe-router-topk-scaling-factor 2.5
  --moe-router-num-groups 8
  --moe-router-group-topk 4
  --moe-shared-expert-intermediate-size 2048
  # layout
  --tensor-model-parallel-size 2
  --sequence-parallel
  --pipeline-model-parallel-size 16
  --pipeline-model-parallel-layout 'Et*3|(t*4|)*14t*2mL'
  --context-parallel-size 1
  --expert-model-parallel-size 16
  --expert-tensor-parallel-size 1
  # data-parallel sharding and overlap
  --overlap-grad-reduce
  --use-distributed-optimizer
  --overlap-param-gather
  # recomputation and offload
  --recompute-granularity full
  --recompute-method uniform
  --recompute-num-layers 1
  # precision
  --bf16
  --accumulate-allreduce-grads-in-fp32
  # training
  --seq-length 4096
  --micro-batch-size 1
  --global-batch-size 64
  --train-iters 12
  --optimizer adam
  --adam-beta1 0.9
  --adam-beta2 0.95
  --adam-eps 1e-08
  --weight-decay 0.01
  --clip-grad 0
  --lr 0.0003
  --min-lr 0.0003
  --lr-decay-style constant
  --lr-decay-iters 12
  --lr-warmup-iters 0
  --seed 1
  --eval-iters 0
  --log-interval 1
  --log-throughput
)
if [ "$DATA_PATH" = mock ]; then
  DATA=(--mock-data --tokenizer-type NullTokenizer --vocab-size 129280)
else
  : "${TOKENIZER:?Hugging Face name or folder of the tokenizer}"
  DATA=(--data-path "$DATA_PATH" --split 100,0,0
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$TOKENIZER")
fi
exec "$@" "$MEGATRON/pretrain_gpt.py" "${ARGS[@]}" "${DATA[@]}"
