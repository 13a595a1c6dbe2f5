"""A changed policy to all vLLM engines of a Ray cluster at once, by vLLM's weight transfer: NCCL on GPUs, gloo else.

A process of ours, the sender, and the workers of every engine form a group, once. The sender reads the weights out of
this process's memory and broadcasts them. It is a process of its own because NCCL waits for ever for a peer that is
gone, and only the end of the process ends that: whoever does not answer in time is killed, and nobody waits for it.

Nothing is taken on trust. Each worker says the digest of every weight that it was given, and of what it holds then.
"""

import importlib
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from score_cli.errors import JobError, UserError
from score_cli.sampling.vllm_engine import failures
from score_cli.sampling.vllm_weights import (
    Place,
    Taken,
    check_same,
    difference,
    held_difference,
    sampler_weights,
    shared_weights,
    tensor_digest,
)
from score_cli.tables import cluster
from score_cli.tables.checkpoints import Policy

BROADCAST = "broadcast"
# For an actor to say whether it takes part; one that is just being started does not.
SEAT_SECONDS = 60.0
# For all to find each other, the import of vLLM by the sender included.
MEET_SECONDS = 300.0
SEND_SECONDS = 600.0
# After one has failed, for the loss of another to show that was the reason.
GRACE_SECONDS = 10.0
# Bytes that are sent at a time over NCCL; each process holds two such buffers.
PACKED_BYTES = 2**28


class Sender(cluster.Actor):
    """The process that weights are sent from, on the machine of the one that has them."""

    def __init__(self, gpu: str | None) -> None:
        """Args:
        gpu: to send from; None sends from the CPU.
        """
        self._cuda = gpu is not None
        if gpu is not None:
            # Ray shows no GPU to an actor that asks for none.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        self._sending: Any = None

    def place(self) -> tuple[str, int]:
        """Where to meet: this machine's address, and a port that is free."""
        with socket.socket() as free:
            free.bind(("", 0))
            return importlib.import_module("ray").util.get_node_ip_address(), free.getsockname()[1]

    def meet(self, meeting: Mapping[str, Any]) -> None:
        """Meet the workers."""
        with failures("gather the processes that weights are sent among"):
            from score_cli.sampling.vllm_transfer import Sending

            self._sending = Sending(meeting, cuda=self._cuda)

    def send(self, path: Path, places: Sequence[Place]) -> None:
        """Send weights that lie in shared memory."""
        with failures("send the new policy's weights"):
            self._sending.send(path, places)


class _LostError(Exception):
    """Somebody has died, or does not answer."""


