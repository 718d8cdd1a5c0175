#!/usr/bin/env bash
# Runs cpeal_jax on a Cloud TPU slice: create, install, run, collect, delete.
#
#   export NAME=my-tpu ZONE=us-west4-a TYPE=v5litepod-16
#   launch/tpu_pod.sh create           # request the slice (queued resource)
#   launch/tpu_pod.sh wait             # wait until the slice is ready
#   launch/tpu_pod.sh install          # install this HEAD on every worker
#   launch/tpu_pod.sh run -- --config=configs/eurosat.py \
#     --workdir=gs://BUCKET/eurosat/seed1 [FLAGS...]
#   launch/tpu_pod.sh collect gs://BUCKET/eurosat/seed1 runs/eurosat/seed1
#   launch/tpu_pod.sh delete
#
# With --dry_run before the command, the script only prints what it would run.
# It needs gcloud with a project and a login, and the TPU API must be enabled.
# Variables:
#
#   NAME      the name of the slice (required)
#   ZONE      the zone of the slice (required)
#   TYPE      v5litepod-16, v6e-16, v4-32, ... (for create only)
#   RUNTIME   the software version (default: the documented one for TYPE)
#   SPOT      1 (default): spot capacity, cheaper but preemptible; 0: on demand
#   QUEUED    1 (default): a queued resource; 0: `tpu-vm create`, which fails
#             at once if there is no capacity
#   ATTEMPTS  how many times `run` starts the run, as long as it ends with exit
#             code 75 (default: 20)
#
# All hosts of a slice must be able to access the workdir: use a bucket or a
# network file system. The data set needs the same, or a copy on each host.
# After a preemption of the slice itself, delete, create, wait, install and run
# again with the same workdir; the run continues.
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

do_() {  # Runs a command; in a dry run, prints it, quoted for a shell.
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

everywhere() {  # Runs one line of shell code on every worker.
  tpus tpu-vm ssh "$name" --worker=all --command="$1"
}

# Prints the software version for a TPU type, according to
# https://cloud.google.com/tpu/docs/runtimes
runtime_of() {
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
  # The TPU images have Python 3.10, which is too old, so uv installs another.
  local steps=(
    "mkdir -p $code && tar -xzf $packed -C $code"
    "python3 -m pip install --user --quiet uv"
    "export PATH=\$HOME/.local/bin:\$PATH"
    "uv venv --quiet --allow-existing --python 3.12 $code/.venv"
    "uv pip install --quiet -p $code/.venv -e './${code}[tpu]'"
  )
  local line
  line=$(printf ' && %s' "${steps[@]}")
  if ! git cat-file -e HEAD:cpeal_jax 2> /dev/null; then
    die "install packs HEAD of a git checkout of cpeal_jax: call it in one."
  fi
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
    # Only process 0 writes to the workdir, and it runs on worker 0.
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
