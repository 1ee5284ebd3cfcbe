#!/bin/sh
# Pins every dependency for all supported versions of Python, with the hashes of its files: tools/lock.sh .venv/bin
set -eu
lock="$1/uv pip compile --universal --python-version 3.11 --no-header --no-emit-index-url --no-emit-find-links --no-annotate --generate-hashes --upgrade"
$lock --quiet pyproject.toml --extra redis -o requirements/run.txt
$lock --quiet pyproject.toml --extra redis --extra postgresql --extra valkey --extra web --extra opentelemetry --extra schedules --extra top --group dev -o requirements/dev.txt
