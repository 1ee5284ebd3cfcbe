"""`--dry-run`: the tasks in the order in which they would start."""

from __future__ import annotations

import heapq
import json
import shlex
import time
from collections.abc import Iterator, Sequence

import click

from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.messages import print_line
from celeriac.config.executor_config import Config
from celeriac.config.notice_targets import NoticeTargets
from celeriac.config.web_urls import masked_web_url
from celeriac.executor.dependencies import Dependencies
from celeriac.executor.priority_queue import Entry
from celeriac.task.amounts import needs_texts
from celeriac.task.fields import task_fields
from celeriac.task.moment import show_moment
from celeriac.task.size import format_size
from celeriac.task.state import State
from celeriac.task.task import Task

MAX_NEEDS_SHOWN = 3  # in a line for a person


def list_tasks(tasks: Sequence[Task], *, as_json: bool) -> None:
    for task in in_start_order(tasks):
        click.echo(json.dumps(task_fields(task)) if as_json else task_line(task))


def print_first(tasks: Sequence[Task]) -> None:
    """Print on standard error what a template makes: how many jobs, and the first command."""
    print_line(f"{count(len(tasks), 'job')}; the first command is {on_one_line(str(tasks[0].command))}")


def print_tags(tags: Sequence[str]) -> None:
    """Print on standard error the tags that the run would have."""
    if tags:
        print_line(f"the run would be tagged {', '.join(tags)}")


def print_pipe(file: str, block: int) -> None:
    """Print on standard error how an input would be split."""
    name = "standard input" if file == "-" else file
    print_line(f"{name} would be split into blocks of {count(block, 'byte')}, one job each; this is the first")


def print_limits(config: Config) -> None:
    """Print what holds starts back, if anything does."""
    limits = []
    if config.max_load is not None:
        limits.append(f"while the load is above {config.max_load}")
    if config.min_free_memory is not None:
        limits.append(f"while less than {format_size(config.min_free_memory)} of memory is free")
    if config.delay:
        limits.append(f"for {config.delay:g} s after each start")
    if limits:
        print_line(f"nothing starts {', or '.join(limits)}")


def print_notices(targets: NoticeTargets) -> None:
    """Print on standard error what would be told of the end. A command and a URL may hold passwords."""
    names = [] if targets.command is None else ["the command of --on-end"]
    names += [] if targets.url is None else [str(masked_web_url(targets.url))]
    if names:
        when = "the first failure and the end" if targets.first_failure else "the end"
        print_line(f"{when} of the run would be reported to {' and '.join(names)}")


def in_start_order(tasks: Sequence[Task]) -> Iterator[Task]:
    """Yield the tasks in the order in which they start if only one runs at a time, each succeeds, and all that may
    start now have ended before others may start."""
    now = time.time()

    def in_heap(entry: Entry) -> tuple[float, Entry]:
        not_before = entry.task.not_before or now
        return max(not_before, now), entry

    entries = [Entry(-task.priority, n, n, task) for n, task in enumerate(tasks)]
    dependencies, keys = Dependencies(), {task.key for task in tasks}
    dependencies.block([entry for entry in entries if entry.task.needs], keys.__contains__)
    ready = [in_heap(entry) for entry in entries if not entry.task.needs]
    heapq.heapify(ready)
    while ready:
        task = heapq.heappop(ready)[1].task
        yield task
        for entry in dependencies.on_task_ended(task.key, State.SUCCESS).ready:
            heapq.heappush(ready, in_heap(entry))


def task_line(task: Task) -> str:
    command = task.command if isinstance(task.command, str) else shlex.join(task.command)
    texts = (input_text, artifacts_text, needs_text, resources_text, tags_text, key_text, times_text)
    notes = "".join(text(task) for text in texts)
    return on_one_line(f"{task.priority:>4}  {task.queue}  {task.key}  {command}{notes}")


def input_text(task: Task) -> str:
    if task.stdin_file is not None:
        return f"  < {shlex.quote(task.stdin_file)}"
    return "" if task.stdin is None else f"  (stdin of {count(len(str.encode(task.stdin)), 'byte')})"


def artifacts_text(task: Task) -> str:
    return f"  (artifacts {', '.join(task.artifacts)})" if task.artifacts else ""


def needs_text(task: Task) -> str:
    if not task.needs:
        return ""
    keys = ", ".join(map(str, task.needs[:MAX_NEEDS_SHOWN]))
    hidden = len(task.needs) - MAX_NEEDS_SHOWN
    return f"  (needs {keys}{f' and {hidden:,} more' if hidden > 0 else ''})"


def resources_text(task: Task) -> str:
    return "".join(f"  ({text})" for text in needs_texts(task))


def tags_text(task: Task) -> str:
    return f"  (tags {', '.join(task.tags)})" if task.tags else ""


def times_text(task: Task) -> str:
    """Return when a task may start, and when it must have started."""
    times = {"not before": task.not_before, "deadline": task.deadline}
    return "".join(f"  ({name} {show_moment(when)})" for name, when in times.items() if when is not None)


def key_text(task: Task) -> str:
    return "" if task.concurrency_key is None else f"  (concurrency key {task.concurrency_key})"
