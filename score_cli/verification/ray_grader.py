"""Grading on a Ray cluster: an actor a machine with graders and processes of its own, chunks of attempts as its tasks.

What an attempt is graded as depends on the attempt and its problem alone, so it does not matter which actor grades it,
nor how often: a chunk whose actor died is graded again by another. Machines that would grade otherwise than each other,
because one has another version of a library or no sandbox, are refused before anything is graded. Every task says how
its items are to be graded, so an actor that Ray has started anew on such a machine refuses them.
"""

import importlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from score_cli.config import VerifyConfig
from score_cli.errors import JobError, UserError
from score_cli.tables import cluster
from score_cli.verification.own_grader import find_source
from score_cli.verification.task_grader import Graded, Item, TaskGrader

# What makes the graders of some tasks in one process.
Make = Callable[[Collection[str], VerifyConfig], Mapping[str, TaskGrader]]
Described = Mapping[str, str]

_WHO = "grader"
# Chunks of a batch that each actor gets, so that one with easy attempts takes others' work.
_CHUNKS_EACH = 4
# Attempts of a chunk: `OwnGrader` finds out by its first 16 calls that a function always hangs.
_LEAST, _MOST = 16, 256
_CLOSE_SECONDS = 5.0


class GradingActor(cluster.Actor):
    """The graders of some tasks in a process of its own."""

    def __init__(self, tasks: Collection[str], config: VerifyConfig, make: Make, beside: int) -> None:
        """Make no grader yet: a task does, whose errors are told.

        Args:
            beside: actors on this machine, which share its cores.
        """
        cores = len(os.sched_getaffinity(0))
        self._tasks = tasks
        self._config = replace(config, ray=None, workers=config.workers or max(1, cores // beside))
        self._make = make
        self._made: Mapping[str, TaskGrader] = {}
        self._described: dict[str, Described] = {}

    def grade(self, described: Described, items: Sequence[Item]) -> list[Graded]:
        """As `TaskGrader.grade`; all items are of one task.

        Args:
            described: how they are to be graded.
        Raises:
            JobError: they would be graded otherwise here.
        """
        task = items[0].problem.task
        found = difference(described, self.describe()[task])
        if found is not None:
            raise JobError(
                f"a Ray grader that was started anew on {socket.gethostname()} would grade {task} otherwise than the "
                f"others ({found}): let all machines of the cluster have the same, and run the command again to go on"
            )
        return self._made[task].grade(items)

    def describe(self) -> Mapping[str, Described]:
        """As `TaskGrader.describe`, by task.

        Raises:
            UserError: a grader cannot be made on this machine.
        """
        if not self._made:
            try:
                self._made = self._make(self._tasks, self._config)
            except UserError as error:
                raise UserError(f"a Ray grader on {socket.gethostname()}: {error}") from None
            self._described = {task: grader.describe() for task, grader in self._made.items()}
        return self._described

    def workers(self) -> int:
        """How many items are graded at a time."""
        assert self._config.workers is not None
        return self._config.workers

    def close(self) -> None:
        """End the graders' processes."""
        for grader in set(self._made.values()):
            grader.close()
        self._made = {}


class GradingActors:
    """The actors that grade some tasks.

    Attributes:
        described: how each task is graded, by all of them alike.
    """

    def __init__(self, tasks: Collection[str], config: VerifyConfig, make: Make) -> None:
        """Raises:
        UserError: as `cluster.connect` and the tasks' own graders; or machines of the cluster would grade differently.
        """
        assert config.ray is not None
        config = _for_all_machines(config)
        self._ray = cluster.connect(config.ray or cluster.LOCAL)
        self._actors = self._start(sorted(tasks), config, make)
        try:
            self.described = agreed(cluster.ask_all(self._actors, _WHO, 0, "describe"), _pinned(tasks, config))
            self._workers = max(cluster.ask_all(self._actors, _WHO, 0, "workers"))
        except BaseException:
            self.close()
            raise

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """One result per item, in the order of the items; all are of one task.

        Raises:
            JobError: as the task's own grader; or an actor died over one chunk again and again.
        """
        if not items:
            return []
        described = self.described[items[0].problem.task]
        chunks = chunks_of(items, actors=len(self._actors), workers=self._workers)
        graded = dict(
            cluster.spread(
                self._actors, "grade", range(len(chunks)), lambda number: (described, chunks[number]), who=_WHO
            )
        )
        return [one for number in range(len(chunks)) for one in graded[number]]

    def close(self) -> None:
        """End the actors and their processes."""
        closing = [actor.work.remote(0, "close") for actor in self._actors]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def _start(self, tasks: Sequence[str], config: VerifyConfig, make: Make) -> list[Any]:
        """An actor on each machine, or as many as are asked for, on one machine after another.

        They take nothing of what Ray counts: samplers and trainers leave the cores to them for most of the time.
        """
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        machines = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        places = [machines[number % len(machines)] for number in range(config.ray_graders or len(machines))]
        on_each = Counter(places)
        remote, started = self._ray.remote(GradingActor), []
        for place in places:
            actor = remote.options(
                max_restarts=-1,
                max_task_retries=cluster.TASK_RETRIES,
                num_cpus=0,
                # Soft: where its machine is lost an actor starts anew on another.
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(place, soft=True),
            )
            started.append(actor.remote(tasks, config, make, on_each[place]))
        return started


class RayGrader:
    """Grades one task by actors, which may grade others too."""

    in_processes = True

    def __init__(self, task: str, actors: GradingActors) -> None:
        self._task = task
        self._actors = actors

    def grade(self, items: Sequence[Item]) -> list[Graded]:
        """As `GradingActors.grade`."""
        return self._actors.grade(items)

    def describe(self) -> dict[str, str]:
        """As the task's own grader in any of the actors."""
        return dict(self._actors.described[self._task])

    def close(self) -> None:
        """End the actors, whoever else they grade for: all of a `Grader` are closed together."""
        self._actors.close()


def ray_graders(tasks: Collection[str], config: VerifyConfig, make: Make) -> dict[str, TaskGrader]:
    """A grader for each task, by actors that they share; errors as `GradingActors`."""
    if not tasks:
        return {}
    actors = GradingActors(tasks, config, make)
    return {task: RayGrader(task, actors) for task in tasks}


def chunks_of(items: Sequence[Item], *, actors: int, workers: int) -> list[Sequence[Item]]:
    """The items in pieces, in their order: enough of them for all actors, each enough for all of an actor's workers."""
    even = -(-len(items) // (actors * _CHUNKS_EACH))
    size = max(min(even, _MOST), _LEAST, workers)
    return [items[start : start + size] for start in range(0, len(items), size)]


def agreed(said: Sequence[Mapping[str, Described]], pinned: Mapping[str, Described]) -> Mapping[str, Described]:
    """How each task is graded, which all actors say alike.

    Args:
        said: by each actor.
        pinned: by task, what all have to say.
    Raises:
        UserError: they do not.
    """
    for task, first in said[0].items():
        for other in said:
            found = difference({**first, **pinned.get(task, {})}, other[task])
            if found is not None:
                raise UserError(
                    f"the machines of the Ray cluster would not grade {task} alike ({found}): let all have the same"
                )
    return said[0]


def difference(wanted: Described, found: Described) -> str | None:
    """The first thing in which two ways to grade are not the same, in words."""
    for key in sorted({*wanted, *found}):
        if wanted.get(key) != found.get(key):
            return f"{key} {wanted.get(key)} and {found.get(key)}"
    return None


def _for_all_machines(config: VerifyConfig) -> VerifyConfig:
    """The settings, with a user's own grader named so that each machine finds it whatever folder it works in.

    Raises:
        UserError: there is no such grader.
    """
    if config.grader is None or (source := find_source(config.grader)).source is None:
        return config
    return replace(config, grader=source.name)


def _pinned(tasks: Collection[str], config: VerifyConfig) -> Mapping[str, Described]:
    """What the actors have to say: a user's own file is the same on their machines as on this one."""
    if config.grader is None or (digest := find_source(config.grader).sha256) is None:
        return {}
    return {task: {"sha256": digest} for task in tasks}
