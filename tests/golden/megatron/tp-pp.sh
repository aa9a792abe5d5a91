#!/bin/bash
# Plan p-1, tp8 pp4 dp1 mbs1, for Megatron-LM (megatron-core 0.19.2).
# llama3-70b, 64 sequences of 4096 tokens a step, 32 ranks.
# What it is given starts the ranks: `bash train.sh torchrun --nproc-per-node=...`
# Other than in the plan: the seed is 1, the least that it takes.
set -eu
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -f "$HERE/settings.sh" ]; then . "$HERE/settings.sh"; fi
[ -n "${MEGATRON:-}" ] || { echo 'set MEGATRON: checkout of Megatron-LM, with pretrain_gpt.py' >&2; exit 2; }
[ -n "${DATA_PATH:-}" ] || { echo 'set DATA_PATH: tokenized data: its path without .bin, or `mock`: made-up tokens' >&2; exit 2; }
export MEGATRON DATA_PATH
export CUDA_DEVICE_MAX_CONNECTIONS=1
ARGS=(
  # model: llama
  --num-layers 80
  --hidden-size 8192
  --ffn-hidden-size 28672
  --num-attention-heads 64
  --padded-vocab-size 128256
  --max-position-embeddings 4096
  --normalization RMSNorm
  --norm-epsilon 1e-05
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --swiglu
  --disable-bias-linear
  --untie-embeddings-and-output-weights
  # attention
  --position-embedding-type rope
  --rotary-base 500000
  --kv-channels 128
  --group-query-attention
  --num-query-groups 8
  # layout
  --tensor-model-parallel-size 8
  --sequence-parallel
  --pipeline-model-parallel-size 4
  --context-parallel-size 1
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
  DATA=(--mock-data --tokenizer-type NullTokenizer --vocab-size 128256)
else
  : "${TOKENIZER:?Hugging Face name or folder of the tokenizer}"
  DATA=(--data-path "$DATA_PATH" --split 100,0,0
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$TOKENIZER")
fi
exec "$@" "$MEGATRON/pretrain_gpt.py" "${ARGS[@]}" "${DATA[@]}"
