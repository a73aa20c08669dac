#!/usr/bin/env bash
# Everything there is to know about one GPU, in one command and about ten minutes (twenty with compute-sanitizer): the
# GPU tests, then the tables.
#
#   benchmarks/gpu.sh              results in benchmarks/results/<date>-<gpu>/, exit 1 where a test or a result is wrong
#   DRY=1 benchmarks/gpu.sh        the same code on the CPU with tiny shapes; the numbers mean nothing
#   TUNE=1 benchmarks/gpu.sh       measures launch sizes first and keeps them for every later process of this user
#   PYTHON=... OUT=... SHAPES=... benchmarks/gpu.sh
#
# Exit status 2: there is no CUDA device. No network, no other state than this folder and triton's cache.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
DRY=${DRY:-0}

device=$("$PYTHON" - "$DRY" <<'EOF'
import sys, torch
dry = sys.argv[1] == "1"
if not torch.cuda.is_available() and not dry:
    raise SystemExit(2)
print("dry" if dry else "-".join(torch.cuda.get_device_name().split()))
EOF
)
case $? in
    0) ;;
    2) echo "gpu.sh: torch finds no CUDA device; DRY=1 runs the same code on the CPU" >&2; exit 2 ;;
    *) echo "gpu.sh: $PYTHON cannot import torch" >&2; exit 2 ;;
esac
OUT=${OUT:-benchmarks/results/$(date -u +%Y-%m-%d)-$device}
mkdir -p "$OUT"
failed=0

step() { # name, seconds, command: its output goes to a log as well; a failure is remembered and the rest goes on
    local name=$1 seconds=$2 start=$SECONDS status
    shift 2
    printf '\n=== %s\n' "$name"
    timeout "$seconds" "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    printf '=== %s: %d s, status %d\n' "$name" $((SECONDS - start)) "$status"
    [ "$status" -eq 0 ] || failed=1
}

if [ "$DRY" = 1 ]; then
    step tables 240 "$PYTHON" -m benchmarks.gpu --dry --out "$OUT"
else
    # only files with GPU tests: the others may need packages that this machine lacks
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
    step tests 280 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "${files[@]}"
    if command -v compute-sanitizer >/dev/null; then # one of the smallest shapes of each operation, every access checked
        small="33-dtype0 or 6-dtype0 or 64-dtype0 or 96-dtype0"
        for tool in memcheck racecheck; do
            step "$tool" 300 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
                compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
                "$PYTHON" -m pytest -q -x -m gpu -p no:cacheprovider tests/kernels/test_gpu.py -k "$small"
        done
    else
        echo "gpu.sh: no compute-sanitizer on the path (it comes with the CUDA toolkit); memory accesses are not checked"
    fi
    if [ "${TUNE:-0}" = 1 ]; then
        step tune 60 "$PYTHON" -m tubelet kernels tune --widths 1536 3072 5120 --head-dims 64 128
    fi
    step tables 360 "$PYTHON" -m benchmarks.gpu --out "$OUT"
fi
if [ "$DRY" = 0 ] && "$PYTHON" -c 'import diffusers' 2>/dev/null; then
    step blocks 90 "$PYTHON" -m benchmarks blocks --device cuda --dtypes bfloat16 --rounds 5 --out "$OUT"
fi
if "$PYTHON" -m tubelet bench attention --help >/dev/null 2>&1; then
    if [ "$DRY" = 1 ]; then
        sizes=(--shapes 2x4x4+3/2x16 --device cpu --rounds 2)
    else
        sizes=(--shapes "${SHAPES:-wan-1.3b-480p,cogvideox-5b}" --device cuda --dtype bfloat16 --backward)
    fi
    rm -f "$OUT/attention.json" # as the tables above, it is measured anew; bench keeps what is there
    step attention 100 "$PYTHON" -m tubelet bench attention "${sizes[@]}" \
        --json "$OUT/attention.json" --md "$OUT/attention.md"
else
    echo "gpu.sh: this tubelet has no 'bench attention'; its table is left out"
fi
printf '\n%s in %d s: %s\n' "$([ $failed = 0 ] && echo passed || echo FAILED)" "$SECONDS" "$OUT"
exit $failed
