"""The processes of one command, started by `torchrun` or on Ray: the first leads, and the others do what it does.

The first process runs the command as if it were alone. What needs all of them it says as a message, an object's name, a
verb and arguments, and every process then calls that verb of its own object of that name. So one process reads and
writes files, and all enter each collective operation in the same order.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from score_cli.errors import EXIT_JOB_FAILED, JobError, UserError

Item = TypeVar("Item")

# While the first process samples or grades, the others wait for its word.
PATIENCE = timedelta(days=30)
# What torchrun tells its processes; their own children are none of them.
_TOLD = ("RANK", "WORLD_SIZE", "GROUP_", "LOCAL_", "ROLE_", "MASTER_", "TORCHELASTIC_")


class Share(NamedTuple):
    """Which part of the work that lies alike in every process is this one's."""

    rank: int = 0
    size: int = 1

    def own(self, items: Iterable[Item]) -> Iterator[Item | None]:
        """Every `size`-th item, from number `rank` on; and None at the end where others have one more.

        So all processes go round equally often, as operations that they enter together need it.
        """
        number = -1
        for number, item in enumerate(items):
            if number % self.size == self.rank:
                yield item
        left = (number + 1) % self.size
        if left and self.rank >= left:
            yield None

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


ALONE = Share()


@dataclass
class Team:
    """The processes of one command, as one of them sees them.

    Attributes:
        death: where one finds how another process ended, in words.
        parts: objects that every process has one of, by name.
        busy: a verb has begun here and not ended, so that the others may be within it.
    """

    share: Share
    channel: Any
    death: str
    parts: dict[str, Any] = field(default_factory=dict)
    busy: bool = False

    def make(self, name: str, kind: Callable[..., Any], *arguments: Any) -> Any:
        """Let every process make an object by calling `kind`, in place of the one of that name; gives our own."""
        return self._together(("make", name, kind, arguments), arguments)

    def call(self, name: str, verb: str, *arguments: Any, own: tuple[Any, ...] | None = None) -> Any:
        """Let every process call a method of the object of a name; gives what our own returns.

        Args:
            own: arguments of this process in place of those for the others.
        """
        return self._together(("call", name, verb, arguments), arguments if own is None else own)

    def end(self) -> None:
        """Let the others go, unless they are in the middle of something: they then see that this process is gone."""
        if not self.busy:
            self._send(("end", "", "", ()))
            dist.destroy_process_group()

    def serve(self) -> None:
        """Do what the first process says until it says to end.

        An error that a user can cause is the first process's to tell: it meets the same.
        """
        while True:
            message: list[Any] = [None]
            dist.broadcast_object_list(message, src=0, group=self.channel)
            if message[0][0] == "end":
                dist.destroy_process_group()
                return
            try:
                self._do(*message[0])
            except (UserError, JobError):
                continue

    def _together(self, message: tuple[Any, ...], own: tuple[Any, ...]) -> Any:
        self.busy = True
        try:
            self._send(message)
            found = self._do(message[0], message[1], message[2], own)
        except (UserError, JobError):
            self.busy = False  # all of them have met it
            raise
        except RuntimeError as error:
            if not lost(error):
                raise
            raise JobError(
                f"another process of this command has ended: {self.death}; run the command again to go on"
            ) from None
        self.busy = False
        return found

    def _send(self, message: tuple[Any, ...]) -> None:
        dist.broadcast_object_list([message], src=0, group=self.channel)

    def _do(self, act: str, name: str, verb: Any, arguments: tuple[Any, ...]) -> Any:
        if act == "make":
            self.parts.pop(name, None)  # before there is another
            self.parts[name] = verb(*arguments)
            return self.parts[name]
        return getattr(self.parts[name], verb)(*arguments)


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is not there any more."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL"))


_team: list[Team] = []


def team() -> Team | None:
    """The processes that this command runs in; None where it is one."""
    return _team[0] if _team else None


def resting_device(device: str) -> str:
    """Where a policy is held whole that is trained on a device: beside its shards it would take the room of all."""
    return device if team() is None else "cpu"


def take_part(command: Callable[[], int]) -> int:
    """Run a command in the first process of `torchrun`, and serve it in the others; returns the exit code.

    Ctrl-C and a scheduler's SIGTERM reach every process. The first decides what becomes of them: it may finish its
    update first, and needs the others for that.
    """
    here = join_torchrun()
    if here.share.rank == 0:
        try:
            return command()
        finally:
            here.end()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return follow(here)


def follow(here: Team) -> int:
    """Serve the first process until it lets this one go, or is gone itself; returns the exit code."""
    try:
        here.serve()
    except RuntimeError as error:
        if not lost(error):
            raise
        return EXIT_JOB_FAILED  # torchrun, or the first process, says who has ended
    return 0


def join_torchrun() -> Team:
    """Take this process's place among those of `torchrun`.

    Raises:
        UserError: it has no GPU of its own, where there are some.
        JobError: the others do not come.
    """
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available() and local >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs here, and process {local} of this machine needs one of "
            "its own: lower --nproc-per-node, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )
    found = join(local, "torchrun says below how")
    for name in [name for name in os.environ if name.startswith(_TOLD)]:
        del os.environ[name]
    return found


def join(gpu: int, death: str, share: Share | None = None, store: Any = None) -> Team:
    """Take this process's place among those of one command.

    Args:
        gpu: which of the GPUs that this process sees is its own, where there are some.
        death: see `Team`.
        share, store: its place, and where the processes find each other; as torchrun's variables say if left out.
    Raises:
        JobError: the others do not come.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(gpu)
        torch.cuda.init()  # so that nothing chooses another by the rank
    place: dict[str, Any] = {} if share is None else {"rank": share.rank, "world_size": share.size, "store": store}
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE, **place)
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the processes of this command did not find each other ({error})") from None
    # Messages go over the CPU's network, whatever the models are on.
    channel = dist.new_group(backend="gloo", timeout=PATIENCE)
    found = Team(Share(dist.get_rank(), dist.get_world_size()), channel, death)
    _team[:] = [found]
    return found


def leave() -> None:
    """Let the others go, and be alone from now on."""
    _team.pop().end()
