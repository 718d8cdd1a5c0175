#!/usr/bin/env bash
# Starts cpeal_jax.main as N processes on this machine and waits for them.
#
#   launch/local.sh [OPTIONS] N -- --config=configs/quickstart.py [FLAGS...]
#
#   --dry_run       print the commands; write and start nothing
#   --devices=K     give each process K virtual CPU devices (by XLA_FLAGS)
#   --logs=DIR      write the logs to DIR/process-I.log. The default is
#                   WORKDIR.logs, beside the workdir, because main refuses a
#                   workdir that holds other files; if the workdir is a bucket
#                   or not given, it is runs/local-PID.logs
#   --port=PORT     the coordinator's port on 127.0.0.1 (default: a free port)
#   --grace=SECONDS how long processes that were asked to end may take before
#                   they are killed (default: 30)
#
# Needs bash 4.4, and a Python with cpeal_jax: $PYTHON, or `python` by default.
# The output of process 0 is also shown on the terminal. When one process fails,
# the launcher ends the others, prints which process failed and its last lines,
# and exits with its code. Code 75 means that the run was preempted: run the
# same command again. The launcher passes SIGTERM and Ctrl-C on to every process
# as SIGTERM, upon which main saves and exits with 75. A second signal kills the
# processes.
set -euo pipefail

usage="usage: launch/local.sh [--dry_run] [--devices=K] [--logs=DIR]\
 [--port=PORT] [--grace=SECONDS] N -- FLAGS of cpeal_jax.main"

die() {
  echo "error: $*" >&2
  exit 2
}

check_number() {  # Exits unless $2, the value of $1, is a positive integer.
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 is '$2'; give a whole number from 1 on."
}

quoted() {  # Prints the arguments, quoted for a shell where necessary.
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
    --devices=*) devices=${1#*=} && check_number --devices "$devices" ;;
    --logs=*) logs=${1#*=} ;;
    --port=*) port=${1#*=} && check_number --port "$port" ;;
    --grace=*) grace=${1#*=} && check_number --grace "$grace" ;;
    -h | --help) echo "$usage" && exit 0 ;;
    --) break ;;
    -*) die "unknown option '$1'. $usage" ;;
    *) [[ -z $count ]] || die "unexpected '$1' after N. $usage"
      count=$1 && check_number N "$count" ;;
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
    --workdir=*://*) ;;  # Logs cannot be written beside a bucket.
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

command_of() {  # Sets `words` to the command that starts process $1.
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
# Remembers a signal that arrives before the processes are started.
trap 'early=1' TERM INT
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

signal_all() {  # Sends signal $1 to every process that still runs.
  for i in "${!pids[@]}"; do
    [[ -n ${codes[i]-} ]] || kill "-$1" "${pids[i]}" 2> /dev/null || true
  done
}

stop() {  # The first call lets the processes save; the second kills them.
  if [[ -z $deadline ]]; then
    deadline=$((SECONDS + grace))
    signal_all TERM
  else
    signal_all KILL
  fi
}

# --- Wait for all processes; the first failure ends the others.
codes=() deadline='' failed='' left=$count
trap stop TERM INT
[[ -z $early ]] || stop
# Hides the line that bash prints itself when a process is killed.
exec {terminal}>&2 2> /dev/null
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
    signal_all KILL
  fi
  ((left == 0)) || sleep 0.1 || true
done
wait "$tee" || true
exec 2>&"$terminal"
[[ -n $failed ]] || exit 0

# --- Print which process failed.
code=${codes[failed]}
case $code in
  75) how="was preempted: run the same command again (exit code 75)" ;;
  1[3-9]? | 12[89]) how="was ended by signal $((code - 128))" ;;
  *) how="failed with exit code $code" ;;
esac
{
  echo "process $failed of $count $how; the end of $logs/process-$failed.log:"
  # Leaves out the addresses in stack traces of the JAX runtime.
  sed -E '/^ +@ +0x/d; /^$/d; s/^/  | /' "$logs/process-$failed.log" | tail -n 5
  for i in "${running[@]-}"; do
    # After a preemption all processes end at about the same time.
    [[ -n $i && $code != 75 ]] || continue
    last=$(tail -n 1 "$logs/process-$i.log")
    echo "process $i was still running and was ended; its last line:" \
      "${last:-(none: it may never have started)}"
  done
} >&2
exit "$code"
