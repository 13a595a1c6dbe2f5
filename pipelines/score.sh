#!/usr/bin/env bash
# The loop of `score run` as plain commands: the same files, the same bytes, one process for each step.
#
#   pipelines/score.sh RECIPE FOLDER STAGE1_ITERATIONS STAGE2_ITERATIONS
#
# SEED=3 beats the recipe's seed. To scale out, replace a line: sample on one machine, verify on another.
set -euo pipefail

if (($# != 4)); then
    echo "usage: $0 RECIPE FOLDER STAGE1_ITERATIONS STAGE2_ITERATIONS" >&2
    exit 2
fi
recipe=$1 run=$2 stage1=$3 stage2=$4
seed=(${SEED:+--seed "$SEED"})

for split in train validation test; do
    score data division --split "$split" --out "$run/$split.parquet"
done
score base --config "$recipe" "${seed[@]}" --out "$run/base"

policy=$run/base
for ((i = 0; i < stage1 + stage2; i++)); do
    step=$run/iterations/$(printf %04d "$i")
    stage=$((i < stage1 ? 1 : 2))
    score sample --config "$recipe" "${seed[@]}" --model "$policy" --problems "$run/train.parquet" --out "$step/traces.parquet"
    score verify --config "$recipe" --traces "$step/traces.parquet" --problems "$run/train.parquet" --out "$step/rewards.parquet"
    score "train-stage$stage" --config "$recipe" --model "$policy" --reference "$run/base" \
        --traces "$step/traces.parquet" --rewards "$step/rewards.parquet" --out "$step/next"
    # Policies between the ends of the stages are not needed again.
    [[ $policy == */next ]] && rm -r "$policy"
    policy=$step/next
    if ((i + 1 == stage1)); then mv "$policy" "$run/stage1" && policy=$run/stage1; fi
    if ((i + 1 == stage1 + stage2 && stage == 2)); then mv "$policy" "$run/stage2" && policy=$run/stage2; fi
done

models=()
for name in base stage1 stage2; do
    [[ -d $run/$name ]] && models+=(--model "$run/$name")
done
score eval --config "$recipe" "${seed[@]}" "${models[@]}" --problems "$run/test.parquet" \
    --traces-folder "$run/eval" --out "$run/metrics.parquet"
