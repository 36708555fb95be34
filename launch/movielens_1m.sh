#!/usr/bin/env bash
# Everything behind the README's MovieLens-1M section, from the raw files to its tables.
#
#   launch/movielens_1m.sh ML-1M PLOTS                      all of it, one step after the other
#   launch/movielens_1m.sh ML-1M PLOTS policy ratings       some steps, in this order
#
# ML-1M: folder of ratings.dat, users.dat, movies.dat; PLOTS: file of descriptions.
# RUNS (default runs/ml-1m): where it goes. A step that is run again goes on where it was, so two
# lanes can share the steps between two cores: what each needs stands beside it.
# shellcheck disable=SC2086  # lists of flags are split into words on purpose
set -euo pipefail

ml_1m=$1 plots=$2
shift 2
runs=${RUNS:-runs/ml-1m}
alignuser=${ALIGNUSER:-.venv/bin/alignuser}

data=--dataset=$runs/data
small="--config=configs/small.py $data --run=$runs/small"
uniform="--config=configs/small_uniform.py $data --run=$runs/small_uniform"
ablation=$runs/small/ablation
arms=
for arm in random popularity als als-half-random als-shuffled; do
  arms+=${arms:+,}$arm=$runs/rec/$arm
done

say() { echo "== $(date +%T) $*" && "$@"; }

import() {
  say $alignuser import-logs --format=movielens --input="$ml_1m" --descriptions="$plots" \
    --output=$runs/data
}

recommenders() {  # import
  local fit="$alignuser fit-recommender $data"
  say $fit --kind=random --output=$runs/rec/random
  say $fit --kind=popularity --output=$runs/rec/popularity
  say $fit --kind=als --output=$runs/rec/als
  say $fit --kind=degraded --inner=$runs/rec/als --output=$runs/rec/als-half-random
  say $fit --kind=shuffled --inner=$runs/rec/als --output=$runs/rec/als-shuffled
}

train() {
  say $alignuser build-shards $1 --stage=pretrain
  say $alignuser train $1 --stage=pretrain
  say $alignuser build-shards $1 --stage=align
  say $alignuser train $1 --stage=align
}
policy() { train "$small"; }  # import
policy_uniform() { train "$uniform"; }  # import

simulate_shown() {  # policy, recommenders
  say $alignuser simulate $small --arms=$arms --out=$runs/small/ab
}
simulate_hidden() {  # policy, recommenders
  say $alignuser simulate $small --arms=$arms --noshow_means --out=$runs/small/ab-hidden
}
simulate_uniform() {  # policy_uniform, recommenders
  say $alignuser simulate $uniform --arms=$arms --out=$runs/small_uniform/ab
}

verdicts() {  # the three simulations
  local simulations=mixed=$runs/small/ab,uniform=$runs/small_uniform/ab,hidden-means=$runs/small/ab-hidden
  for agents in 1000 200; do
    say $alignuser ab-test --simulations=$simulations --control=popularity --agents=$agents \
      $data --recommenders=$arms --out=$runs/tables/$agents
  done
}

ratings() {  # policy
  say $alignuser evaluate $small --what=ratings --out=$runs/tables/ratings \
    --adapters=agents=$runs/small/align/adapter,first=
}
choices() {  # policy
  say $alignuser evaluate $small --what=preference,next_state --out=$runs/tables/choices
}

ablation_policies() {  # the first stage of policy, and its shards of the second
  say $alignuser build-shards $small --tasks=world_model,imitation \
    --limits=world_model=4000,imitation=3000 --out=$ablation/imitation
  say $alignuser build-shards $small --shuffle_reflections --out=$ablation/shuffled
  for seed in 0 1 2; do
    local rest="--steps=120 --nopacking --seed=$seed --out=$ablation"
    say $alignuser train $small --shards=$ablation/imitation --mix=world_model=1,imitation=1 \
      --task_weights=imitation=0.25 $rest/imitation-$seed
    say $alignuser train $small $rest/reflection-$seed
    say $alignuser train $small --shards=$ablation/shuffled $rest/shuffled-$seed
  done
}
ablation_tables() {  # ablation_policies
  local adapters=
  for variant in imitation reflection shuffled; do
    for seed in 0 1 2; do
      adapters+=${adapters:+,}$variant@$seed=$ablation/$variant-$seed/adapter
    done
  done
  local evaluate="$alignuser evaluate $small --what=ratings --adapters=$adapters"
  say $evaluate --out=$runs/tables/ablation-direct
  # evaluate exits 1 where the first policy is not accepted, which so few users may not decide
  say $evaluate --agents=60 --reasoning_samples=8 --out=$runs/tables/ablation-reasoning || (($? == 1))
}

steps=(import recommenders policy policy_uniform simulate_shown simulate_hidden simulate_uniform
  verdicts ratings choices ablation_policies ablation_tables)
for step in "${@:-${steps[@]}}"; do
  [[ " ${steps[*]} " == *" $step "* ]] || { echo "No step $step. Steps: ${steps[*]}" >&2; exit 2; }
  $step
done
