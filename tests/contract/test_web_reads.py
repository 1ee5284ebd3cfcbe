"""The web server on a ledger in SQLite and in PostgreSQL: pages of tasks, statistics, retries, and the page itself."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx
import pytest

from celeriac.errors import InvalidConfig
from celeriac.ledger.retry import RetryFilter
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import earlier_events, find_run
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.web import task_pages
from celeriac.web.errors import WebError
from celeriac.web.statistics import read_statistics, step_for
from celeriac.web.task_pages import Position, TaskFilter, parse_position, read_task_page
from celeriac.web.waiting import count_waiting
from tests.support.service_host import postgres_ledger
from tests.support.web_host import web_in_process

NUMBER = 30


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path) -> Iterator[RunStore]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.db"
    else:
        url = postgres_ledger(request.getfixturevalue("postgres"), f"web_{uuid4().hex}")
    with RunStore(url) as store:
        tasks = [
            Task(key=f"k{n:02}", command="true", priority=n % 3, queue="gpu" if n % 2 else "default")
            for n in range(NUMBER)
        ]
        store.submit("jobs", None, tasks, is_given=True)
        store.cancel(1, "jobs", ["k00", "k01"])
        yield store


def keys(store: RunStore, wanted: TaskFilter, limit: int = 7) -> list[str]:
    """Return the keys of all pages."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = read_task_page(store.database, 1, wanted, after=after, limit=limit)
        assert len(page.tasks) <= limit
        found += [str(view.task.key) for view in page.tasks]
        if page.next is None:
            return found
        after = page.next


ALL = [f"k{n:02}" for n in range(NUMBER)]
BY_PRIORITY = sorted(ALL[2:], key=lambda key: (-(int(key[1:]) % 3), key))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (TaskFilter(), ALL),
        (TaskFilter(states=[State.REVOKED]), ["k00", "k01"]),
        (TaskFilter(states=[State.WAITING]), BY_PRIORITY),
        (TaskFilter(states=[State.WAITING, State.REVOKED]), ALL),
        (TaskFilter(states=[State.RUNNING]), []),
        (TaskFilter(queue="gpu"), ALL[1::2]),
        (TaskFilter(queue="default"), ALL[::2]),
        (TaskFilter(text="K1"), ALL[10:20]),
        (TaskFilter(text="%"), []),
        (
            TaskFilter(states=[State.WAITING], queue="gpu", text="k1"),
            [key for key in BY_PRIORITY if key in ALL[11:20:2]],
        ),
    ],
)
@pytest.mark.parametrize("batch", [4, 5_000])
def test_the_pages_hold_each_matching_task_once_and_in_order(store, monkeypatch, wanted, expected, batch):
    monkeypatch.setattr(task_pages, "BATCH_SIZE", batch)
    assert keys(store, wanted) == expected


def test_a_search_that_takes_long_goes_on_in_the_next_page(store, monkeypatch):
    monkeypatch.setattr(task_pages, "BATCH_SIZE", 4)
    monkeypatch.setattr(task_pages, "SEARCH_TIME", 0.0)
    page = read_task_page(store.database, 1, TaskFilter(text="k29"), after=None, limit=5)
    assert (page.tasks, page.searched, page.next) == ([], 4, "3")
    assert keys(store, TaskFilter(text="k29")) == ["k29"]


@pytest.mark.parametrize("text", ["", "x", "-1", "3@", "@3", "3@x", str(2**70), f"3@{2**40}"])
def test_an_unknown_position_is_refused(text):
    for by_priority in (False, True):
        with pytest.raises(WebError, match="is not a position of this list"):
            parse_position(text, by_priority=by_priority)
    assert parse_position("3@-1", by_priority=True) == Position(3, -1)


ODD_QUEUES = ['a "quoted" one', 'a "second" one', "back\\slash", "ü", "line\nbreak"]


def test_the_waiting_tasks_are_counted_by_queue(store):
    odd = [Task(key=queue, command='echo "queue":"none"', queue=queue) for queue in ODD_QUEUES]
    odd += [Task(key="env", command="true", env={"queue": "none"}, cwd="/")]
    odd += [Task(key="both", command="true", env={"queue": "none"}, queue="gpu")]
    store.submit("odd", None, odd, is_given=True)
    assert count_waiting(store.database, find_run(store.database, "jobs")) == {"default": 14, "gpu": 14}
    counted = count_waiting(store.database, find_run(store.database, "odd"))
    assert counted == {**dict.fromkeys(ODD_QUEUES, 1), "default": 1, "gpu": 1}


def test_the_statistics_count_each_task_once(store):
    run = find_run(store.database, "jobs")
    statistics = read_statistics(store.database, run, NUMBER)
    assert statistics.states == {"revoked": 2, "waiting": 28}
    assert (statistics.counts.tasks, statistics.counts.never_ran, statistics.counts.waiting) == (NUMBER, 2, 28)
    assert sum(each.other for each in statistics.ends) == 2
    assert statistics.counts.last_change == pytest.approx(run.counts.last_change)


