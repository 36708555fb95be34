#!/usr/bin/env bash
# One stage of an experiment on a TPU slice without Kubernetes, watched from your own machine:
# asks for the slice as a queued resource, starts training on all its hosts, and after a
# preemption asks again and goes on where it was. Leaves the slice to you at the end.
#
#   NAME=qwen ZONE=us-east5-a TYPE=v6e-16 RUNTIME=v2-alpha-tpuv6e CHECKPOINTS=gs://BUCKET/qwen \
#     DATASET=data RUN=runs/qwen SETUP='...' launch/tpu_vm/train.sh
#
# Further words are flags of `alignuser train`. The hosts share no disk.
set -euo pipefail

name=${NAME:?of the queued resource and its slice}
zone=${ZONE:?where}
type=${TYPE:?accelerator type, such as v6e-16}
runtime=${RUNTIME:?software version of the slice, such as v2-alpha-tpuv6e}
spot=${SPOT:-}                            # anything: a spot slice, which may be preempted
setup=${SETUP:-true}                      # run on each host before each start: fetch, install
checkout=${CHECKOUT:-alignuser_jax}       # the checkout on each host, with its environment
config=${CONFIG:-configs/qwen3_8b.py}     # the experiment
dataset=${DATASET:?folder of an imported dataset, on each host}
run=${RUN:?run folder, on each host}
stage=${STAGE:-align}                     # pretrain or align
mesh=${MESH:-data=1}                      # default: fsdp over the whole slice
checkpoints=${CHECKPOINTS:?gs://BUCKET/FOLDER, which all hosts can reach}
pause=${PAUSE:-60}                        # seconds between questions

resource=(gcloud compute tpus queued-resources)

state() {
  "${resource[@]}" describe "$name" --zone="$zone" --format='value(state.state)' 2>/dev/null ||
    echo ABSENT
}

acquire() { # returns once the slice is there
  local now before=
  while now=$(state) && [[ $now != ACTIVE ]]; do
    [[ $now == "$before" ]] || echo "$(date +%FT%T) $name: $now"
    before=$now
    case $now in
      ABSENT)
        "${resource[@]}" create "$name" --node-id="$name" --zone="$zone" \
          --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot}
        ;;
      SUSPENDED | FAILED) # preempted, or never granted: it will not come back by itself
        "${resource[@]}" delete "$name" --zone="$zone" --force --quiet
        ;;
    esac
    sleep "$pause"
  done
}

train=(.venv/bin/alignuser train --config="$config" --dataset="$dataset" --run="$run"
  --stage="$stage" --mesh="$mesh" --distributed=auto --checkpoints="$checkpoints" "$@")
printf -v command '%q ' "${train[@]}"

while true; do
  acquire
  code=0
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --batch-size=all \
    --command="{ $setup; } && cd $(printf %q "$checkout") && $command" || code=$?
  case $code in
    0) exit 0 ;;
    85) echo "$(date +%FT%T) stopped and saved: starting again" ;;
    *)
      sleep "$pause" # a preemption shows in the state a little later
      [[ $(state) != ACTIVE ]] || exit "$code"
      echo "$(date +%FT%T) lost the slice: asking for another"
      ;;
  esac
done
