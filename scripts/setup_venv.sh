#!/usr/bin/env bash
# Makes or completes .venv: `setup_venv.sh serve` for what runs, `setup_venv.sh dev` for the tests and linters too.
# torch is chosen here, before anything can ask for "some torch" and pull gigabytes of CUDA onto a laptop.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0
VENV=.venv
LOG=$VENV/setup.log
EXTRAS=$1

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

stage() {
    printf 'setup: [%3d s] %s\n' "$SECONDS" "$*"
}

# Quiet while all is well; the whole reason when it is not.
logged() {
    "$@" >"$LOG" 2>&1 || {
        tail -n 30 "$LOG" >&2
        die "failed: $* (everything it said: $LOG)"
    }
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if is_supported "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "Python 3.11, 3.12 or 3.13 is needed; tried: ${PYTHON:-python3.11 python3.12 python3.13 python3}." \
        "Install one, or say which: make PYTHON=/path/to/python3.11"
}

make_venv() {
    local python
    python=$(find_python)
    stage "virtual environment in $VENV ($("$python" --version))"
    # --clear: what is there was not finished, or its Python has gone.
    "$python" -m venv --clear "$VENV" >&2 ||
        die "'$python -m venv' failed. On Debian and Ubuntu it is a package of its own, such as python3.11-venv."
}

pip() {
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}

has_gpu() {
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

install_torch() {
    "$VENV/bin/python" -c "
import importlib.metadata as m, sys
sys.exit(m.version('torch').split('+')[0] != '$TORCH')" 2>/dev/null && return

    if [ "$(uname -s)" != Linux ]; then
        stage "PyTorch $TORCH"
        logged pip install "torch==$TORCH"
    elif has_gpu; then
        stage "PyTorch $TORCH with CUDA, for the GPU found here (about 3 GB)"
        logged pip install "torch==$TORCH"
    else
        stage "PyTorch $TORCH, CPU build (about 200 MB)"
        # A pip that is configured to know a CPU build takes it; otherwise uv knows where PyTorch keeps them.
        # Only torch itself comes by uv: the rest goes through pip and its configuration.
        pip install "torch==$TORCH+cpu" >"$LOG" 2>&1 || {
            logged pip install "uv>=0.9,<1"
            logged "$VENV/bin/python" -m uv pip install --python "$VENV/bin/python" --no-deps \
                --torch-backend cpu "torch==$TORCH"
        }
    fi
}

if ! is_supported "$VENV/bin/python" || ! pip --version >/dev/null 2>&1; then
    make_venv
fi
install_torch

wanted=()
has_gpu && wanted+=(gpu)
[ "$EXTRAS" = dev ] && wanted+=(dev)
extras=$(IFS=,; printf '%s' "${wanted[*]-}")
stage "Dragoman and what it needs${extras:+, with $extras}"
logged pip install --editable ".${extras:+[$extras]}"
touch "$VENV/stamp-$EXTRAS"
[ "$EXTRAS" = dev ] && touch "$VENV/stamp-serve"
stage "done"
