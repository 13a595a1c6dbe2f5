"""Grading while others are still sampled: attempts are taken as they end, by one thread for all of a run.

It is for graders whose work is done in processes of their own: the thread waits for them, and the sampler goes on.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from score_cli.verification.task_grader import Graded, Item

Key = tuple[str, str, str]  # task, problem, response


def key_of(item: Item) -> Key:
    """What an item's grade depends on, among the problems of one update."""
    return item.problem.task, item.problem.problem_id, item.response


class Ahead:
    """Items that came before they were asked for, and their grades."""

    def __init__(self, grade: Callable[[str, Sequence[Item]], list[Graded]]) -> None:
        """Args:
        grade: of some items of a task; called in one thread, which lives until `close`. Processes that it starts may
            be bound to that thread's life.
        """
        self._grade = grade
        self._lock = Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None
        self._busy = False
        self._waiting: dict[Key, Item] = {}
        self._graded: dict[Key, Graded] = {}

    def take(self, item: Item) -> None:
        """Grade an item as soon as nothing else is being graded, with all that have come by then."""
        key = key_of(item)
        with self._lock:
            if key not in self._graded:
                self._waiting[key] = item
            if self._waiting and not self._busy:
                self._busy = True
                self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="grading")
                self._work = self._thread.submit(self._do)

    def results(self) -> dict[Key, Graded]:
        """The grades of all items taken, once they are there; what is taken after that begins anew.

        Raises:
            Exception: what the grader raised.
        """
        if self._work is not None:
            self._work.result()
        found, self._graded = self._graded, {}
        return found

    def close(self) -> None:
        """End the thread, once what it works on is done; what waits is forgotten."""
        with self._lock:
            self._waiting = {}
        if self._thread is not None:
            self._thread.shutdown()

    def _do(self) -> None:
        while True:
            with self._lock:
                batch, self._waiting = self._waiting, {}
                if not batch:
                    self._busy = False
                    return
            for task in {key[0] for key in batch}:
                members = {key: item for key, item in batch.items() if key[0] == task}
                grades = self._grade(task, list(members.values()))
                with self._lock:
                    self._graded |= dict(zip(members, grades, strict=True))
