#!/bin/bash
# Plan p-1, tp8 pp8 dp1 shard2 zero1 mbs1, for Megatron-LM (megatron-core 0.19.2).
# gpt3-175b, 64 sequences of 2048 tokens a step, 128 ranks.
# What it is given starts the ranks: `bash train.sh torchrun --nproc-per-node=...`
# Other than in the plan: the seed is 1, the least that it takes.
# Other than in the plan: fp8 is cast by the release's default recipe.
set -eu
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -f "$HERE/settings.sh" ]; then . "$HERE/settings.sh"; fi
[ -n "${MEGATRON:-}" ] || { echo 'set MEGATRON: checkout of Megatron-LM, with pretrain_gpt.py' >&2; exit 2; }
[ -n "${DATA_PATH:-}" ] || { echo 'set DATA_PATH: tokenized data: its path without .bin, or `mock`: made-up tokens' >&2; exit 2; }
export MEGATRON DATA_PATH
export CUDA_DEVICE_MAX_CONNECTIONS=1
ARGS=(
  # model: gpt2
  --num-layers 96
  --hidden-size 12288
  --ffn-hidden-size 49152
  --num-attention-heads 96
  --padded-vocab-size 51200
  --max-position-embeddings 2048
  --normalization LayerNorm
  --norm-epsilon 1e-05
  --attention-dropout 0.0
  --hidden-dropout 0.0
  # attention
  --position-embedding-type learned_absolute
  --kv-channels 128
  # layout
  --tensor-model-parallel-size 8
  --sequence-parallel
  --pipeline-model-parallel-size 8
  --context-parallel-size 1
  # data-parallel sharding and overlap
  --overlap-grad-reduce
  --use-distributed-optimizer
  --overlap-param-gather
  # precision
  --bf16
  --accumulate-allreduce-grads-in-fp32
  --fp8-format hybrid
  # training
  --seq-length 2048
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
  DATA=(--mock-data --tokenizer-type NullTokenizer --vocab-size 51200)
else
  : "${TOKENIZER:?Hugging Face name or folder of the tokenizer}"
  DATA=(--data-path "$DATA_PATH" --split 100,0,0
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$TOKENIZER")
fi
exec "$@" "$MEGATRON/pretrain_gpt.py" "${ARGS[@]}" "${DATA[@]}"
