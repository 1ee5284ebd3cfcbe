#!/bin/sh
# Runs tests on another version of Python, if it is in PATH or in pyenv: tools/test_python.sh PYTHON 3.13 [ARGUMENTS of
# pytest]. The pip of PYTHON fills its environment.
set -eu
pip=$1 version=$2 venv=.venv-python-$2 python=
shift 2
for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then python=$candidate; fi
done
if [ -z "$python" ]; then
    echo "Python $version is not here: its tests are left out"
    exit 0
fi
if [ ! -e "$venv/done" ] || [ requirements/dev.txt -nt "$venv/done" ]; then
    "$python" -m venv --without-pip --clear "$venv"
    tools/install.sh "$pip" "$venv" -r requirements/dev.txt
    tools/install.sh "$pip" "$venv" --no-deps -e .
    touch "$venv/done"
fi
"$venv/bin/python" -c 'import platform; print("Python", platform.python_version())'
"$venv/bin/pytest" -q "$@"