@pytest.mark.parametrize(
    ("duration", "step"), [(0.0, 1.0), (120.0, 1.0), (121.0, 2.0), (3600.0, 30.0), (1e9, 86_400.0)]
)
def test_a_graph_has_at_most_120_steps(duration, step):
    assert step_for(duration) == step


def test_ended_tasks_are_queued_again_and_their_ends_stay(store):
    before = find_run(store.database, "jobs").counts
    assert before.waiting == 28
    assert store.requeue(1, "jobs", RetryFilter(failed=True)) == 0
    assert store.requeue(1, "jobs", RetryFilter(keys=["k01", "k02"])) == 1
    assert store.requeue(1, "jobs", RetryFilter()) == 1
    after = find_run(store.database, "jobs")
    assert (after.counts.waiting, after.counts.never_ran) == (NUMBER, 0)
    assert [(event.key, event.state) for event in earlier_events(store.database, 1)] == [
        ("k01", State.REVOKED),
        ("k00", State.REVOKED),
    ]


def test_a_run_with_a_live_owner_is_not_changed(store):
    assert len(store.owned_runs().take(from_dead=False)) == 1
    for change in (
        lambda: store.requeue(1, "jobs", RetryFilter()),
        lambda: store.reprioritise(1, "jobs", "k05", 9, asked_by="a test"),
    ):
        with pytest.raises(InvalidConfig, match="is running in process"):
            change()


# — the page and its actions, over HTTP —


@pytest.fixture
def site(store: RunStore) -> Iterator[httpx.Client]:
    with (
        web_in_process(store.database) as (url, _),
        httpx.Client(base_url=url, headers={"accept": "text/html", "origin": url}, timeout=30) as client,
    ):
        yield client


def change(site: httpx.Client, address: str, **form: str) -> httpx.Response:
    """Agree to a confirmation. Return the page after it."""
    question = site.get(address)
    assert question.status_code == 200
    csrf = question.text.partition('name="csrf" value="')[2].partition('"')[0]
    return site.post(address, data={"csrf": csrf, **form}, follow_redirects=True)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/", 'href="/run?run=jobs"'),
        ("/runs?text=JOB&state=submitted", 'href="/run?run=jobs"'),
        ("/run?run=jobs", 'data-key="k29"'),
        ("/run?run=jobs&state=waiting&queue=gpu&text=K1", 'data-key="k19"'),
        ("/task?run=jobs&key=k00", "revoked"),
        ("/explain?run=jobs&key=k03", "celeriac serve with this ledger takes it"),
    ],
)
def test_the_page_shows_any_ledger(site, path, shown):
    answer = site.get(path)
    assert (answer.status_code, shown in answer.text) == (200, True)


def test_the_actions_of_the_page_change_any_ledger(site, store):
    assert "has priority 9 now" in change(site, "/confirm/priority?run=jobs&key=k05", priority="9").text
    assert 'data-key="k05"' in site.get("/run?run=jobs&state=waiting").text.partition("</tr>")[2].partition("</tr>")[0]
    assert "is being cancelled" in change(site, "/confirm/cancel?run=jobs&key=k05").text
    assert "1 task is queued again" in change(site, "/confirm/retry?run=jobs&key=k05").text
    assert "28 tasks were revoked" in change(site, "/confirm/cancel?run=jobs").text
    assert "30 tasks are queued again" in change(site, "/confirm/retry?run=jobs").text
    states = read_statistics(store.database, find_run(store.database, "jobs")).states
    assert states == {"waiting": NUMBER}


@pytest.mark.parametrize("value", ["\0", "\ufffd\ud800", "%_\\", "x" * 55_000, "9" * 5_000])
def test_no_value_of_an_address_is_too_strange_for_a_ledger(site, value):
    """The request of a client is never an error of the ledger."""
    text = quote(value, errors="surrogatepass")
    for path in (
        *(f"/run?run={text}", f"/task?run={text}&key=k00", f"/task?run=jobs&key={text}", f"/run?run=jobs&after={text}"),
        *(f"/run?run=jobs&text={text}", f"/run?run=jobs&queue={text}", f"/runs?before={text}", f"/runs?text={text}"),
        *(f"/explain?run=jobs&key={text}", f"/output?run=jobs&key={text}", f"/confirm/cancel?run=jobs&key={text}"),
        *(f"/api/v1/runs/{text}", f"/api/v1/runs?before={text}", f"/api/v1/runs/jobs/tasks?text={text}"),
        *(f"/api/v1/runs/jobs/tasks?queue={text}", f"/api/v1/runs/jobs/tasks?after={text}"),
        *(f"/api/v1/runs/jobs/tasks/{text}", f"/api/v1/changes?run={text}"),
    ):
        assert site.get(path).status_code in (200, 400, 404, 422), path[:80]
    for key in ("k05", text):
        answer = change_anyway(site, f"/confirm/priority?run=jobs&key={key}", priority=value)
        assert answer.status_code in (404, 422)


def change_anyway(site: httpx.Client, address: str, **form: str) -> httpx.Response:
    """Send a form that no page has shown."""
    csrf = site.get("/api/v1/session").json()["csrf"]
    body = urlencode({"csrf": csrf, **form}, errors="surrogatepass")
    return site.post(address, content=body, headers={"content-type": "application/x-www-form-urlencoded"})
