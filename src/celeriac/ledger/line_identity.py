"""Find the jobs of a changed file in the ledger, if they have no keys of their own.

The key of such a job is the number of its line, which changes with every line that is added above it. So the job is
identified by its content and its occurrence: the second line with a command is the second task with it. It keeps the
key that the ledger has.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from itertools import count

from msgspec.structs import replace

from celeriac.ledger.codec import digest_of
from celeriac.task.line_key import LINE_KEY
from celeriac.task.task import Task, TaskKey


def keep_keys(tasks: Collection[Task], numbered: Collection[TaskKey], rows: Iterable[tuple[str, int]]) -> list[Task]:
    """Return the tasks of a file with the keys that they have in the ledger.

    `numbered` are the keys of the tasks that have none of their own. `rows` are the keys and digests of the tasks in
    the ledger.
    """
    given = {task.key for task in tasks if task.key not in numbered}
    keys_of = keys_by_digest((key, digest) for key, digest in rows if key not in given)
    taken = {key for keys in keys_of.values() for key in keys}
    new_key: dict[TaskKey, TaskKey] = {}
    for task in tasks:
        if task.key in numbered and (keys := keys_of.get(digest_of(task))):
            new_key[task.key] = keys.popleft()
    used = given.union(new_key.values())
    for task in tasks:
        if task.key in numbered and task.key not in new_key:
            key = new_key[task.key] = free_key(str(task.key), used, taken)
            used.add(key)
    return [with_keys(task, new_key) for task in tasks]


def keys_by_digest(rows: Iterable[tuple[str, int]]) -> dict[int, deque[str]]:
    """Return the keys that are numbers, for each digest in the order of the lines."""
    numbers: defaultdict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for key, digest in rows:
        if number := LINE_KEY.fullmatch(key):
            numbers[digest].append((int(number[1]), int(number[2] or 1), key))
    return {digest: deque(key for *_, key in sorted(keys)) for digest, keys in numbers.items()}


def free_key(key: str, used: Collection[TaskKey], taken: Collection[TaskKey]) -> str:
    """Return the number of a line as a key, or with a second number if a job of another line has the key.

    `used` are the keys of other jobs of the file. A key that was `taken` by a job that the file no longer has is used
    again only for the job in its line.
    """
    if key not in used:
        return key
    return next(other for number in count(2) if (other := f"{key}-{number}") not in used and other not in taken)


def with_keys(task: Task, new_key: dict[TaskKey, TaskKey]) -> Task:
    """Return the task with its new key, and with those of the tasks that it needs."""
    key = new_key.get(task.key, task.key)
    needs = tuple(new_key.get(need, need) for need in task.needs)
    return task if key == task.key and needs == task.needs else replace(task, key=key, needs=needs)
