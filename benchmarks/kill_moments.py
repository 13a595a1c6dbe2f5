"""A run in a child process that writes down what it is doing, so that its parent can kill it there.

The child is forked from a process that has imported everything: a start costs no time. It says
through a pipe which part of the work begins: functions of the package are wrapped here, and nothing of it is in there.
"""

import functools
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from score_cli import cli, loop, run
from score_cli.run_best import BestPolicy
from score_cli.run_folder import RunFolder
from score_cli.run_phases import RunPhases
from score_cli.sampling.sampler import Sampler
from score_cli.tables.updates import Updates
from score_cli.training.trainer import Trainer
from score_cli.verification.grader import Grader

# Parts of the run, and of no update.
WHOLE = ("base", "join", "evaluation")
WAIT_SECONDS = 900


class Moment(NamedTuple):
    """A part of the work, in one update of a phase; and the seconds that it took when nobody disturbed it."""

    place: str  # stage1 sample 3
    seconds: float

    @property
    def part(self) -> str:
        """Without the update's number."""
        return " ".join(word for word in self.place.split() if not word.isdigit())


class Child:
    """A run in a forked process, and the pipe through which it says where it is."""

    def __init__(self, arguments: list[str], said: Path, log: Path, stage1: int) -> None:
        """Args:
        said: file for what it prints; log: for what each part took.
        stage1: updates of Stage I.
        """
        self._places, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            os.set_blocking(self._places, False)
            self._heard = ""
            self._code: int | None = None
            return
        code = 70
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            tell(write, log, stage1)
            code = cli.run_command(arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        code = self._code
        while code is None:
            self._listen(0.2)
            code = self._ended()
        os.close(self._places)
        return code

    def kill_at(
        self, moment: Moment, order: Mapping[str, int], seconds: Mapping[str, float], draw: random.Random
    ) -> str | int:
        """Kill it at a random time within a part of its work, or within the first that it comes to after that.

        Returns:
            Where it was; its exit code, if it ended before.
        """
        if (code := self.come_to(moment, order)) is not None:
            return code
        time.sleep(draw.uniform(0, seconds.get(self.place, 0)))
        os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._listen(0)
        os.close(self._places)
        return self.place if code == -signal.SIGKILL else code

    def come_to(self, moment: Moment, order: Mapping[str, int]) -> int | None:
        """Wait until it is at a part of its work, or past it; its exit code, if it ends before."""
        deadline = time.monotonic() + WAIT_SECONDS
        while order.get(self.place, -1) < order[moment.place] and time.monotonic() < deadline:
            self._listen(0.2)
            if (code := self._ended()) is not None:
                self._code = code
                return code
        return None

    @property
    def place(self) -> str:
        """Where it was when it last said so."""
        lines = self._heard.split("\n")[:-1]
        return lines[-1] if lines else "start"

    def _listen(self, seconds: float) -> None:
        ready, _, _ = select.select([self._places], [], [], seconds)
        while ready:
            try:
                found = os.read(self._places, 65536)
            except BlockingIOError:
                return
            if not found:
                return
            self._heard += found.decode()

    def _ended(self) -> int | None:
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None


def tell(pipe: int, log: Path, stage1: int) -> None:
    """Wrap the parts of the work: each says through a pipe or file that it begins, and into a log what it took."""
    state = {"update": -1, "depth": 0}
    stream = log.open("a", buffering=1)

    def write(place: str) -> None:
        os.write(pipe, f"{place}\n".encode())

    def wrap(owner: Any, name: str, part: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(real)
        def told(*arguments: Any, **named: Any) -> Any:
            if name == "plan_iteration":
                state["update"] = arguments[2]
            if state["depth"] or not part:
                return real(*arguments, **named)
            update = state["update"]
            place = part if part in WHOLE else f"stage{1 if update < stage1 else 2} {part} {update}"
            state["depth"] += 1
            began = time.perf_counter()
            write(place)
            try:
                result = real(*arguments, **named)
            finally:
                state["depth"] -= 1
                write(f"after {place}")
            if result is not False and not (part == "validate" and result is None):
                stream.write(f"{place}\t{time.perf_counter() - began}\n")
            return result

        setattr(owner, name, told)

    wrap(Sampler, "plan_iteration", "")
    wrap(run, "build_base", "base")
    wrap(Sampler, "run", "sample")
    wrap(Grader, "grade", "verify")
    wrap(RunPhases, "write_update", "write")
    for verb in ("prepare", "forward_backward", "optim_step"):
        wrap(Trainer, verb, "train")
    wrap(loop, "check_logprobs_match", "refresh")
    wrap(BestPolicy, "consider", "validate")
    wrap(Trainer, "save", "save")
    wrap(RunFolder, "drop_kept", "drop")
    wrap(Updates, "compact", "compact")
    wrap(RunFolder, "join_train_metrics", "join")
    wrap(run, "evaluate_policies", "evaluation")


def moments_of(log: Path) -> list[Moment]:
    """What a child wrote down, in order."""
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    return [Moment(place, float(seconds)) for place, seconds in lines]
