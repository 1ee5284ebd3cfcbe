"""The values of jobs that the command line has, and no file: arguments and grids.

::: a b ::: 1 2      all combinations: a 1, a 2, b 1, b 2
::: a b :::+ 1 2     linked: a 1, b 2
--grid lr=0.1,0.01 seed=1..3
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import pairwise, product
from math import prod

from celeriac.errors import InvalidConfig
from celeriac.runs.job_file.template import RESERVED, ValueList

ARGUMENTS, LINKED_ARGUMENTS = ":::", ":::+"
MAX_JOBS = 10_000_000
NUMBER = r"-?(?:\d{1,18}\.\d{1,18}|\d{1,18})"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\.\.({NUMBER}))?", re.ASCII)
GRID_NAME = re.compile(r"[^\W\d]\w*")
GRID_EXAMPLE = "write for example lr=0.1,0.01 or seed=1..5"


def argument_lists(words: Sequence[str]) -> list[ValueList]:
    """Return the list after each `:::`, which the words begin with. Raises `InvalidConfig`."""
    if words and words[0] not in (ARGUMENTS, LINKED_ARGUMENTS):
        raise InvalidConfig(words[0], "it is not known", "write ::: for combinations, or :::+ for linked values")
    starts = [place for place, word in enumerate(words) if word in (ARGUMENTS, LINKED_ARGUMENTS)]
    lists = []
    for start, end in pairwise([*starts, len(words)]):
        values, is_linked = tuple(words[start + 1 : end]), words[start] == LINKED_ARGUMENTS
        if not values:
            raise InvalidConfig(words[start], "no value follows it", "write for example ::: a b c")
        if is_linked and start == starts[0]:
            raise InvalidConfig(LINKED_ARGUMENTS, "there is no list before it", "begin with :::")
        lists.append(ValueList(values=values, is_linked=is_linked))
    return lists


def grid_lists(words: Sequence[str]) -> list[ValueList]:
    """Return the lists of a grid: of `lr=0.1,0.01` or `seed=1..5`. Raises `InvalidConfig`."""
    lists: list[ValueList] = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not GRID_NAME.fullmatch(name):
            raise InvalidConfig("--grid", f"{word!r} is not NAME=VALUES", GRID_EXAMPLE)
        if any(name == other.name for other in lists):
            raise InvalidConfig("--grid", f"{name} is given twice", "write all of its values in one place")
        lists.append(ValueList(values=tuple(grid_values(name, text)), name=name))
    return lists


def grid_values(name: str, text: str) -> Iterator[str]:
    for part in text.split(","):
        if (bounds := RANGE.fullmatch(part)) is not None:
            yield from range_values(name, part, *bounds.groups())
        elif part == "" and "," not in text:
            raise InvalidConfig("--grid", f"{name} has no value", GRID_EXAMPLE)
        else:
            yield part


def range_values(name: str, text: str, first: str, last: str, step: str | None) -> Iterator[str]:
    """Yield the numbers from the first to the last, both included, with as many decimals as were written."""
    start, end = Decimal(first), Decimal(last)
    width = Decimal(1 if start <= end else -1) if step is None else Decimal(step)
    if width == 0 or (end - start) / width < 0:
        raise InvalidConfig("--grid", f"{name}: {text} never ends", "write FIRST..LAST or FIRST..LAST..STEP")
    if (end - start) / width >= MAX_JOBS:
        raise InvalidConfig("--grid", f"{name}: {text} are more than {MAX_JOBS:,} values", "write fewer")
    for place in range(int((end - start) / width) + 1):
        yield format(start + place * width, "f")


def check_lists(lists: Sequence[ValueList]) -> None:
    """Raise `InvalidConfig` for linked lists of different lengths, for names that mean two lists, and for too many
    combinations."""
    for group in groups_of(lists):
        sizes = [len(one.values) for one in group]
        if len(set(sizes)) > 1:
            problem = f"lists of {' and '.join(map(str, sizes))} values are linked"
            raise InvalidConfig(LINKED_ARGUMENTS, problem, "give as many values as before it, or use :::")
    if (total := prod(len(group[0].values) for group in groups_of(lists))) > MAX_JOBS:
        raise InvalidConfig(ARGUMENTS, f"there are {total:,} combinations", f"at most {MAX_JOBS:,} can be one run")
    for one in lists:
        if one.name is not None and RESERVED.search(one.name):
            raise InvalidConfig("template", f"{one.name!r} is not a name of values", "write a word such as sample")


def groups_of(lists: Sequence[ValueList]) -> list[list[ValueList]]:
    """Return the lists, those that are linked together."""
    groups: list[list[ValueList]] = []
    for one in lists:
        if one.is_linked and groups:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def combinations(lists: Sequence[ValueList]) -> Iterator[dict[str, str]]:
    """Yield the values of each job by name. The first list without a name has the name "1"."""
    check_lists(lists)
    names, position = [], 0
    for one in lists:
        position += one.name is None
        names.append(str(position) if one.name is None else one.name)
    rows = (zip(*(one.values for one in group), strict=True) for group in groups_of(lists))
    for combination in product(*rows):
        flat = [value for row in combination for value in row]
        yield dict(zip(names, flat, strict=True))
