#!/usr/bin/env bash
# mypy over the package as it is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash .ci/link_package.sh
cd .typecheck
exec "${PYTHON:-python}" -m mypy --config-file ../.ci/mypy.ini -p lyra_ns
