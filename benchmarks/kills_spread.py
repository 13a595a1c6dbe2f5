"""Runs of several processes, under torchrun or on Ray, of which one is killed again and again: the part of `kills.py`.

A process is of a kind: what started them, the one that leads, one that trains, samples or grades. A run outlives the
death of a sampler or a grader. After any other it has to end by itself, with everything that it started, and the same
command goes on.
"""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kill_moments import Moment, moments_of

MARK = "SCORE_KILLS"
START = "start"
# Kinds whose death a run outlives.
REPLACED = ("sampler", "grader", "process of the own grader")
ENDS_SECONDS = 120.0
# Of Ray's own processes these two end by themselves a minute after their cluster, and are in nobody's way.
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_TOLD = str(Path(__file__).with_name("told.py"))
# A function of a user's own, graded in other processes, that says what the built-in grader says.
REWARD = """
from score_cli.tasks.latex_boxes import last_boxed
from score_cli.verification.number import same_number

def grade(problem, response):
    answer = last_boxed(response)
    return answer is not None and same_number(answer, problem["answer"])
"""


@dataclass(frozen=True)
class Spread:
    """A way to run in several processes.

    Attributes:
        before: the command line up to the script.
        options: of `score run`.
        kinds: words that the command line of each kind of process holds, and its environment.
    """

    name: str
    before: list[str]
    options: list[str]
    kinds: Mapping[str, tuple[str, str]]


def torchrun(count: int) -> Spread:
    """A run in so many processes of torchrun."""
    return Spread(
        "torchrun",
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)],
        [],
        {
            "torchrun itself": ("torch.distributed.run", ""),
            "the process that leads": (_TOLD, "\0RANK=0\0"),
            "another that trains": (_TOLD, "\0RANK=1\0"),
            "process of the own grader": ("score_cli.verification.forkserver", ""),
        },
    )


def on_ray(address: str) -> Spread:
    """A run on a Ray cluster: two processes that train, one that samples, two that grade."""
    counts = ["sample.ray_samplers=1", "eval.ray_samplers=1", "verify.ray_graders=2"]
    return Spread(
        "ray",
        [sys.executable],
        ["--ray", address, "--trainers", "2", *(part for count in counts for part in ("--set", count))],
        {
            "the process that leads": (_TOLD, ""),
            "another that trains": ("ray::Trainer", ""),
            "sampler": ("ray::SamplingActor", ""),
            "grader": ("ray::GradingActor", ""),
        },
    )


class Started:
    """A run in several processes, and what it has said of where it is."""

    def __init__(self, spread: Spread, arguments: list[str], folder: Path, stage1: int) -> None:
        """Args:
        folder: for what it says.
        """
        self._kinds = spread.kinds
        self.mark = secrets.token_hex(8)
        self.said, self.log = folder / f"{spread.name}.said", folder / f"{spread.name}.log"
        self._places = folder / f"{spread.name}.places"
        self._places.write_text("")
        told = [_TOLD, str(self._places), str(self.log), str(stage1)]
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        self.began = time.monotonic()
        with self.said.open("w") as output:
            self.process = subprocess.Popen(
                [*spread.before, *told, *arguments, *spread.options], env=environment, stdout=output, stderr=output
            )

    @property
    def place(self) -> str:
        """Where it was when it last said so."""
        lines = self._places.read_text().split("\n")[:-1]
        return lines[-1] if lines else START

    def wait_for(self, moment: Moment, order: Mapping[str, int]) -> int | None:
        """Wait until it is at a part of its work, or past it; its exit code, if it ends before."""
        while order.get(self.place, -1) < order.get(moment.place, -1):
            if (code := self.process.poll()) is not None:
                return code
            time.sleep(0.01)
        return None

    def kill_one(self, kind: str, draw: random.Random) -> int | None:
        """Kill a process of a kind, once there is one; the exit code, if the run ends before."""
        while True:
            found = self.processes(kind)
            if found:
                os.kill(draw.choice(found), signal.SIGKILL)
                return None
            if (code := self.process.poll()) is not None:
                return code
            time.sleep(0.05)

    def processes(self, kind: str | None = None) -> list[int]:
        """The processes of a kind, or all but Ray's agents, that still run: our mark is in their environment."""
        found = []
        words, variable = ("", "") if kind is None else self._kinds[kind]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().decode(errors="replace")
                if f"{MARK}={self.mark}" not in environment or variable not in environment:
                    continue
                line = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if kind == "the process that leads" and "torch.distributed.run" in line:
                    continue
                if words in line and not line.startswith(LINGERING):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def wait_for_end(self) -> tuple[float, int]:
        """Wait until every process is gone; the seconds that took, and how many had to be killed here."""
        began = time.monotonic()
        while (left := self.processes()) and time.monotonic() < began + ENDS_SECONDS:
            self.process.poll()  # so that it is none of them
            time.sleep(0.1)
        for each in left:
            os.kill(each, signal.SIGKILL)
        self.process.wait()
        return time.monotonic() - began, len(left)


