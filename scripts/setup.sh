#!/usr/bin/env bash
# Makes .venv and installs this project in it with the pinned versions.  usage: scripts/setup.sh EXTRAS
# Needs Python 3.11 with pip; pip fetches uv (pinned), uv does the rest. Run again it costs nothing:
# the stamp file names what is installed, and make only calls this when an input is newer.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$1
python=${PYTHON:-python3.11}
uv=build/uv/bin/uv
command -v "$python" >/dev/null || { echo "error: $python was not found; install Python 3.11 or set PYTHON=/path/to/python3.11" >&2; exit 1; }
if ! [ -x "$uv" ]; then
    echo "setup: fetching uv with pip"
    # --target needs neither a virtual environment nor rights on the system's packages.
    "$python" -m pip install --quiet --disable-pip-version-check --target build/uv -r constraints/setup.txt \
        || { echo "error: '$python -m pip' could not fetch uv; on Debian and Ubuntu: apt-get install python3-pip" >&2; exit 1; }
fi
# uv does not read pip's settings: hand over where the user told pip to look.
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX="$PIP_INDEX_URL"; fi
if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$PIP_CERT"; fi
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
echo "setup: installing .[$extras] with the versions in constraints/main.txt (a few GB the first time)"
"$uv" pip install --compile-bytecode --python .venv/bin/python --constraint constraints/main.txt --editable ".[$extras]"
