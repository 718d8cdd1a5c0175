#!/usr/bin/env bash
# cpeal_jax on a Cloud TPU slice: create, install, run, collect, delete.
#
#   export NAME=my-tpu ZONE=us-west4-a TYPE=v5litepod-16
#   launch/tpu_pod.sh create           # asks for the slice (a queued resource)
#   launch/tpu_pod.sh wait             # until it is there
#   launch/tpu_pod.sh install          # this checkout's HEAD, on every worker
#   launch/tpu_pod.sh run -- --config=configs/eurosat.py \
#     --workdir=gs://BUCKET/eurosat/seed1 [FLAGS...]
#   launch/tpu_pod.sh collect gs://BUCKET/eurosat/seed1 runs/eurosat/seed1
#   launch/tpu_pod.sh delete
#
# --dry_run before the command prints what would be run and runs nothing.
# Needs gcloud with a project and a login, and the TPU API enabled. Variables:
#
#   NAME      the slice's name (required)
#   ZONE      where (required)
#   TYPE      v5litepod-16, v6e-16, v4-32, ... (create only)
#   RUNTIME   software version; found by TYPE where Google documents one
#   SPOT      1 (default): cheaper, may be preempted; 0: on demand
#   QUEUED    1 (default): a queued resource; 0: `tpu-vm create`, now or never
#   ATTEMPTS  how often `run` is started again after exit code 75 (20)
#
# A slice of several hosts needs a workdir that all of them see: a bucket or a
# network file system; so does the data set (or each host has a copy). After a
# preemption of the slice itself: delete, create, wait, install and run again
# with the same workdir; the run goes on where it was.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 2
}

commands="create, wait, install, run, collect or delete"
dry_run=''
if [[ ${1-} == --dry_run ]]; then
  dry_run=1
  shift
fi
command=${1-}
[[ -n $command ]] || die "the command is missing; give $commands."
shift
name=${NAME-} zone=${ZONE-}
[[ -n $name ]] || die "NAME is not set; export the slice's name."
[[ -n $zone ]] || die "ZONE is not set; export one, such as us-west4-a."
attempts=${ATTEMPTS:-20}
code=cpeal_jax  # The checkout on the workers, in the home directory.

do_() {  # Runs a command, or prints it as one would type it.
  if [[ -z $dry_run ]]; then
    "$@"
    return
  fi
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

tpus() {
  do_ gcloud compute tpus "$@" --zone="$zone"
}

everywhere() {  # Runs one line of shell on every worker.
  tpus tpu-vm ssh "$name" --worker=all --command="$1"
}

runtime_of() {  # https://cloud.google.com/tpu/docs/runtimes
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "no software version is known for TYPE=$1; export RUNTIME." ;;
  esac
}

create() {
  local type=${TYPE-} runtime
  [[ -n $type ]] || die "TYPE is not set; export one, such as v5litepod-16."
  runtime=${RUNTIME:-$(runtime_of "$type")}
  local price=()
  [[ ${SPOT:-1} == 0 ]] || price=(--spot)
  if [[ ${QUEUED:-1} == 0 ]]; then
    tpus tpu-vm create "$name" --accelerator-type="$type" \
      --version="$runtime" "${price[@]}"
  else
    tpus queued-resources create "$name" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$runtime" "${price[@]}"
  fi
}

wait_() {
  local query=(queued-resources describe "$name" "--format=value(state.state)")
  if [[ -n $dry_run ]]; then
    tpus "${query[@]}"
    return
  fi
  local state=''
  while [[ $state != ACTIVE ]]; do
    state=$(tpus "${query[@]}")
    echo "$name: $state"
    case $state in
      FAILED | SUSPENDED | SUSPENDING)
        die "$name is $state; run: launch/tpu_pod.sh delete, then create." ;;
      ACTIVE) ;;
      *) sleep 30 ;;
    esac
  done
}

install() {
  local packed=$code.tar.gz
  # The images come with Python 3.10: uv brings one that is new enough.
  local steps=(
    "mkdir -p $code && tar -xzf $packed -C $code"
    "python3 -m pip install --user --quiet uv"
    "export PATH=\$HOME/.local/bin:\$PATH"
    "uv venv --quiet --allow-existing --python 3.12 $code/.venv"
    "uv pip install --quiet -p $code/.venv -e './${code}[tpu]'"
  )
  local line
  line=$(printf ' && %s' "${steps[@]}")
  do_ git archive --format=tar.gz --output="$packed" HEAD
  tpus tpu-vm scp "$packed" "$name:" --worker=all
  do_ rm "$packed"
  everywhere "${line# && }"
}

run() {
  [[ ${1-} == -- ]] || die "-- and the flags of main are missing after run."
  shift
  local line attempt result
  line="cd $code && .venv/bin/python -m cpeal_jax.main --distributed"
  line+=$(printf ' %q' "$@")
  if [[ -n $dry_run ]]; then
    everywhere "$line"
    return
  fi
  for ((attempt = 1; attempt <= attempts; attempt++)); do
    result=0
    everywhere "$line" || result=$?
    ((result == 75)) || break
    echo "preempted, attempt $attempt of $attempts: running it again" >&2
  done
  return "$result"
}

collect() {
  (($# == 2)) || die "collect needs two paths: the workdir and where to put it."
  do_ mkdir -p "$2"
  case $1 in
    gs://*) do_ gcloud storage rsync --recursive "$1" "$2" ;;
    # Process 0 alone writes, and it runs on worker 0.
    *) tpus tpu-vm scp --recurse "$name:$code/${1%/}/*" "$2" --worker=0 ;;
  esac
}

delete() {
  if [[ ${QUEUED:-1} == 0 ]]; then
    tpus tpu-vm delete "$name" --quiet
  else
    tpus queued-resources delete "$name" --force --quiet
  fi
}

case $command in
  create | install | run | collect | delete) "$command" "$@" ;;
  wait) wait_ ;;
  *) die "unknown command '$command'; give $commands." ;;
esac
