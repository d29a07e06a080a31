#!/usr/bin/env bash
# Trains on a Cloud TPU VM: creates it, sets it up, runs, follows, resumes, fetches, deletes.
# `./launch_tpu.sh help` explains; docs/guides/tpu.md walks through.
set -euo pipefail

ROOT="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"  # of the file itself, not of a link to it
readonly ROOT
readonly LABEL="managed_by=tssr-jax"  # on all that this script creates; it deletes nothing else
readonly REMOTE="tssr_jax"            # folder in the workers' home

NAME="${TPU_NAME:-tssr}"
PROJECT="${TPU_PROJECT:-}"
ZONE="${TPU_ZONE:-}"
TYPE="${TPU_TYPE:-v5litepod-8}"
RUNTIME="${TPU_RUNTIME:-v2-alpha-tpuv5-lite}"
TIER="${TPU_TIER:-spot}"
WORKDIR="${TPU_WORKDIR:-}"
CONFIG="${TPU_CONFIG:-configs/ml1m.py}"
DATA="${TPU_DATA:-}"
PYTHON="${TPU_PYTHON:-3.12}"
DESTINATION="${TPU_DESTINATION:-}"
ATTEMPTS="${TPU_ATTEMPTS:-5}"
BACKOFF="${TPU_BACKOFF:-5}"
POLL="${TPU_POLL:-30}"
DRY_RUN=""
TRAIN_FLAGS=()

usage() {
  cat <<'TEXT'
Usage: launch_tpu.sh COMMAND [OPTION...] [-- FLAG OF tssr_jax.main...]

Commands
  create    ask for the TPU as a queued resource, and wait until it is there
  setup     copy this folder to all workers and install it
  run       start training on all workers, in the background
  logs      follow the log of worker 0 (Ctrl-C stops following, not training)
  status    state of the queued resource, and whether training runs
  resume    after a preemption: create again, set up, and go on from the last checkpoint
  fetch     copy the results here
  delete    give the TPU back; results in a gs:// workdir stay
  help      this text

Options, each also as an environment variable
  --name=NAME         TPU_NAME         of TPU and queued resource (tssr)
  --project=PROJECT   TPU_PROJECT      (gcloud's default)
  --zone=ZONE         TPU_ZONE         (gcloud's default)
  --type=TYPE         TPU_TYPE         accelerator type (v5litepod-8)
  --runtime=VERSION   TPU_RUNTIME      runtime version (v2-alpha-tpuv5-lite)
  --tier=TIER         TPU_TIER         spot or on-demand (spot)
  --workdir=FOLDER    TPU_WORKDIR      of the run: gs://BUCKET/PATH; a local one is lost with the TPU
  --config=FILE       TPU_CONFIG       (configs/ml1m.py)
  --data=FOLDER       TPU_DATA         raw data, e.g. gs://BUCKET/PATH: --config.data.raw_dir
  --python=VERSION    TPU_PYTHON       on the workers, installed by uv (3.12)
  --to=FOLDER         TPU_DESTINATION  where fetch puts the results (runs/NAME)
  --attempts=N        TPU_ATTEMPTS     tries of a copy or a remote command (5)
  --backoff=SECONDS   TPU_BACKOFF      before the second try, doubled each time (5)
  --poll=SECONDS      TPU_POLL         between two looks at the state (30)
  --dry-run                            print the exact commands, run none

Example
  export TPU_PROJECT=my-project TPU_ZONE=us-west4-a TPU_WORKDIR=gs://my-bucket/ml1m
  ./launch_tpu.sh create && ./launch_tpu.sh setup && ./launch_tpu.sh run
  ./launch_tpu.sh logs
  ./launch_tpu.sh fetch && ./launch_tpu.sh delete
TEXT
}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "Error: $*"
  exit 1
}

# Runs a command, or prints it.
execute() {
  if [[ -n "$DRY_RUN" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The flags of every gcloud command: no questions, which project, which zone.
where() {
  WHERE=(--quiet)
  [[ -z "$PROJECT" ]] || WHERE+=("--project=$PROJECT")
  [[ -z "$ZONE" ]] || WHERE+=("--zone=$ZONE")
}

# Sets ANSWER to one field of the queued resource; to nothing if there is none of that name. A look
# that fails is tried again, and never taken for absence.
look() {
  local field="$1" attempt errors pause="$BACKOFF"
  errors="$(mktemp)"
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    if ANSWER="$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
      "--format=value($field)" 2>"$errors")"; then
      rm -f "$errors"
      return
    fi
    if grep -qiE 'NOT_FOUND|was not found' "$errors" &&
      ! grep -qiE '(^|[^a-z/])project[^s].*not found' "$errors"; then
      ANSWER=""
      rm -f "$errors"
      return
    fi
    ((attempt == ATTEMPTS)) || back_off "looking at $NAME" "$attempt"
  done
  ANSWER="$(<"$errors")"
  rm -f "$errors"
  die "can't look at $NAME. gcloud says: $ANSWER"
}

# Waits before the next attempt, each time twice as long; the caller declares `pause`.
back_off() { # what, attempt
  say "$1 failed (attempt $2 of $ATTEMPTS); again in ${pause} s."
  sleep "$pause"
  pause=$((pause * 2))
}

require_ours() {
  look "tpu.nodeSpec[0].node.labels.${LABEL%%=*}"
  [[ "$ANSWER" == "${LABEL#*=}" ]] ||
    die "the queued resource $NAME was not created by this script (label $LABEL is not on it); it is left alone. Choose another --name."
}

# Tells a preemption from a failure.
require_active() { # what
  look state.state
  case "$ANSWER" in
    ACTIVE) ;;
    SUSPENDING | SUSPENDED)
      die "$NAME was preempted. Go on from the last checkpoint with: launch_tpu.sh resume"
      ;;
    *) die "$NAME is ${ANSWER:-not there}; $1 needs it to be ACTIVE. See: launch_tpu.sh create" ;;
  esac
}

