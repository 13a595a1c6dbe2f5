"""Training processes on a Ray cluster: this process leads, and actors follow it as those of `torchrun` would.

An actor that dies is not started again: its part of the weights is lost, and with it the update. The first process
then ends as it does under `torchrun`, and the same command goes on from the last checkpoint.
"""

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from score_cli.config import DeviceConfig
from score_cli.errors import JobError, UserError
from score_cli.tables import cluster
from score_cli.tables.processes import PATIENCE, Share, follow, join, leave, team

_DEATH = "a Ray trainer, of which `ray logs` may tell more"
# Until an actor is there: on a cluster that grows by itself, a machine may have to start first.
_START_SECONDS = 600.0


class Trainer:
    """A process that follows, in an actor of its own."""

    def gpus(self) -> list[str]:
        """The GPUs that Ray has given this actor, by the names that the cluster knows them by."""
        return [str(gpu) for gpu in importlib.import_module("ray").get_gpu_ids()]

    def serve(self, host: str, port: int, share: Share) -> int:
        """Do what the first process says until it says to end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the first process to meet
        store = TCPStore(host, port, share.size, is_master=False, timeout=PATIENCE)
        return follow(join(0, _DEATH, share, store))


@contextmanager
def trainers_on(address: str, count: int, config: DeviceConfig) -> Iterator[None]:
    """Let this process and `count - 1` actors of a cluster be the processes that train, for as long as the block runs.

    Args:
        address: see `cluster.connect`.
        config: where a process trains, and in how many threads.
    Raises:
        UserError: there is no cluster, it has no room, or `torchrun` has started processes already.
        JobError: an actor cannot be started.
    """
    if team() is not None:
        raise UserError("torchrun has started processes that train, and so would --trainers: use one of the two")
    ray = cluster.connect(address)
    each = cluster.needs(config)
    room, said = cluster.room(ray, each)
    # Where there are GPUs this process takes one too.
    actors = count if each["num_gpus"] else count - 1
    if actors > room:
        raise UserError(f"{actors} Ray trainers of {said}: lower --trainers or --threads")
    keeper = [_beside(ray, each)] if each["num_gpus"] else []
    others = [ray.remote(Trainer).options(max_restarts=0, **each).remote() for _ in range(count - 1)]
    try:
        gpus = _ready(ray, [*keeper, *others])
        host = ray.util.get_node_ip_address()
        store = TCPStore(host, 0, count, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        for rank, actor in enumerate(others, 1):
            actor.serve.remote(host, store.port, Share(rank, count))
        join(_ordinal(gpus[0]) if keeper else 0, _DEATH, Share(0, count), store)
        with cluster.taking(each, actors):
            try:
                yield
            finally:
                leave()
    finally:
        for actor in [*keeper, *others]:
            ray.kill(actor)


def _ready(ray: Any, actors: list[Any]) -> list[list[str]]:
    """The GPUs of actors, once all are there."""
    errors = importlib.import_module("ray.exceptions")
    try:
        found: list[list[str]] = ray.get([actor.gpus.remote() for actor in actors], timeout=_START_SECONDS)
    except errors.GetTimeoutError:
        raise UserError(
            f"the Ray cluster has had no room for {len(actors)} trainers for {_START_SECONDS:g} s: wait for others to "
            "end, or lower --trainers"
        ) from None
    except errors.RayError as error:
        raise JobError(f"a Ray trainer cannot be started ({cluster.first_line(error)}): see `ray logs`") from None
    return found


def _beside(ray: Any, each: dict[str, float]) -> Any:
    """An actor on this machine: it does nothing, and keeps a GPU of Ray's for this process."""
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Trainer).options(**{**each, "num_cpus": 0}, max_restarts=0, scheduling_strategy=here).remote()


def _ordinal(names: list[str]) -> int:
    """Which of the GPUs that this process sees a name of Ray's stands for."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        return int(names[0])
    if names[0] not in seen.split(","):
        raise UserError(
            f"Ray has GPU {names[0]} for this process, which sees {seen}: start Ray and this command under the same "
            "CUDA_VISIBLE_DEVICES"
        )
    return seen.split(",").index(names[0])
