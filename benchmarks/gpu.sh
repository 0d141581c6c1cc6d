#!/bin/sh
# Run everything that needs a CUDA device, within 8 minutes: the tests marked gpu, sparse attention, the
# population of students, quantization, and a training with 8-bit AdamW. Each part has a time limit of its own
# and writes a file of its own; one that fails does not stop the others.
#
#   benchmarks/gpu.sh                          # -> gpu.json and gpu_PART.json in benchmarks/results
#   OUT=FOLDER benchmarks/gpu.sh               # -> the same files in FOLDER
#   benchmarks/gpu.sh --only attention tests   # some parts: tests, attention, population, quantization, training
#   benchmarks/gpu.sh --dry                    # the same code on the CPU with tiny sizes, to find faults before
#
# PYTHON chooses the interpreter (default: that of .venv, else python3).
# Without a CUDA device and without --dry it says so, writes nothing, and exits with status 0.
set -eu
case "${OUT:-}" in
    "" | /*) ;;
    *) OUT=$PWD/$OUT ;;
esac
case "${PYTHON:-}" in
    */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;;
esac
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    echo "gpu.sh needs torch: make test installs it into .venv" >&2
    exit 1
fi
exec "$PYTHON" -m benchmarks.lib.gpu ${OUT:+--out "$OUT"} "$@"
