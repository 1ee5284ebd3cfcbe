"""The checks of `airflow celeriac doctor` that concern Airflow: its executor, its scheduler and its API server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import airflow
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from celeriac.airflow.agreement import Agreement, api_server_differences, scheduler_differences, seen_workers_subject
from celeriac.airflow.component_facts import Facts, own_facts, recorded_facts, unsealed
from celeriac.airflow.config import make_app, signing_keys
from celeriac.airflow.options import Options
from celeriac.backend.claims.stored import printable
from celeriac.doctor.check import Check, Problem, Subject, error, warning
from celeriac.doctor.machine import machine_subject
from celeriac.doctor.subjects import server_subjects
from celeriac.errors import describe_error

EXECUTOR = "celeriac.airflow"
SCHEDULER = "SchedulerJob"
DEFAULT_URL = "http://localhost:8080"
HTTP_TIMEOUT = 5.0  # seconds for the reply of the API server
MAX_REPLY = 1_000_000  # bytes
FACTS_ADDRESS = "/celeriac/facts"
QUESTIONS = 5  # to the address of the API server
SAME_SETTINGS = "the version, the keys, the broker and the result backend of this machine"


@dataclass(slots=True, kw_only=True)
class Components:
    """The facts of Airflow's components."""

    executors: str
    """The executors of the configuration here."""

    agreement: Agreement | None = None

    schedulers: tuple[str, ...] = ()
    """The hosts of the schedulers with a heartbeat."""

    database_error: str | None = None
    api_url: str = DEFAULT_URL
    api_version: str | None = None
    """The version of Airflow that the API server is of; None if it did not answer."""

    api_error: str | None = None
    version: str = airflow.__version__


# — decisions —


def executor_problem(facts: Components) -> Iterator[Problem]:
    if EXECUTOR not in facts.executors:
        text = f"[core] executor is {facts.executors!r} here, so nothing is sent to Celeriac's workers"
        yield error(text, "set it to CeleryExecutor:celeriac.airflow.CeleryExecutor, on all machines")


def scheduler_problem(facts: Components) -> Iterator[Problem]:
    if facts.database_error is not None:
        text = f"the metadata database cannot be read here: {facts.database_error}"
        yield warning(text, "run the command where the scheduler runs, or correct [database] sql_alchemy_conn")
    elif not facts.schedulers:
        yield error("no scheduler has a heartbeat", "start one: airflow scheduler")


def api_server_problem(facts: Components) -> Iterator[Problem]:
    if facts.api_error is not None:
        text = f"the API server at {facts.api_url} does not answer: {facts.api_error}"
        yield error(text, "start it: airflow api-server, or correct [api] base_url")
    elif facts.api_version != facts.version:
        text = f"the API server is of Airflow {facts.api_version}, and here is {facts.version}"
        yield warning(text, "install the same version everywhere")


# — facts —


def read_components(conf: Any, team: str | None = None) -> Components:
    options = Options(conf)
    url = options.get("api", "base_url") or DEFAULT_URL
    facts = Components(
        executors=options.text("core", "executor"), api_url=DEFAULT_URL + url if url.startswith("/") else url
    )
    facts.agreement = Agreement(here=own_facts(conf, team=team))
    read_schedulers(facts)
    read_api_server(facts)
    if facts.api_error is None:
        read_api_facts(facts)
    return facts


