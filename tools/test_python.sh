#!/bin/sh
# Runs tests on another version of Python, if it is in PATH or in pyenv: tools/test_python.sh 3.13 [ARGUMENTS of pytest]
set -eu
version=$1 venv=.venv-python-$1 python=
shift
for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then python=$candidate; fi
done
if [ -z "$python" ]; then
    echo "Python $version is not here: its tests are left out"
    exit 0
fi
if [ ! -e "$venv/done" ] || [ requirements/dev.txt -nt "$venv/done" ]; then
    "$python" -m venv --without-pip --clear "$venv"
    .venv/bin/uv pip install --quiet --python "$venv/bin/python" -r requirements/dev.txt
    .venv/bin/uv pip install --quiet --python "$venv/bin/python" --no-deps -e .
    touch "$venv/done"
fi
"$venv/bin/python" -c 'import platform; print("Python", platform.python_version())'
"$venv/bin/pytest" -q "$@"
