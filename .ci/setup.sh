#!/usr/bin/env bash
# Makes everything ready that `make demo` and `make test` need, once: system packages as far as this user may
# install them, a Python environment, the pinned requirements and this checkout. A second run returns at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=$(bash .ci/environment.sh)
# Names the requirements and holds the path of the installed checkout.
ready="$environment/.ready-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-12)"
# As make sets them for its jobs; here they would make pip look at the environment that is being built.
PATH="${PATH#"$environment/bin:"}"
unset PYTHONPATH

say() { printf '[setup] %s\n' "$*" >&2; }
fail() { printf '[setup] %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# apt_install PACKAGE...: true if all of them are installed now.
apt_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || return 1
  if [ -z "${lists_are_fresh:-}" ]; then
    as_root apt-get update -qq >/dev/null || return 1
    lists_are_fresh=yes
  fi
  say "installing $* with apt-get"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# has_library NAME: whether the loader finds it.
has_library() { [[ "$(PATH="$PATH:/sbin" ldconfig -p)" == *"$1"* ]]; }

install_system_packages() {
  command -v ffmpeg >/dev/null || apt_install ffmpeg ||
    say "ffmpeg is missing and could not be installed: ns-render and its tests need it (apt-get install ffmpeg)"
  command -v c++ >/dev/null || apt_install g++ ||
    say "no C++ compiler: rendering on the CPU will be some 30 times slower (apt-get install g++)"
  for library in libGL.so.1:libgl1 libgomp.so.1:libgomp1 libX11.so.6:libx11-6; do
    has_library "${library%%:*}" || apt_install "${library##*:}" ||
      say "${library%%:*} is missing: ns-export needs it (apt-get install ${library##*:})"
  done
  command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
    command -v google-chrome >/dev/null || apt_install chromium ||
    say "no Chromium: the browser tests will be skipped (apt-get install chromium)"
}

# The interpreter to use: the tested ones first. open3d, which ns-export needs, has no wheels beyond 3.12.
find_python() {
  local candidate candidates=${PYTHON:-python3.11 python3.12 python3 python3.10}
  for candidate in $candidates; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "expected Python 3.10, 3.11 or 3.12, found none of them as $candidates:" \
    "install one of them (e.g. apt-get install python3.11 python3.11-venv) or name it: PYTHON=/path/to/python make ..."
}

create_environment() {
  local python version
  python=$(find_python)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "python$version-venv" ||
    fail "Python $version has no venv module: apt-get install python$version-venv"
  say "Python $version, environment $environment"
  if [ -n "$(ls -A "$environment" 2>/dev/null)" ] && [ ! -f "$environment/pyvenv.cfg" ]; then
    fail "expected a Python environment or nothing at $environment, found other files: choose another LYRA_VENV"
  fi
  rm -rf "$environment"
  "$python" -m venv "$environment"
}

# The pins need Python 3.11; under 3.10, packages that have left it behind are free.
constraints_for_environment() {
  if "$environment/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
    say "Python 3.10: only the pins that keep nerfstudio's requirements solvable are used"
    grep -E '^(numpy|nuscenes-devkit|opencv-python-headless|pandas|protobuf|torch|torchvision|wandb)==' constraints.txt
  else
    cat constraints.txt
  fi
}

install_requirements() {
  local pins log="$environment/install.log"
  pins="$environment/constraints.txt"
  constraints_for_environment >"$pins"
  say "installing the requirements, some 8 GB: a few minutes (log: $log)"
  "$environment/bin/python" -m pip install --disable-pip-version-check -c "$pins" -e ".[dev]" >"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    fail "pip could not install the requirements, see $log; run make again to retry"
  }
  pwd >"$ready"
}

# Jobs started by make take the code from this checkout (see the Makefile); the commands in the environment
# take it from the checkout that was installed.
check_installed_checkout() {
  local installed
  installed=$(cat "$ready")
  [ "$installed" = "$PWD" ] && return
  if [ -f "$installed/pyproject.toml" ]; then
    say "outside make, the commands in $environment/bin run the code in $installed"
  else
    say "the checkout that was installed is gone: installing this one in its place"
    "$environment/bin/python" -m pip install --disable-pip-version-check -q --no-deps -e .
    pwd >"$ready"
  fi
}

mkdir -p "$(dirname "$environment")"
exec 9>"$environment.lock"
flock --nonblock 9 || { say "waiting for another set-up of $environment"; flock 9; }
if [ ! -f "$ready" ]; then
  install_system_packages
  create_environment
  install_requirements
fi
check_installed_checkout
