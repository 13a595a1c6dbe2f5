"""Where the time of an update goes."""

import time
from collections import defaultdict
from collections.abc import Callable


class Stopwatch:
    """Seconds by part of the work. The clock is monotonic: a change of the time of day does not show."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = clock()

    def lap(self, part: str) -> None:
        """Give a part the time since the last lap."""
        now = self._clock()
        self._seconds[part] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Seconds by part since the last taking, and start anew."""
        taken = dict(self._seconds)
        self._seconds.clear()
        self._last = self._clock()
        return taken
