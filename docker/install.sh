#!/usr/bin/env bash
# Installs ds_pretrain into a virtual environment with the tested versions: what the image does, in any fresh folder.
#   VENV=/opt/venv TORCH_INDEX=https://download.pytorch.org/whl/cpu docker/install.sh
set -euo pipefail
source_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$source_dir/.venv}"
"${PYTHON:-python3}" -m venv "$venv"
torch="$(grep '^torch==' "$source_dir/constraints.txt")"
"$venv/bin/pip" install --no-cache-dir --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
"$venv/bin/pip" install --no-cache-dir --quiet --constraint "$source_dir/constraints.txt" "$source_dir"
"$venv/bin/ds-pretrain" --help >/dev/null