@dataclass
class Killed:
    """What became of the kills of a run: by part and kind, and what a run took to end after each of a kind."""

    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)


def whole_run(spread: Spread, arguments: list[str], folder: Path, stage1: int) -> list[Moment]:
    """A run that nobody disturbs; the parts of its work."""
    started = Started(spread, arguments, folder, stage1)
    while started.place == START and started.process.poll() is None:
        time.sleep(0.01)
    first = time.monotonic() - started.began
    if started.process.wait():
        raise SystemExit(f"a run failed by itself: {started.said.read_text()}")
    started.wait_for_end()
    moments = moments_of(started.log)
    started.log.unlink()
    return [Moment(START, first), *moments]


def plan(moments: list[Moment], kinds: list[str], kills: int, draw: random.Random) -> list[tuple[Moment, str]]:
    """Moments in the order of the run, as many of each part as of any other, and who is killed: each kind as often."""
    parts: dict[str, list[int]] = {}
    for number, moment in enumerate(moments):
        parts.setdefault(moment.part, []).append(number)
    names = draw.sample(list(parts), len(parts)) * (kills // len(parts) + 1)
    chosen = sorted(draw.choice(parts[name]) for name in names[:kills])
    who = (kinds * (kills // len(kinds) + 1))[:kills]
    draw.shuffle(who)
    return [(moments[number], kind) for number, kind in zip(chosen, who, strict=True)]


def killed_run(
    spread: Spread, arguments: list[str], folder: Path, stage1: int, moments: list[Moment], kills: int, seed: int
) -> Killed:
    """A run of which a process is killed so many times, and which comes to its end."""
    draw, found = random.Random(seed), Killed()
    order = {moment.place: number for number, moment in reversed(list(enumerate(moments))) if moment.place != START}
    seconds = {moment.place: moment.seconds for moment in moments}
    started: Started | None = None
    for number, (moment, kind) in enumerate(plan(moments, list(spread.kinds), kills, draw)):
        started = started or Started(spread, arguments, folder, stage1)
        code = started.wait_for(moment, order)
        if code is None:
            time.sleep(draw.uniform(0, seconds.get(started.place, 0)))
            code = started.kill_one(kind, draw)
        if code is not None:
            check_ended(started, code)
            break
        part = Moment(started.place, 0).part
        found.places[part, kind] += 1
        print(f"  kill {number + 1}: {kind}, in {part} (asked for: {moment.place})", flush=True)
        if kind not in REPLACED:
            end(started, kind, found)
            started = None
    if started is not None and (code := started.process.wait()):
        check_ended(started, code)
    while not (started and started.process.returncode == 0):
        started = Started(spread, arguments, folder, stage1)
        check_ended(started, started.process.wait())
    started.wait_for_end()
    return found


def end(started: Started, kind: str, found: Killed) -> None:
    """See a run end of which a process was killed that none can replace."""
    took, left = started.wait_for_end()
    found.seconds.setdefault(kind, []).append(took)
    found.left[kind] += left
    lines = [line for line in started.said.read_text().splitlines() if line.startswith("score: ")]
    found.said[lines[-1] if lines else "nothing"] += 1
    print(f"    ended {took:.1f} s later, {left} processes left; said: {lines[-1] if lines else 'nothing'}", flush=True)


def check_ended(started: Started, code: int) -> None:
    """See that a run that nobody was about to kill came to its end."""
    if code:
        raise SystemExit(f"a run failed by itself ({code}): {started.said.read_text()}")
