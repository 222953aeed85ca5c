#!/usr/bin/env bash
# Prove and measure every kernel on a CUDA device, in under eight minutes.
#
#   benchmarks/gpu_session.sh [--stand-in] [WHEELS]
#
# The machine needs python3 with torch and cuda-bindings, a driver and nvcc, but no network. What its
# Python lacks comes as wheels from the folder WHEELS. Fill it where there is a network, for the
# Python of that machine (3.12, say), and let the list end with what that machine lacks besides:
#
#   pip wheel --no-deps -w WHEELS .
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d WHEELS gguf
#
# Without WHEELS, python3 (or $PYTHON) must have weightcast[cuda]. gpu-session.json and gpu-session.md
# go to $OUT, or else to build/gpu-session. --stand-in is a dry run on the tests' stand-in for a
# driver: a few kernels, whose times mean nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
python=${PYTHON:-python3}
out=${OUT:-build/gpu-session}
mkdir -p "$out"

options=()
if [ "${1-}" = --stand-in ]; then
  options+=(--stand-in)
  shift
fi
if [ $# -gt 0 ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$1"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m benchmarks.gpu_session --output "$out" --spent $((SECONDS - start)) "${options[@]}"
