#!/bin/sh
# Installs an earlier commit, as a wheel, in an environment of its own: tools/install_previous.sh PYTHON COMMIT
set -eu
python=$1 commit=$2 venv=.venv-previous
[ "$(cat "$venv/commit" 2>/dev/null)" != "$commit" ] || exit 0
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
git archive "$commit" | tar -x -C "$source"
"$python" -m venv --without-pip --clear "$venv"
"$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check -r requirements/dev.txt
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$source/wheel" "$source"
"$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-deps "$source"/wheel/*.whl
echo "$commit" >"$venv/commit"
