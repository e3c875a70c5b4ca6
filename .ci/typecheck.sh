#!/usr/bin/env bash
# mypy over the package as it is installed: method_configs/ and dataparsers/ lie beside lyra_ns/ in the checkout,
# so a folder of links shows mypy the installed shape.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf .typecheck/lyra_ns
mkdir -p .typecheck/lyra_ns
ln -s "$PWD"/lyra_ns/* "$PWD"/method_configs "$PWD"/dataparsers .typecheck/lyra_ns/
cd .typecheck
exec "${PYTHON:-python}" -m mypy --config-file ../.ci/mypy.ini -p lyra_ns
