#!/bin/sh
# Installs packages in the environment VENV: tools/install.sh PIP VENV PACKAGES...
# uv takes seconds. Where it reaches no index, the pip of PIP takes a minute for the same: it knows pip's settings.
set -eu
pip=$1 python=$2/bin/python uv=.venv/bin/uv
shift 2
with_pip="$pip -m pip --quiet --disable-pip-version-check"
if [ ! -e "$uv" ]; then
    sed -n '/^uv==/,/[^\\]$/p' requirements/dev.txt | $with_pip --python .venv/bin/python install -r /dev/stdin
fi
"$uv" pip install --quiet --native-tls --python "$python" "$@" || $with_pip --python "$python" install "$@"
