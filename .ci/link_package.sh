#!/usr/bin/env bash
# Makes .typecheck/lyra_ns, which shows tools the package as it is installed: method_configs/ and dataparsers/ lie
# beside lyra_ns/ in the checkout, so it is a folder of links.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf .typecheck/lyra_ns
mkdir -p .typecheck/lyra_ns
ln -s "$PWD"/lyra_ns/* "$PWD"/method_configs "$PWD"/dataparsers .typecheck/lyra_ns/
