#!/usr/bin/env bash
# Installs ds_pretrain, in the tested versions, into an environment of its own. The image is made by this, and it works
# in any fresh copy of the repository:
#
#   docker/install.sh [torch]       torch: only the environment and torch, which the image keeps as a layer
#
# From the environment:
#   VENV         where the environment goes; .venv in the repository unless given
#   PYTHON       the interpreter it is made with, 3.10 or newer; python3 unless given
#   TORCH_INDEX  package index for torch's build; the usual index, which has the build for CUDA, unless given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
python=${PYTHON:-python3}
index=()
if [[ -n ${TORCH_INDEX:-} ]]; then
    index=(--index-url "$TORCH_INDEX")
fi

if ! "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))'; then
    echo "install.sh: $python must be Python 3.10 or newer with venv (on Debian and Ubuntu: python3-venv)" >&2
    exit 2
fi
if [[ ! -x $venv/bin/pip ]]; then
    "$python" -m venv "$venv"
fi

# first and alone: only torch may come from another index
"$venv/bin/pip" install --quiet "${index[@]}" "$(grep '^torch==' constraints.txt)"
if [[ ${1:-} != torch ]]; then
    "$venv/bin/pip" install --quiet --constraint constraints.txt --editable .
    "$venv/bin/ds-pretrain" plan ds_configs/quickstart.yaml
fi
