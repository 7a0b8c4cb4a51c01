#!/bin/sh
# Ten minutes on a machine with a GPU: Python, PyTorch, CuPy, no TVM, no network.
#
#   bench/on_gpu.sh prepare     here: compiles for sm_90 into .gpu, which is carried there
#   bench/on_gpu.sh             there: runs it all, a row at once into $OUT/rows.jsonl
#   bench/on_gpu.sh --dry-run   here: all of it with small networks, on PoCL
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" TOKENIZERS_PARALLELISM=false
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
case "${1:-}" in
prepare)
    shift
    exec "$python" bench/on_gpu_programs.py "$@" ;;
--dry-run)
    "$python" bench/on_gpu_programs.py --small --folder "${TMPDIR:-/tmp}/gpu-dry-run"
    exec "$python" bench/on_gpu.py --folder "${TMPDIR:-/tmp}/gpu-dry-run" --out "${TMPDIR:-/tmp}/gpu-dry-run" ;;
*)
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    exec "$python" bench/on_gpu.py "$@" ;;
esac
