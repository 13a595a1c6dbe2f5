"""A Ray cluster: joining it, how much of it is taken, and what its actors answer.

An actor of ours holds what it needs beyond its task nowhere but in itself, so that a task whose actor died can be done
again by another, or by the one that Ray starts in its place. `ray.util.ActorPool` has only the second: where a machine
is lost, and the actor has no other place, it would wait for ever.
"""

import importlib
import logging
import math
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from score_cli.config import DeviceConfig
from score_cli.errors import JobError, UserError

LOCAL = "local"
# How often a task is tried again whose actor died; one that always ends so has another fault than bad luck.
TASK_RETRIES = 3
# For an actor to answer what others have answered already.
GRACE_SECONDS = 10.0
CPU, GPU = "CPU", "GPU"

# What this process has taken of the cluster for as long as it is there.
_taken: Counter[str] = Counter()


class Actor:
    """What all actors share: a task names a method, and an error that a user can cause is a result."""

    def work(self, number: int, verb: str, *arguments: Any) -> tuple[int, Any]:
        """Do what a task asks for; the result with the task's number."""
        try:
            return number, getattr(self, verb)(*arguments)
        except (UserError, JobError) as error:
            return number, error

    def ready(self) -> None:
        """Answer, as soon as this actor is there."""


def spread(
    actors: Sequence[Any], verb: str, numbers: Iterable[int], arguments: Callable[[int], tuple[Any, ...]], who: str
) -> Iterator[tuple[int, Any]]:
    """What actors answer to numbered tasks, in the order in which they are done, one task an actor at a time.

    An actor gets work when it has answered. The task of one that is lost goes to whoever is free; the lost one is asked
    again, and answers when Ray has started it anew.

    Args:
        arguments: of a task, which are those of the actors' method `verb`.
        who: what the actors are.
    Raises:
        UserError, JobError: as an actor raised it; one task has lost its actor again and again, or none can be started.
    """
    ray, errors = importlib.import_module("ray"), importlib.import_module("ray.exceptions")
    waiting, lost = deque(numbers), Counter[int]()
    # What each actor is at; None where it has only been asked whether it is there.
    running: dict[Any, tuple[Any, int | None]] = {_ask_if_ready(actor): (actor, None) for actor in actors}
    idle: list[Any] = []
    while waiting or any(number is not None for _, number in running.values()):
        while waiting and idle:
            actor, number = idle.pop(), waiting.popleft()
            task = actor.work.options(max_task_retries=0).remote(number, verb, *arguments(number))
            running[task] = actor, number
        [done], _ = ray.wait(list(running))
        actor, at = running.pop(done)
        try:
            _, found = ray.get(done)
        except errors.RayTaskError:
            raise  # a fault of the code, and no loss
        except errors.RayError as error:
            if at is not None:
                lost[at] += 1
                if lost[at] > TASK_RETRIES:
                    raise _died(who, error) from None
                waiting.appendleft(at)
                running[_ask_if_ready(actor)] = actor, None
            elif not running and not idle:
                raise JobError(f"no Ray {who} can be started ({first_line(error)}): see `ray logs`") from None
            continue
        if isinstance(found, Exception):
            raise found
        idle.append(actor)
        if at is not None:
            yield at, found


def _ask_if_ready(actor: Any) -> Any:
    return actor.work.options(max_task_retries=-1).remote(0, "ready")


def present(asked: Iterable[Any]) -> list[Any]:
    """What was answered by the actors that are there; one that is lost is left out.

    Ray does not say that an actor is lost for as long as it could start it anew, be it on a machine that never comes.
    All are asked for the same work, so one that takes twice as long as the first, and `GRACE_SECONDS`, is left out too.

    Raises:
        UserError, JobError: as an actor raised it.
    """
    ray, errors = importlib.import_module("ray"), importlib.import_module("ray.exceptions")
    asked = list(asked)
    waiting, answers = asked, {}
    began, until = time.monotonic(), math.inf
    while waiting and (left := until - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, timeout=None if until == math.inf else left)
        for each in done:
            try:
                answers[each] = ray.get(each)[1]
            except errors.RayTaskError:
                raise
            except errors.RayError:
                continue
            now = time.monotonic()
            until = min(until, now + max(GRACE_SECONDS, now - began))
    found = [answers[each] for each in asked if each in answers]
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    return found


def _died(who: str, error: BaseException) -> JobError:
    return JobError(
        f"a Ray {who} died {TASK_RETRIES + 1} times over one chunk ({first_line(error)}): look into its log with "
        "`ray logs`, and run the command again to go on"
    )


def ask_all(actors: Iterable[Any], who: str, *question: Any) -> list[Any]:
    """What every actor answers; one that is lost, when Ray has started it anew.

    Args:
        who: what the actors are.
        question: arguments of `Actor.work`.
    Raises:
        UserError, JobError: as an actor raised it, or an actor died with every try.
    """
    ray, errors = importlib.import_module("ray"), importlib.import_module("ray.exceptions")
    answers = []
    try:
        for each in [actor.work.remote(*question) for actor in actors]:
            _, found = ray.get(each)
            if isinstance(found, Exception):
                raise found
            answers.append(found)
    except errors.RayError as error:
        raise _died(who, error) from None
    return answers


def first_line(error: BaseException) -> str:
    """What an error of Ray says before it goes into details."""
    return str(error).strip().splitlines()[0]


def connect(address: str) -> Any:
    """Ray, connected to the cluster at an address: `local` for one that is started here, `auto` for the one there is.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "ray is set, but Ray is not installed: `pip install 'score-cli[ray]'`, or leave it out"
        ) from None
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _own_signals():
            if address == LOCAL:
                ray.init(address=LOCAL, include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({first_line(error)}): start one with `ray start --head`, or use "
            "--ray local"
        ) from None
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's way to meet SIGTERM, in whose place Ray puts one of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def needs(config: DeviceConfig, gpus: int = 1) -> dict[str, float]:
    """What an actor takes that runs a model, as the options of a Ray actor; `gpus` where it runs on those."""
    import torch

    gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return {"num_cpus": config.threads, "num_gpus": gpus if gpu else 0}


def room(ray: Any, each: dict[str, float]) -> tuple[int, str]:
    """How many actors the cluster has room for, beside what this process keeps of it; and how much there is, in words.

    Args:
        each: what one takes, as `needs` gives it.
    """
    kind, name = (GPU, "num_gpus") if each["num_gpus"] else (CPU, "num_cpus")
    free = ray.cluster_resources().get(kind, 0) - _taken[kind]
    return int(free // each[name]), f"{each[name]:g} {kind}s each are asked for, and the cluster has {free:g}"


@contextmanager
def taking(each: dict[str, float], count: int) -> Iterator[None]:
    """Leave what some actors take to them, while they are there."""
    own = Counter({CPU: count * each["num_cpus"], GPU: count * each["num_gpus"]})
    _taken.update(own)
    try:
        yield
    finally:
        _taken.subtract(own)
