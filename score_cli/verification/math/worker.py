"""The process that may hang: a warmed, single-threaded zygote and the workers it forks, one item at a time.

Started by `pool` as a clean interpreter, never forked from the main process, which may hold threads.
The zygote imports SymPy and math-verify once and then only forks, reaps and waits; a worker grades until its socket
closes. Neither sets an alarm or prints a parsed result: the parent holds the deadline and kills.
"""

import array
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys

from math_verify import parse, verify  # noqa: TID253 - nothing but a worker imports this module
from math_verify.parser import LatexExtractionConfig  # noqa: TID253

from score_cli.verification.math.compare import any_of, compare
from score_cli.verification.math.guards import may_ask_math_verify
from score_cli.verification.math.precise import PreciseJudge
from score_cli.verification.math.quick import pair_readings, readings
from score_cli.verification.math.shapes import Value
from score_cli.verification.math.tokens import canonical_characters, strip_wrapping

READY, CORRECT, INCORRECT, OUT_OF_MEMORY = b"ready", b"c", b"i", b"m"
MAX_MESSAGE = 1 << 17
_PR_SET_PDEATHSIG = 1
_PARENT_POLL_SECONDS = 1.0
# Decimals are compared to this many places; more than any answer has.
_ROUNDING = 14
_SOME_OTHER_ANSWER = r"\frac{123456789}{7}"
_WARM = (
    (r"\frac{1}{2}", "0.5"),
    (r"\int_0^1 x\,dx", r"\frac{1}{2}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("(1,2)", "[1,2)"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "x+1"),
    ("x<3", r"(-\infty,3)"),
)


def same_answer(answer: str, gold: str) -> bool:
    """Whether two answers are equal, with everything there is: digits first, then algebra where the guards allow it."""
    pairs = pair_readings(answer, gold)
    result = any_of(compare(left, right, PreciseJudge()) for left, right in pairs) if pairs else None
    if result is not None:
        return result
    if any(isinstance(left, Value) and isinstance(right, Value) for left, right in pairs):
        return False  # neither exact, nor within reach of digits: math-verify would round or hang
    return may_ask_math_verify(answer, gold) and _math_verify_agrees(answer, gold)


def _math_verify_agrees(answer: str, gold: str) -> bool:
    found, target = _parsed(answer), _parsed(gold)
    if not found or not target:
        return False
    return verify(target, found, float_rounding=_ROUNDING, numeric_precision=30, timeout_seconds=None) is True


def _parsed(text: str) -> list[object]:
    latex = canonical_characters(strip_wrapping(text))
    config = [LatexExtractionConfig()]
    return list(parse(f"${latex}$", config, fallback_mode="no_fallback", parsing_timeout=None))


def digest(gold: str) -> None:
    """Do with a gold answer alone all that comparing it would take: who hangs here is not the response."""
    for shape in readings(gold):
        compare(shape, shape, PreciseJudge())
    if may_ask_math_verify(gold, gold):
        _math_verify_agrees(_SOME_OTHER_ANSWER, gold)


def grade_forever(channel: socket.socket) -> None:
    """Answer one request after the other until the parent closes the channel."""
    while message := channel.recv(MAX_MESSAGE):
        request = json.loads(message)
        try:
            if request["answer"] is None:
                digest(request["gold"])
                verdict = CORRECT
            else:
                verdict = CORRECT if same_answer(request["answer"], request["gold"]) else INCORRECT
        except MemoryError:
            verdict = OUT_OF_MEMORY
        except Exception:
            # Whatever a library raises on this text, it has not shown the answers to be equal.
            verdict = INCORRECT
        channel.send(verdict)
        if verdict == OUT_OF_MEMORY:
            return


def run_zygote(control: socket.socket, memory_bytes: int) -> None:
    """Fork a worker for each socket received, reap the ones named, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(3000)
    parent = os.getppid()
    for answer, gold in _WARM:
        same_answer(answer, gold)
        _math_verify_agrees(answer, gold)
    gc.collect()
    gc.freeze()
    control.send(READY)
    while True:
        readable, _, _ = select.select([control], [], [], _PARENT_POLL_SECONDS)
        if os.getppid() != parent:
            return
        if not readable:
            continue
        message, ancillary, _, _ = control.recvmsg(64, socket.CMSG_SPACE(array.array("i").itemsize))
        if not message:
            return
        if message == b"fork":
            descriptors = array.array("i", ancillary[0][2])
            control.send(str(_fork_worker(control, descriptors[0], memory_bytes)).encode())
        else:
            control.send(str(os.waitpid(int(message), 0)[1]).encode())


def _fork_worker(control: socket.socket, descriptor: int, memory_bytes: int) -> int:
    zygote = os.getpid()
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == zygote:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            grade_forever(socket.socket(fileno=descriptor))
            status = 0
    finally:
        os._exit(status)


def main() -> None:
    """Entry point of the zygote: `argv` holds the control socket's descriptor and the workers' memory limit."""
    run_zygote(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