class Broadcast:
    """Sends policies to the actors that hold an engine, each to all at once."""

    def __init__(self, *, workers: int, cuda: bool) -> None:
        """Args:
        workers: of each engine.
        """
        self._ray = importlib.import_module("ray")
        self._workers = workers
        self._cuda = cuda
        self._sender: Any = None
        # The group there is, "" for none, and how many actors are in it.
        self._group = ""
        self._members = 0

    def send(self, actors: Sequence[Any], policy: Policy) -> str:
        """Send a policy to those that hold an engine, and see that each of their workers has it.

        Returns:
            A name of what was sent, by which they know it. "" if there is no engine yet, or if one was lost on the way:
            those that had not answered are then started anew, and hold nothing.
        Raises:
            UserError: a sampler has the GPU that trains.
            JobError: what a worker has is not what was sent; vLLM failed; or they did not find each other.
        """
        seats = self._seats(actors)
        if not seats:
            return ""
        members, sent, proved = list(seats), secrets.token_hex(8), ""
        try:
            if not self._group or len(members) != self._members or set(seats.values()) != {self._group}:
                self._gather(members)
            workers = self._give(members, policy, sent)
            check_same([held_difference(policy.model, held) for held in _distinct(workers)])
            proved = sent
        except _LostError:
            pass
        finally:
            if not proved:
                self.close()  # somebody may be in the middle of something
        return proved

    def close(self) -> None:
        """End the group."""
        if self._sender is not None:
            self._ray.kill(self._sender)
        self._sender, self._group = None, ""

    def _seats(self, actors: Sequence[Any]) -> dict[Any, str]:
        """The actors that hold an engine, with the group that each is in.

        Raises:
            JobError, UserError: as an actor raised it.
        """
        asked = {actor.work.options(max_task_retries=0).remote(0, "seat"): actor for actor in actors}
        if not asked:
            return {}
        answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=SEAT_SECONDS)
        own = _gpu_id() if self._cuda else None
        seats = {}
        for each in answered:
            for group, gpus in cluster.present([each]):
                if own is not None and own in gpus:
                    raise UserError(
                        "ray_weights is broadcast, and a sampler has the GPU that trains, where NCCL does not send: "
                        "use --trainers, start Ray under a CUDA_VISIBLE_DEVICES without that GPU, or use "
                        "--ray-weights store"
                    )
                if group is not None:
                    seats[asked[each]] = group
        return seats

    def _gather(self, members: Sequence[Any]) -> None:
        """Make a group of a new sender and the workers of all members.

        Raises:
            _LostError: a member is lost.
            JobError: they did not find each other.
        """
        self.close()
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        here = strategies.NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        remote = self._ray.remote(Sender).options(num_cpus=0, max_restarts=0, scheduling_strategy=here)
        self._sender = remote.remote(_gpu() if self._cuda else None)
        group, began = secrets.token_hex(8), time.monotonic()
        try:
            self._meet(members, group)
        except _LostError:
            if time.monotonic() - began < MEET_SECONDS:
                raise
            raise JobError(
                f"the samplers and the trainer's machine did not find each other within {MEET_SECONDS:g} s: open the "
                "ports between their machines, or use --ray-weights store"
            ) from None
        self._group, self._members = group, len(members)

    def _meet(self, members: Sequence[Any], group: str) -> None:
        sender = self._sender
        [(host, port)] = self._together({sender.work.remote(0, "place"): sender}, MEET_SECONDS)
        meeting = {
            "master_address": host,
            "master_port": port,
            "world_size": 1 + self._workers * len(members),
            "packed": True,
            "packed_buffer_size_bytes": PACKED_BYTES,
        }
        asked = {sender.work.remote(0, "meet", meeting): sender}
        for number, actor in enumerate(members):
            seat = meeting | {"rank_offset": 1 + self._workers * number}
            asked[actor.work.options(max_task_retries=0).remote(0, "join", group, seat)] = actor
        self._together(asked, MEET_SECONDS)

    def _give(self, members: Sequence[Any], policy: Policy, sent: str) -> list[Taken]:
        """Send the weights; what every worker of every member says of them, once it was given all that was sent.

        Raises:
            _LostError: a member or the sender is lost.
            JobError: a worker was given something else.
        """
        weights = sampler_weights(policy.model, torch.bfloat16 if self._cuda else torch.float32)
        expected = {name: tensor_digest(weight) for name, weight in weights.items()}
        coming = {
            "names": list(weights),
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in weights.values()],
            "shapes": [list(weight.shape) for weight in weights.values()],
        }
        with shared_weights(weights) as (path, places):
            asked = {self._sender.work.remote(0, "send", path, places): self._sender}
            for actor in members:
                asked[actor.work.options(max_task_retries=0).remote(0, "receive", sent, coming)] = actor
            _, *answers = self._together(asked, SEND_SECONDS)
        workers = [[Taken(*worker) for worker in answer] for answer in answers]
        for each in workers:
            check_same([difference(expected, worker.digests) for worker in each])
        return [worker for each in workers for worker in each]

    def _together(self, asked: Mapping[Any, Any], seconds: float) -> list[Any]:
        """What actors answer that work on one thing, in the order of the questions.

        Args:
            asked: the tasks, with the actor of each.
        Raises:
            _LostError: an actor has died, or has not answered in time; those without an answer are ended, since they
                may wait for ever for the one that is lost.
            JobError: as an actor raised it.
        """
        errors = importlib.import_module("ray.exceptions")
        waiting, answers, failed = list(asked), {}, None
        until = time.monotonic() + seconds
        lost = False
        while waiting and not lost and (left := until - time.monotonic()) > 0:
            done, waiting = self._ray.wait(waiting, timeout=left)
            for each in done:
                try:
                    _, answers[each] = self._ray.get(each)
                except errors.RayTaskError:
                    raise  # a fault of the code, and no loss
                except errors.RayError:
                    lost = True
                    continue
                if isinstance(answers[each], Exception) and failed is None:
                    failed, until = answers[each], min(until, time.monotonic() + GRACE_SECONDS)
        if failed is not None and not lost:
            raise failed
        if waiting or lost:
            for each in waiting:
                self._ray.kill(asked[each], no_restart=False)
            raise _LostError
        return [answers[each] for each in asked]


def _distinct(workers: Sequence[Taken]) -> list[Any]:
    """What workers hold, once where several hold the same."""
    return list({repr(sorted(worker.held.items())): worker.held for worker in workers}.values())


def _gpu() -> str:
    """The GPU that trains, as CUDA_VISIBLE_DEVICES names it."""
    number = torch.cuda.current_device()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(number) if seen is None else seen.split(",")[number]


def _gpu_id() -> str:
    """The GPU that trains, by a name that no other has."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
