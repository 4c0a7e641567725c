"""How long filters take, so that a report can say what each of them costs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by filter: the first label that it gives, or its drop reason. Not for two threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What is inside counts as the filter's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - started})

    def add(self, seconds: dict[str, float]) -> None:
        """What another clock has read."""
        for name, of_it in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + of_it

    def read(self) -> dict[str, float]:
        """The seconds since it was last read."""
        seconds, self._seconds = self._seconds, {}
        return seconds
