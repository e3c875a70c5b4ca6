#!/usr/bin/env bash
# Layers and circles (.ci/importlinter.ini) over the package as it is installed. The extra dev brings import-linter
# for Python 3.11 and later, which its contract against circles needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v lint-imports >/dev/null || {
  echo "import-linter is not installed: layers and circles are not checked (pip install -e '.[dev]')" >&2
  exit 0
}
bash .ci/link_package.sh
cd .typecheck
exec lint-imports --no-cache --no-logo ../.ci/importlinter.ini
