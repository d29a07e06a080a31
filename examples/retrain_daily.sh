#!/usr/bin/env bash
# Trains on all data until now, beginning with the current model, and puts the new model in its place
# if that ranks what happened on the newest day no worse.
#   retrain_daily.sh FOLDER RUNS [option of tssr train ...]
# FOLDER has the data (docs/guides/own_data.md). RUNS/current is the model that serves.
set -euo pipefail
folder=$1 runs=$2
shift 2
new="$runs/$(date -u +%Y-%m-%d-%H%M%S)"
before="$new-before"
# When validation and the test begin: yesterday and today, UTC.
days=${DAYS:-"('$(date -u -d '1 day ago' +%F)','$(date -u +%F)')"}
options=(--config="csv:$folder" --config.evaluate.split=global_time --config.evaluate.targets=all
  --config.evaluate.cuts="$days")
if [[ -e $runs/current ]]; then
  options+=(--config.train.warm_start="$runs/current")
  # The current model on the newest day, as it is.
  tssr train "${options[@]}" "$@" --workdir="$before" --config.train.num_epochs=0
fi
tssr train "${options[@]}" "$@" --workdir="$new"
if [[ -e $runs/current ]] && ! python3 - "$before" "$new" <<'PYTHON'; then
import json, sys
old, new = (json.load(open(f"{run}/test_metrics.json"))["ndcg@10"] for run in sys.argv[1:])
print(f"NDCG@10 of the newest day: {old:.4f} by the current model, {new:.4f} by the new one.")
sys.exit(new < old)
PYTHON
  echo "$new is worse: $runs/current stays."
  exit 0
fi
ln -sfn "$(basename "$new")" "$runs/current"
echo "$runs/current is $new."
