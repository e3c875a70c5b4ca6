#!/usr/bin/env bash
# Prints the folder of the Python environment for this checkout, which .ci/setup.sh fills.
# It lies outside the checkout, so that a fresh clone with the same requirements finds it ready.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
key=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-12)
echo "${LYRA_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/lyra_ns/venv-$key}"
