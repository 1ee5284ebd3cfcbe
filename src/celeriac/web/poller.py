"""Watch what viewers look at, and tell them when it has changed.

    viewers ─► topics ─► one thread: reads each watched topic at most once a second ─► versions ─► viewers

Without a viewer nothing is read. Twenty viewers of a topic cost one read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from celeriac.errors import CeleriacError
from celeriac.server_errors import is_server_error
from celeriac.surviving_loop import SurvivingLoop
from celeriac.telemetry.metrics import WEB_POLL_AGE, WEB_POLL_SECONDS, WEB_TOPICS, WEB_VIEWERS, Metric
from celeriac.telemetry.telemetry import NO_LABELS, Labels
from celeriac.web.errors import TooBusy, WebError

THREAD = "celeriac-web-poll"
INTERVAL = 1.0  # seconds between two reads of a topic
PAUSE_PER_READ = 3.0  # the pause is at least this many times as long as the read
MAX_TOPICS = 200
MAX_VIEWERS = 300  # of all topics; fewer than a server has connections, so that pages and probes still answer

Read = Callable[[], bytes]
"""Return the present content of a topic."""


@dataclass(slots=True)
class Content:
    """The result of a read."""

    read: int
    """The number of the read: 1 is the topic's first."""

    version: int
    value: bytes


@dataclass(slots=True, eq=False)
class Topic:
    """One thing that viewers watch."""

    name: str
    read: Read
    content: Content | None = None
    reads: int = 0
    """How many reads have begun."""

    next_read: float = float("-inf")
    viewers: set[Viewer] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Viewer:
    """One who watches a topic. It never gets what was read before it came: its page is newer than that."""

    topic: Topic
    notify: Callable[[], None]
    reads_before: int
    version: int = 0
    """The version that it has."""

    def take_news(self) -> bytes | None:
        """Return the present content if it is new to this viewer."""
        content = self.topic.content
        if content is None or content.read <= self.reads_before or content.version == self.version:
            return None
        self.version = content.version
        return content.value


class Poller:
    """The topics of one server. `watch` and `leave` may be called in any thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._topics: dict[str, Topic] = {}
        self._has_ended = False
        self._last_read: tuple[float, float] | None = None
        """When the last read ended, and its duration."""

        self._loop = SurvivingLoop(THREAD, self._run_round, wait=self._wait)

    def start(self) -> None:
        self._loop.start()

    def close(self) -> None:
        """End the thread after the read under way, and tell all viewers."""
        with self._condition:
            self._has_ended = True
            self._condition.notify_all()
            viewers = [viewer for topic in self._topics.values() for viewer in topic.viewers]
        for viewer in viewers:
            viewer.notify()

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    def check_room(self, names: Iterable[str]) -> None:
        """Raise `TooBusy` if these topics cannot be watched by one more viewer."""
        with self._condition:
            new = sum(name not in self._topics for name in names)
            if new and len(self._topics) + new > MAX_TOPICS:
                raise TooBusy("too many different runs are watched at the moment; try again later")
            if self._viewers() >= MAX_VIEWERS:
                raise TooBusy("too many viewers watch at the moment; try again later")

    def watch(self, name: str, read: Read, notify: Callable[[], None]) -> Viewer:
        """Begin to watch. `notify` is called, in another thread, when there is news. Raises `TooBusy` if the server
        watches too much already."""
        self.check_room([name])
        with self._condition:
            if (topic := self._topics.get(name)) is None:
                topic = self._topics[name] = Topic(name, read)
            viewer = Viewer(topic, notify, topic.reads)
            topic.viewers.add(viewer)
            self._condition.notify_all()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Watch no longer."""
        topic = viewer.topic
        with self._condition:
            topic.viewers.discard(viewer)
            if not topic.viewers:
                self._topics.pop(topic.name, None)

    def measure(self) -> Iterator[tuple[Metric, Mapping[Labels, float]]]:
        """Yield what is watched, and how long the last read took, for telemetry."""
        with self._condition:
            topics, viewers = len(self._topics), self._viewers()
        yield WEB_VIEWERS, {NO_LABELS: viewers}
        yield WEB_TOPICS, {NO_LABELS: topics}
        if self._last_read is not None:
            ended, took = self._last_read
            yield WEB_POLL_SECONDS, {NO_LABELS: took}
            yield WEB_POLL_AGE, {NO_LABELS: max(0.0, time.monotonic() - ended)}

    def _viewers(self) -> int:
        """Return the number of different viewers: one of a run watches two topics."""
        return len({viewer.notify for topic in self._topics.values() for viewer in topic.viewers})

    def _wait(self, seconds: float) -> None:
        with self._condition:
            if not self._has_ended:
                self._condition.wait(seconds)

    def _run_round(self) -> bool:
        """Read the topics that are due, and wait until the next one is."""
        with self._condition:
            if self._has_ended:
                return False
            due = [topic for topic in self._topics.values() if topic.next_read <= time.monotonic()]
            if not due:
                times = [topic.next_read for topic in self._topics.values()]
                self._condition.wait(max(0.0, min(times) - time.monotonic()) if times else None)
                return not self._has_ended
        for topic in due:
            self._read(topic)
        return True

    def _read(self, topic: Topic) -> None:
        began = time.monotonic()
        topic.next_read = began + INTERVAL  # also if the read raises
        with self._condition:
            topic.reads += 1
        value = content_of(topic.read)
        now = time.monotonic()
        self._last_read = (now, now - began)
        topic.next_read = max(topic.next_read, now + PAUSE_PER_READ * (now - began))
        if value is None:
            return
        before = topic.content
        version = 1 if before is None else before.version + (value != before.value)
        topic.content = Content(topic.reads, version, value)
        with self._condition:
            viewers = [viewer for viewer in topic.viewers if viewer.version != version]
        for viewer in viewers:
            viewer.notify()


def content_of(read: Read) -> bytes | None:
    """Return the content; None if its source is unavailable: the viewers keep what they have."""
    try:
        return read()
    except (CeleriacError, WebError):
        return None
    except Exception as error:
        if not is_server_error(error):
            raise
        return None