def read_schedulers(facts: Components) -> None:
    """Read which schedulers have a heartbeat, and what they have recorded."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    try:
        with create_session() as session:
            jobs = session.scalars(select(Job).where(Job.job_type == SCHEDULER, Job.state == "running")).all()
            alive = {job.id: str(job.hostname) for job in jobs if job.is_alive()}
            facts.schedulers = tuple(alive.values())
            if facts.agreement is not None:
                recorded = recorded_facts(session, alive.keys(), facts.agreement.here.team)
                named = {f"scheduler {host} (job {job})": recorded.get(job) for job, host in alive.items()}
                facts.agreement.schedulers = named
    except (SQLAlchemyError, RuntimeError) as problem:  # a worker of Airflow 3 may not reach the database
        facts.database_error = describe_error(problem)


def read_api_server(facts: Components) -> None:
    if not facts.api_url.startswith(("http://", "https://")):
        facts.api_error = "it is no address of a server"
        return
    try:
        content = json.loads(get(facts, "/api/v2/version"))
    except (OSError, ValueError) as problem:
        facts.api_error = str(getattr(problem, "reason", problem))
        return
    with suppress(TypeError, LookupError):
        facts.api_version = str(content["version"])


def read_api_facts(facts: Components) -> None:
    """Read what the API servers use. Several may answer at one address, so it is asked several times."""
    agreement = facts.agreement
    if agreement is None:
        return
    answers = [*read_answers(facts, agreement.here.team)]
    agreement.api_servers = {api_server_name(each): each for each in answers if isinstance(each, Facts)}
    agreement.api_problems = dict.fromkeys(each for each in answers if isinstance(each, str))


def read_answers(facts: Components, team: str | None) -> Iterator[Facts | str]:
    """Yield what the API server of each answer uses, or why that is not known."""
    for _ in range(QUESTIONS):
        try:
            found = unsealed(get(facts, FACTS_ADDRESS))
        except (OSError, ValueError) as problem:
            reason = getattr(problem, "reason", problem)
            yield f"its page of Celeriac does not answer ({reason}); it has no Celeriac, or an older one"
            return
        if found is None:
            yield "its [api_auth] jwt_secret is another one than here, or none is set"
        else:
            unknown = "Celeriac is no executor of its configuration, or not of this team"
            yield next((each for each in found if each.team == team), unknown)


def api_server_name(facts: Facts) -> str:
    return "the API server" if facts.host is None else f"the API server on {printable(facts.host)}"


def agreeing_api_servers(facts: Components) -> str:
    names = [] if facts.agreement is None else sorted(facts.agreement.api_servers)
    if len(names) < 2:
        return f"{names[0] if names else 'the API server'} has {SAME_SETTINGS}"
    return f"{', '.join(names)} have {SAME_SETTINGS}"


def get(facts: Components, path: str) -> bytes:
    request = urllib.request.Request(facts.api_url.rstrip("/") + path)  # noqa: S310 - the caller has checked it
    with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT) as reply:  # noqa: S310
        return bytes(reply.read(MAX_REPLY))


CHECKS: tuple[Check[Components], ...] = (
    Check(
        id="executor",
        sound="Celeriac is an executor of this configuration",
        risk="Nothing is sent to Celeriac's workers.",
        look=executor_problem,
        describe=lambda facts: facts.executors,
    ),
    Check(
        id="scheduler",
        sound="a scheduler has a heartbeat",
        risk="No task is sent.",
        look=scheduler_problem,
        describe=lambda facts: f"a heartbeat from {', '.join(facts.schedulers)}",
    ),
    Check(
        id="api-server",
        sound="the API server answers, and is of this version of Airflow",
        risk="Workers wait for it, and tasks fail in the end.",
        look=api_server_problem,
        describe=lambda facts: f"Airflow {facts.api_version}",
    ),
    Check(
        id="scheduler-agrees",
        sound=f"the schedulers have {SAME_SETTINGS}",
        risk="Tasks are sent where no worker takes them, or are refused.",
        look=lambda facts: [] if facts.agreement is None else scheduler_differences(facts.agreement),
    ),
    Check(
        id="api-server-agrees",
        sound=f"the API server has {SAME_SETTINGS}",
        risk="The page of Celeriac shows another deployment.",
        look=lambda facts: [] if facts.agreement is None else api_server_differences(facts.agreement),
        describe=agreeing_api_servers,
    ),
)


def airflow_subjects(conf: Any, team: str | None) -> list[Subject[Any]]:
    """Return all subjects of a deployment of Airflow. Raises `InvalidAirflowConfig`."""
    options = Options(conf)
    timeout = options.seconds("celery", "operation_timeout")
    app = make_app(conf, team_name=team, operation_timeout=timeout)
    keys = signing_keys(conf)
    queues = [options.text("operators", "default_queue")]
    return [
        machine_subject(options.integer("celery", "worker_concurrency")),
        Subject("Airflow", lambda: read_components(conf, team), CHECKS),
        *server_subjects(app, queues, None if keys is None else keys.fingerprints, timeout),
        seen_workers_subject(app, timeout),
    ]