# Tries a command again when it fails, as long as another one, given what is tried, succeeds.
persist() { # what, check, command ...
  local what="$1" check="$2" attempt pause="$BACKOFF"
  shift 2
  if [[ -n "$DRY_RUN" ]]; then
    execute "$@"
    return
  fi
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    if "$@"; then
      return
    fi
    "$check" "$what"
    ((attempt == ATTEMPTS)) || back_off "$what" "$attempt"
  done
  die "$what failed $ATTEMPTS times. The output above says why."
}

on_workers() { # what, worker, command
  persist "$1" require_active gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" "--worker=$2" "--command=$3"
}

create() {
  local flags=(--async)
  ANSWER=""
  [[ "$TIER" == on-demand ]] || flags+=(--spot)
  if [[ -z "$DRY_RUN" ]]; then
    look state.state
    if [[ -n "$ANSWER" ]]; then
      require_ours
      look state.state
    fi
  fi
  case "$ANSWER" in
    "")
      execute gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" \
        "--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" \
        "--labels=$LABEL" "${flags[@]}" ||
        die "$NAME was not created; gcloud's message is above. If it speaks of quota: ask for more of $TYPE in ${ZONE:-this zone}, or choose another --zone, --type or --tier."
      ;;
    ACTIVE) say "$NAME is there already." ;;
    FAILED | SUSPENDING | SUSPENDED)
      die "$NAME is $ANSWER. Replace it and go on with: launch_tpu.sh resume; or remove it with: launch_tpu.sh delete"
      ;;
    *) say "$NAME was asked for already." ;;
  esac
  [[ -n "$DRY_RUN" ]] || wait_until_active
}

wait_until_active() {
  local current last=""
  while true; do
    look state.state
    current="$ANSWER"
    [[ "$current" == "$last" ]] || say "$NAME: ${current:-not there}"
    last="$current"
    case "$current" in
      ACTIVE) return ;;
      "") die "$NAME disappeared while waiting for it." ;;
      FAILED | SUSPENDING | SUSPENDED)
        look state
        die "$NAME is $current: $ANSWER Remove it with: launch_tpu.sh delete; then create it again, or with another --zone, --type or --tier."
        ;;
    esac
    sleep "$POLL"
  done
}

setup() {
  local archive
  SCRATCH="$(mktemp -d)"
  trap 'rm -rf "$SCRATCH"' EXIT
  archive="$SCRATCH/$REMOTE.tar.gz"
  execute tar -czf "$archive" --dereference -C "$ROOT" --exclude=./.git --exclude=./.venv --exclude=./.venv-peers --exclude=./runs . ||
    die "this folder can't be packed; tar's message is above. (Links are followed: one that leads nowhere has to go.)"
  persist "copying" require_active gcloud compute tpus tpu-vm scp "$archive" "$NAME:$REMOTE.tar.gz" \
    "${WHERE[@]}" --worker=all
  on_workers "setting up" all "set -e; mkdir -p $REMOTE; tar -xzf $REMOTE.tar.gz -C $REMOTE; cd $REMOTE; python3 -m pip install --quiet --user uv; python3 -m uv venv --quiet --seed --allow-existing --python $(quoted "$PYTHON") .venv; python3 -m uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable . 'jax[tpu]'"
}

# A word as the workers' shell reads it.
quoted() { printf '%q' "$1"; }

# Succeeds on a worker, in its folder, if the process that `run` started is there. (After a restart
# of the worker its number may belong to another program.)
# shellcheck disable=SC2016  # the worker expands it
readonly RUNS='[ -f pid ] && grep -qs tssr_jax.main "/proc/$(cat pid)/cmdline"'

train_command() {
  local words=(.venv/bin/python -m tssr_jax.main --multihost "--config=$CONFIG" "--workdir=$WORKDIR")
  [[ -z "$DATA" ]] || words+=("--config.data.raw_dir=$DATA")
  words+=(${TRAIN_FLAGS[@]+"${TRAIN_FLAGS[@]}"})
  printf '%q ' "${words[@]}"
}

