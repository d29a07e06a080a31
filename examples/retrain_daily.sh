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
# When validation and the test begin: the day before yesterday and yesterday, UTC.
days=${DAYS:-"('$(date -u -d '2 days ago' +%F)','$(date -u -d '1 day ago' +%F)')"}
options=(--config="csv:$folder" --config.evaluate.split=global_time --config.evaluate.targets=all
  --config.evaluate.cuts="$days")
tested() { # A training that was stopped ends well, too, but has no test metrics.
  [[ -f $1/test_metrics.json ]] || { echo "$1 was not trained to its end." >&2; exit 1; }
}
if [[ -e $runs/current ]]; then
  options+=(--config.train.warm_start="$runs/current")
  # The current model on the newest day: a warm start without an epoch.
  tssr train "${options[@]}" "$@" --workdir="$before" --config.train.num_epochs=0
  tested "$before"
fi
tssr train "${options[@]}" "$@" --workdir="$new"
tested "$new"
if [[ -e $runs/current ]]; then
  verdict=$(python3 - "$before" "$new" <<'PYTHON'
import json, sys
old, new = (json.load(open(f"{run}/test_metrics.json"))["ndcg@10"] for run in sys.argv[1:])
print("worse" if new < old else "promoted", f"({old:.4f} by the current model, {new:.4f} by {sys.argv[2]})")
PYTHON
  )
  rm -rf "$before"
  echo "NDCG@10 of the newest day: $verdict."
  [[ $verdict == promoted* ]] || exit 0
fi
ln -s "$(basename "$new")" "$runs/.next"
mv -T "$runs/.next" "$runs/current" # at once: there is always a current model
echo "$runs/current is $new."
