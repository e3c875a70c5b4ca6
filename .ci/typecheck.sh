#!/usr/bin/env bash
# mypy over the package as it is installed, and over the examples as its users.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash .ci/link_package.sh
cd .typecheck
check=("${PYTHON:-python}" -m mypy --config-file ../.ci/mypy.ini)
"${check[@]}" -p lyra_ns
exec "${check[@]}" ../examples/*.py
