"""Commands run side by side, each in a process of its own, in the order that their needs allow."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from score_cli.errors import JobError, NoRoomError, UserError
from score_cli.progress import SILENT, Progress

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_STOP = 30.0


class Job(NamedTuple):
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
    arguments: Callable[[], Sequence[object]]


def run_jobs(jobs: Sequence[Job], *, workers: int, inherited: Sequence[int] = (), progress: Progress = SILENT) -> None:
    """Run the jobs that are not done, at most `workers` at a time, earlier ones first.

    Args:
        inherited: file descriptors that the children keep open.
    Raises:
        UserError, JobError: a job failed, with its exit code where that says more; the others are stopped.
    """
    done = {job.name for job in jobs if job.output.exists()}
    waiting = [job for job in jobs if job.name not in done]
    if done:
        progress.line(f"study: {len(done)} of {len(jobs)} parts are there from before")
    with progress.phase("study", len(waiting)) as task, _children() as running:
        while waiting or running:
            for job in [job for job in waiting if done.issuperset(job.needs)][: workers - len(running)]:
                waiting.remove(job)
                errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
                running[_start(job, errors, inherited)] = (job, errors)
            assert running, f"jobs that wait for one another: {[job.name for job in waiting]}"
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for child in [child for child in running if child.poll() is not None]:
                job, errors = running.pop(child)
                with errors:
                    _check(job.name, child.returncode, errors)
                done.add(job.name)
                task.advance(1, job.name)


def _start(job: Job, errors: IO[bytes], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this process alone, which then stops each child once.
    return subprocess.Popen(
        [sys.executable, "-m", "score_cli", *map(str, job.arguments())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
        pass_fds=tuple(inherited),
    )


def _check(name: str, code: int, errors: IO[bytes]) -> None:
    if code:
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
        message = f"{name}: {lines[-1].removeprefix('score: ')}"
        raise next((kind for kind in (UserError, NoRoomError) if kind.exit_code == code), JobError)(message)


@contextmanager
def _children() -> Iterator[dict[subprocess.Popen[bytes], tuple[Job, IO[bytes]]]]:
    """The processes at work; those still there in the end are interrupted as by Ctrl-C and waited for."""
    running: dict[subprocess.Popen[bytes], tuple[Job, IO[bytes]]] = {}
    try:
        yield running
    finally:
        for child in running:
            child.send_signal(signal.SIGINT)
        for child in running:
            try:
                child.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
