#!/usr/bin/env bash
# Starts cpeal_jax.main as N processes on this machine and waits for them.
#
#   launch/local.sh [OPTIONS] N -- --config=configs/quickstart.py [FLAGS...]
#
#   --dry_run       print the commands and stop; nothing is written or started
#   --devices=K     K virtual CPU devices a process (through XLA_FLAGS)
#   --logs=DIR      logs go to DIR/process-I.log; without it to WORKDIR.logs,
#                   beside the workdir, since main refuses a directory that
#                   holds anything else than a run; to runs/local-PID.logs
#                   where that is a bucket or not given
#   --port=PORT     the coordinator's port on 127.0.0.1; without it a free one
#   --grace=SECONDS how long processes may take to end before they are killed
#                   (30)
#
# Needs bash 4.4 and the Python that has cpeal_jax: $PYTHON, or `python`.
# Process 0's output is also on the terminal. When one process fails the others
# are ended, and the launcher says which it was, with its last lines, and exits
# with its code: 75 (preempted) means run the same command again. SIGTERM and
# Ctrl-C reach every process as SIGTERM, on which main saves and exits with 75;
# a second one kills.
set -euo pipefail

usage="usage: launch/local.sh [--dry_run] [--devices=K] [--logs=DIR]\
 [--port=PORT] [--grace=SECONDS] N -- FLAGS of cpeal_jax.main"

die() {
  echo "error: $*" >&2
  exit 2
}

whole() {  # Stops unless $2 is a whole number of at least 1.
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 is '$2'; give a whole number from 1 on."
}

quoted() {  # Words as one would type them.
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }"
}

# --- The command line.
python=${PYTHON:-python}
dry_run='' devices='' logs='' port='' grace=30 count=''
while (($#)); do
  case $1 in
    --dry_run) dry_run=1 ;;
    --devices=*) devices=${1#*=} && whole --devices "$devices" ;;
    --logs=*) logs=${1#*=} ;;
    --port=*) port=${1#*=} && whole --port "$port" ;;
    --grace=*) grace=${1#*=} && whole --grace "$grace" ;;
    -h | --help) echo "$usage" && exit 0 ;;
    --) break ;;
    -*) die "unknown option '$1'. $usage" ;;
    *) [[ -z $count ]] || die "unexpected '$1' after N. $usage"
      count=$1 && whole N "$count" ;;
  esac
  shift
done
[[ -n $count ]] || die "N, the number of processes, is missing. $usage"
[[ ${1-} == -- ]] || die "-- and the flags of main are missing. $usage"
shift
for flag in "$@"; do
  case $flag in
    --coordinator* | --process=* | --processes=* | --distributed*)
      die "$flag is set by local.sh: leave it out." ;;
    --workdir=*://*) ;;  # A bucket: nothing on this machine is beside it.
    --workdir=*) logs=${logs:-${flag#*=}.logs} ;;
  esac
done
logs=${logs:-runs/local-$$.logs}
port=${port:-$("$python" -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])')}

# --- The commands.
xla=${XLA_FLAGS-}
if [[ -n $devices ]]; then
  xla="${xla:+$xla }--xla_force_host_platform_device_count=$devices"
fi

command_of() {  # The words of process $1's command, into `words`.
  words=("$python" -m cpeal_jax.main "${flags[@]}"
    --coordinator="127.0.0.1:$port" --processes="$count" --process="$1")
  [[ -z $xla ]] || words=(env "XLA_FLAGS=$xla" "${words[@]}")
}

flags=("$@")
if [[ -n $dry_run ]]; then
  for ((i = 0; i < count; i++)); do
    command_of "$i"
    echo "$(quoted "${words[@]}") > $(quoted "$logs/process-$i.log") 2>&1 &"
  done
  exit 0
fi

# --- Start.
early=''
trap 'early=1' TERM INT  # Kept until there are processes to tell.
mkdir -p "$logs"
exec {shown}> >(exec tee -i "$logs/process-0.log")
tee=$!
pids=()
for ((i = 0; i < count; i++)); do
  command_of "$i"
  if ((i == 0)); then
    "${words[@]}" >&"$shown" 2>&1 &
  else
    "${words[@]}" > "$logs/process-$i.log" 2>&1 &
  fi
  pids+=($!)
done
exec {shown}>&-

tell() {  # Sends signal $1 to every process that still runs.
  for i in "${!pids[@]}"; do
    [[ -n ${codes[i]-} ]] || kill "-$1" "${pids[i]}" 2> /dev/null || true
  done
}

stop() {  # The first time processes may save; the second ends them.
  if [[ -z $deadline ]]; then
    deadline=$((SECONDS + grace))
    tell TERM
  else
    tell KILL
  fi
}

# --- Wait for all; the first failure ends the others.
codes=() deadline='' failed='' left=$count
trap stop TERM INT
[[ -z $early ]] || stop
exec {terminal}>&2 2> /dev/null  # bash has a line of its own for a kill.
while ((left)); do
  for i in "${!pids[@]}"; do
    if [[ -z ${codes[i]-} ]] && ! kill -0 "${pids[i]}" 2> /dev/null; then
      code=0
      wait "${pids[i]}" || code=$?
      codes[i]=$code
      left=$((left - 1))
      if ((code)) && [[ -z $failed ]]; then
        failed=$i
      fi
    fi
  done
  if [[ -n $failed && -z $deadline ]] && ((left)); then
    running=()
    for i in "${!pids[@]}"; do
      [[ -n ${codes[i]-} ]] || running+=("$i")
    done
    stop
  fi
  if [[ -n $deadline ]] && ((left && SECONDS >= deadline)); then
    tell KILL
  fi
  ((left == 0)) || sleep 0.1 || true
done
wait "$tee" || true
exec 2>&"$terminal"
[[ -n $failed ]] || exit 0

# --- Who it was.
code=${codes[failed]}
case $code in
  75) how="was preempted: run the same command again (exit code 75)" ;;
  1[3-9]? | 12[89]) how="was ended by signal $((code - 128))" ;;
  *) how="failed with exit code $code" ;;
esac
{
  echo "process $failed of $count $how; the end of $logs/process-$failed.log:"
  # Without the addresses of the runtime's own stack traces.
  sed -E '/^ +@ +0x/d; /^$/d; s/^/  | /' "$logs/process-$failed.log" | tail -n 5
  for i in "${running[@]-}"; do
    # When preempted, all end at about the same time.
    [[ -n $i && $code != 75 ]] || continue
    last=$(tail -n 1 "$logs/process-$i.log")
    echo "process $i was still running and was ended; its last line:" \
      "${last:-(none: it may never have started)}"
  done
} >&2
exit "$code"
