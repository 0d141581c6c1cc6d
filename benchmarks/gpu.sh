#!/bin/sh
# Run everything that needs a CUDA device: the tests marked gpu, and the CUDA benchmark of sparse attention.
#
#   benchmarks/gpu.sh               # -> gpu.json and attention_cuda.json in benchmarks/results
#   OUT=FOLDER benchmarks/gpu.sh    # -> the same files in FOLDER
#
# It takes at most 8 minutes. PYTHON chooses the interpreter (default: that of .venv, else python3).
# On a machine without a CUDA device it says so, writes nothing, and exits with status 0.
set -eu
case "${OUT:-}" in
    "") out=benchmarks/results ;;
    /*) out=$OUT ;;
    *) out=$PWD/$OUT ;;
esac
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c 'import torch'; then
    echo "gpu.sh needs torch: make test installs it into .venv" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "torch finds no CUDA device on this machine: nothing is checked"
    exit 0
fi
exec timeout 480 "$PYTHON" -m benchmarks.lib.gpu --out "$out"
