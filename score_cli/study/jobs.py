"""Commands run side by side, each in a process of its own, in the order that their needs allow."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from score_cli.errors import EXIT_BAD_INPUT, JobError, UserError
from score_cli.progress import SILENT, Progress

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_STOP = 30.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One `score` command.

    Attributes:
        name: of the job, such as `star, seed 1`; unique, and what a failure is reported under.
        output: the file whose existence says that the job is done.
        needs: names of jobs that must be done before.
        arguments: makes the command line, once what it needs is there.
    """

    name: str
    output: Path
    needs: Sequence[str]
    arguments: Callable[[], Sequence[str]]


@contextmanager
def holding_folder(folder: Path) -> Iterator[int]:
    """Hold a folder for this process and its children; yields the descriptor that children must inherit.

    The kernel lets go when the last of them has ended, so children that outlive a killed study keep a second one out.

    Raises:
        UserError: processes of another study are at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another study is at work there: wait until it has ended") from None
        yield descriptor
    finally:
        os.close(descriptor)


def run_jobs(jobs: Sequence[Job], *, workers: int, inherited: Sequence[int] = (), progress: Progress = SILENT) -> None:
    """Run the jobs that are not done, at most `workers` at a time, earlier ones first.

    Args:
        inherited: file descriptors that the children keep open.
    Raises:
        UserError, JobError: a job failed; the others are stopped.
    """
    done = {job.name for job in jobs if job.output.exists()}
    waiting = [job for job in jobs if job.name not in done]
    if done:
        progress.line(f"study: {len(done)} of {len(jobs)} parts are there from before")
    running: list[_Child] = []
    try:
        with progress.phase("study", len(waiting)) as task:
            while waiting or running:
                for job in [job for job in waiting if done.issuperset(job.needs)][: workers - len(running)]:
                    waiting.remove(job)
                    running.append(_Child(job, inherited))
                assert running, f"jobs that wait for one another: {[job.name for job in waiting]}"
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    child.check()
                    done.add(child.job.name)
                    task.advance(1, child.job.name)
    finally:
        _stop(running)


class _Child:
    """A job's process."""

    def __init__(self, job: Job, inherited: Sequence[int]) -> None:
        self.job = job
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        # A session of its own: Ctrl-C reaches this process alone, which then stops each child once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "score_cli", *job.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
            pass_fds=tuple(inherited),
        )

    def check(self) -> None:
        """Raises UserError or JobError where the ended process failed."""
        code = self.process.returncode
        if code == 0:
            self._errors.close()
            return
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
        message = f"{self.job.name}: {lines[-1].removeprefix('score: ')}"
        raise UserError(message) if code == EXIT_BAD_INPUT else JobError(message)


def _stop(children: Sequence[_Child]) -> None:
    """Interrupt children as Ctrl-C would, and wait until they are gone."""
    for child in children:
        child.process.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
