#!/usr/bin/env bash
# Everything that a machine with a GPU can tell, the most valuable first; stop it whenever you like.
#
#   benchmarks/gpu_run.sh [--minutes 8] [--out gpu-run] [--wheels DIR] [--shapes TEXT] [--schemes TEXT]
#                         [--m TEXT] [--suites "NAME ..."] [--tests EXPRESSION]
#
# Needs a source checkout and a Python with torch, triton and pytest ($PYTHON, default python3); installs nothing and asks no network. Other
# libraries take part where they are installed, or lie as wheels in DIR. What comes out, at most eight files:
#
#   summary.txt      the steps: status, seconds            environment.json  device, versions, measured roofs
#   log.txt          everything that was printed           experiment.json   the decode kernel in every configuration at M = 1
#   configs.tar.gz   tuned configs, every time taken       bench.json        products against cuBLAS and other libraries
#   report.html      pictures of bench.json                suites.json       quantizers, backward, launches, tokens per second
#
# python benchmarks/collect.py OUT merges them into benchmarks/results/ and autotune_configs/. Status 1 where a step failed.
set -uo pipefail
cd "$(dirname "$0")/.."

minutes=8 out=gpu-run wheels="" tests="" shapes="llama3-8b" m="1,4,16,64,256" schemes="" given=""
suites="quantize dequantize end-to-end w8a8 backward activations launch cold-start"
while [ $# -gt 0 ]; do
  case $1 in -h|--help) sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
  [ $# -ge 2 ] || { echo "gpu_run.sh: $1 needs a value" >&2; exit 2; }
  case $1 in
    --minutes) minutes=$2 ;; --out) out=$2 ;; --wheels) wheels=$2 ;; --shapes) shapes=$2 given="--shapes $2" ;; --schemes) schemes="--schemes $2" ;;
    --m) m=$2 ;; --suites) suites=$2 ;; --tests) tests=$2 ;;
    *) echo "gpu_run.sh: unknown argument $1; --help names them" >&2; exit 2 ;;
  esac
  shift 2
done
case $minutes in ''|*[!0-9.]*|.) echo "gpu_run.sh: --minutes $minutes is no number" >&2; exit 2 ;; esac

python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d) failed=0
total=$(awk "BEGIN { print int(60 * $minutes) }")
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TRITONQ_CONFIG_DIR="$work/configs"
mkdir -p "$TRITONQ_CONFIG_DIR"
: > "$out/summary.txt"; : > "$out/log.txt"

keep() { # configs as one file, whatever ended the run
  [ -z "$(ls -A "$TRITONQ_CONFIG_DIR")" ] || tar -czf "$out/configs.tar.gz" -C "$TRITONQ_CONFIG_DIR" . ; }
trap 'keep; rm -rf "$work"' EXIT
trap 'echo "stopped" >> "$out/summary.txt"; exit 130' INT TERM

say() { echo "$*" | tee -a "$out/summary.txt"; }

# step NAME PERCENT COMMAND...: at most that share of the time; interrupted then, as by Ctrl-C, so that it keeps what it has.
step() {
  local name=$1 limit=$(( total * $2 / 100 )) left=$(( total - SECONDS )) begun=$SECONDS status; shift 2
  [ "$limit" -ge 20 ] || limit=20
  [ "$limit" -le "$left" ] || limit=$left
  if [ "$left" -lt 5 ]; then say "$(printf '%-14s left out, the time is over' "$name")"; return; fi
  { echo; echo "== $name: $*"; } >> "$out/log.txt"
  timeout --signal=INT --kill-after=15 "$limit" "$@" >> "$out/log.txt" 2>&1
  status=$?
  local verdict="ok"
  case $status in
    0) ;;
    124|130|137) verdict="stopped after its share of the time" ;;
    *) verdict="FAILED with status $status; see log.txt"; failed=1 ;;
  esac
  say "$(printf '%-14s %4d s  %s' "$name" $(( SECONDS - begun )) "$verdict")"
}

bench() { # SHARE NAME FILE ARGUMENTS...: minutes of its own, so that it ends by itself
  local share=$1 name=$2 file=$3; shift 3
  step "$name" "$share" "$python" -m tritonq bench "$@" --minutes "$(awk "BEGIN { print $minutes * $share / 100 * 0.9 }")" --json "$out/$file"
}

if [ -n "$wheels" ]; then
  step wheels 10 "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl
  export PYTHONPATH="$PYTHONPATH:$work/site"
fi
step environment 8 "$python" benchmarks/environment.py "$out/environment.json"
step tests 18 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels ${tests:+-k "$tests"}
# shellcheck disable=SC2086
bench 10 experiment experiment.json decode --shapes "${shapes%%,*}" $schemes
# shellcheck disable=SC2086
step tune 22 "$python" -m tritonq tune --shapes "$shapes" --m "$m" $schemes --budget "$(( total * 20 / 100 ))s" --out "$TRITONQ_CONFIG_DIR" --report "$TRITONQ_CONFIG_DIR/tune.json"
keep
# shellcheck disable=SC2086
bench 20 products bench.json matmul --shapes "$shapes" --m "$m" $schemes
# shellcheck disable=SC2086
bench 14 suites suites.json $suites $given $schemes
if command -v compute-sanitizer > /dev/null; then
  step sanitizer 10 compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/kernels -k one_of_each_family
else
  say "sanitizer      left out, there is no compute-sanitizer"
fi
if [ -s "$out/bench.json" ]; then
  timed="$TRITONQ_CONFIG_DIR/tune.json"
  [ -s "$timed" ] || timed="$out/bench.json"
  step speed-model 5 "$python" benchmarks/speed_model.py "$timed"
  step pictures 8 "$python" -m tritonq bench --from "$out/bench.json" --plot "$work/plots"
  [ ! -f "$work/plots/report.html" ] || cp "$work/plots/report.html" "$out/report.html"
fi
say "$out holds $(find "$out" -type f | wc -l) files; python benchmarks/collect.py $out takes them over"
exit $failed