run() {
  [[ -n "$WORKDIR" ]] || die "run needs --workdir=gs://BUCKET/PATH (or TPU_WORKDIR)."
  [[ "$WORKDIR" == gs://* ]] ||
    say "Note: $WORKDIR lies on the TPU and is lost with it; gs://BUCKET/PATH stays."
  # A worker on which training runs already is left alone.
  on_workers "starting" all "cd $REMOTE && if $RUNS; then echo 'training runs already'; else nohup $(train_command)>> run.log 2>&1 < /dev/null & echo \$! > pid; fi"
}

logs() { on_workers "following the log" 0 "tail -n 100 -F $REMOTE/run.log"; }

status() {
  if [[ -n "$DRY_RUN" ]]; then
    execute gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
      "--format=value(state.state)"
    return
  fi
  look state.state
  printf '%s: %s\n' "$NAME" "${ANSWER:-not there}"
  [[ "$ANSWER" != ACTIVE ]] ||
    on_workers "asking the workers" all "cd $REMOTE 2>/dev/null && $RUNS && echo 'training runs' || echo 'nothing runs'"
}

resume() {
  [[ "$WORKDIR" == gs://* ]] ||
    die "resume needs the --workdir=gs://BUCKET/PATH of the run; what lay on a preempted TPU is gone."
  if [[ -n "$DRY_RUN" ]]; then
    say "The delete is run only if $NAME has failed or was preempted:"
    delete
  else
    look state.state
    case "$ANSWER" in
      FAILED | SUSPENDING | SUSPENDED) delete ;;
    esac
  fi
  create
  setup
  run
}

fetch() {
  local destination="${DESTINATION:-runs/$NAME}" remote="$REMOTE/$WORKDIR" archive="$REMOTE-results.tar.gz"
  [[ "$WORKDIR" != /* ]] || remote="$WORKDIR"
  [[ -n "$WORKDIR" ]] || die "fetch needs the --workdir of the run (or TPU_WORKDIR)."
  execute mkdir -p "$destination"
  if [[ "$WORKDIR" == gs://* ]]; then
    persist "fetching" true gcloud storage rsync --recursive "$WORKDIR" "$destination"
  else  # as one file with a plain name, so that no name in it is read by a shell
    on_workers "packing the results" 0 "tar -czf $archive --dereference -C $(quoted "$remote") ."
    persist "fetching" require_active gcloud compute tpus tpu-vm scp "$NAME:$archive" \
      "$destination/$archive" "${WHERE[@]}" --worker=0
    execute tar -xzf "$destination/$archive" -C "$destination"
    execute rm "$destination/$archive"
  fi
  say "Results are in $destination."
}

delete() {
  if [[ -z "$DRY_RUN" ]]; then
    look state.state
    if [[ -z "$ANSWER" ]]; then
      say "$NAME is not there; nothing to delete."
      return
    fi
    require_ours
  fi
  execute gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force ||
    die "$NAME was not deleted; gcloud's message is above. It still costs money."
}

parse() {
  while (($#)); do
    case "$1" in
      --name=*) NAME="${1#*=}" ;;
      --project=*) PROJECT="${1#*=}" ;;
      --zone=*) ZONE="${1#*=}" ;;
      --type=*) TYPE="${1#*=}" ;;
      --runtime=*) RUNTIME="${1#*=}" ;;
      --tier=*) TIER="${1#*=}" ;;
      --workdir=*) WORKDIR="${1#*=}" ;;
      --config=*) CONFIG="${1#*=}" ;;
      --data=*) DATA="${1#*=}" ;;
      --python=*) PYTHON="${1#*=}" ;;
      --to=*) DESTINATION="${1#*=}" ;;
      --attempts=*) ATTEMPTS="${1#*=}" ;;
      --backoff=*) BACKOFF="${1#*=}" ;;
      --poll=*) POLL="${1#*=}" ;;
      --dry-run) DRY_RUN=yes ;;
      --)
        shift
        TRAIN_FLAGS=("$@")
        break
        ;;
      *) die "unknown option $1; see: launch_tpu.sh help" ;;
    esac
    shift
  done
  [[ "$TIER" == spot || "$TIER" == on-demand ]] ||
    die "--tier is '$TIER'; it is spot or on-demand."
  [[ "$ATTEMPTS" =~ ^[1-9][0-9]*$ ]] || die "--attempts is '$ATTEMPTS'; it is a number from 1."
  [[ "$BACKOFF" =~ ^[0-9]+$ && "$POLL" =~ ^[0-9]+$ ]] ||
    die "--backoff and --poll are whole numbers of seconds."
}

main() {
  local command="${1:-help}"
  (($# == 0)) || shift
  case "$command" in
    help | -h | --help) usage ;;
    create | setup | run | logs | status | resume | fetch | delete)
      parse "$@"
      where
      [[ -n "$DRY_RUN" ]] || command -v gcloud >/dev/null ||
        die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
      "$command"
      ;;
    *) die "unknown command $command; see: launch_tpu.sh help" ;;
  esac
}

main "$@"
