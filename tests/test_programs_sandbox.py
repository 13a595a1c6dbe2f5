"""What a program cannot do, one property a test, at every level of isolation this machine has."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from score_cli.tables.schemas import CORRECT, CRASHED, INCORRECT, OUT_OF_MEMORY, TIMEOUT
from score_cli.verification.forkserver import ForkServerError
from score_cli.verification.programs import grader as grader_module
from score_cli.verification.programs import judge
from score_cli.verification.programs.grader import ProgramGrader, _verdict
from score_cli.verification.programs.isolation import LANDLOCK, LEVELS, NONE, Confinement, scratch_folder
from score_cli.verification.programs.worker import Ending, Limits, Worker, signal_of
from tests.processes import runs
from tests.programs_support import ADDITION, item, verdict

TIMEOUT_SECONDS = 2.5
SLEEPER = """
import threading, time
threading.Thread(target=time.sleep, args=(10**6,)).start()
def add(a, b): return a + b
"""


@pytest.fixture(scope="module", params=LEVELS)
def grader(request: pytest.FixtureRequest) -> Iterator[ProgramGrader]:
    try:
        Worker(request.param, Limits(1.0, 256)).close()
    except ForkServerError as error:
        pytest.skip(f"{request.param} is not available here: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grader_module, "LEVELS", (request.param,))
        found = ProgramGrader(timeout_seconds=TIMEOUT_SECONDS, memory_mb=256)
    yield found
    found.close()


def attempt(body: str) -> str:
    """A program that adds rightly only if its attempt at something forbidden succeeds."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    return f"def forbidden():\n{indented}\ndef add(a, b):\n    forbidden()\n    return a + b\n"


CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.{call} < 0: raise OSError(ctypes.get_errno())"


@pytest.mark.parametrize(
    "body",
    [
        "import os\nif os.fork() == 0: os._exit(0)",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(os.getppid(), 0)",
        "import os\nos.kill(-1, 0)",
        "import os\nos.kill(0, 0)",
        "import signal, os\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import socket\nleft, right = socket.socketpair(type=socket.SOCK_DGRAM)\nleft.sendto(b'x', '/dev/log')",
        "import resource, os\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "import os\nos.memfd_create('x')",
        "import os\nos.chroot('.')",
        "import os\nos.setuid(0)\nos.setgid(0)\nos.setgroups([0])",
        "import os\nos.nice(-5)",
        "import os\nos.listdir('/proc')",
        "open('/proc/self/mem', 'rb').read(1)",
        "open('/proc/1/environ', 'rb').read(1)",
        "open('/etc/passwd').read()",
        "import os\nos.listdir('/home')",
        "import os\nos.symlink('x', '/usr/lib/score-link')",
        "import os\nos.chmod(os.__file__, 0o777)",
        "import os\nos.utime(os.__file__)",
        "import os\nopen(os.__file__, 'a')",
        "import os\nos.truncate(os.__file__, 10)",
        CALL.format(call="prctl(1, 0, 0, 0, 0)"),
        CALL.format(call="ptrace(0, 0, 0, 0)"),
        CALL.format(call="unshare(0x10000000)"),
        CALL.format(call="unshare(0x00020000)"),
        CALL.format(call="mount(None, b'/', None, 32, None)"),
        CALL.format(call="umount2(b'/tmp', 2)"),
        CALL.format(call="syscall(425, 8, None)"),
        CALL.format(call="syscall(435, None, 0)"),
        CALL.format(call="process_vm_readv(1, None, 0, None, 0, 0)"),
    ],
    ids=lambda body: body.splitlines()[-1][-48:],
)
def test_a_confined_program_cannot(grader: ProgramGrader, body: str) -> None:
    assert verdict(grader, item(attempt(body))) == INCORRECT


def test_the_attempts_above_fail_for_what_they_try_not_for_how_they_are_written(grader: ProgramGrader) -> None:
    harmless = "import os\nos.getpid()\nopen(os.__file__).read(1)\nopen(os.devnull, 'w').write('x')"
    assert verdict(grader, item(attempt(harmless))) == CORRECT


def test_the_machine_cannot_be_reached_over_the_network(grader: ProgramGrader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"
        assert verdict(grader, item(attempt(body))) == INCORRECT


def test_a_file_of_the_command_cannot_be_read_written_or_removed(grader: ProgramGrader, tmp_path: Path) -> None:
    secret = tmp_path / "problems.jsonl"
    secret.write_text("tests")
    tmp_path.chmod(0o777)
    for body in (
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'w')",
        f"import os\nos.unlink({str(secret)!r})",
    ):
        assert verdict(grader, item(attempt(body))) == INCORRECT
    assert secret.read_text() == "tests"


def test_the_environment_of_the_command_is_not_visible(grader: ProgramGrader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_TEST_SECRET", "visible")
    assert verdict(grader, item(attempt("import os\nos.environ['SCORE_TEST_SECRET']"))) == INCORRECT


def test_the_tests_are_nowhere_in_the_memory_of_the_program(grader: ProgramGrader) -> None:
    # The word is put together here and there so that the program itself does not contain it.
    tests = "def check(candidate):\n    marker = 'xylophone' 'quartz'\n    assert candidate(1, 2) == 3 and marker\n"
    search = """
import ctypes, gc, sys
def hidden():
    needle = "".join(reversed("enohpolyx"))
    frame = sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            if needle in repr({k: v for k, v in space.items() if k not in ("needle", "space")}): return True
        frame = frame.f_back
    needle = needle.encode()
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)):
            for part in (thing.values() if isinstance(thing, dict) else thing):
                if isinstance(part, str) and len(part) > 20 and needle in part.encode("utf8", "ignore"): return True
    # What malloc handed out before: allocate around and look at what is left there.
    for size in (64, 256, 1024, 4096, 65536):
        for _ in range(200):
            block = ctypes.CDLL(None).malloc
            block.restype = ctypes.c_void_p
            at = block(size)
            if needle in ctypes.string_at(at, size): return True
    return False
def add(a, b):
    return a + b if hidden() else None
"""
    # Twice, so that the second program starts from a worker that has judged the first.
    first, second = grader.grade([item(search, tests=tests), item(search + "\n", tests=tests)])
    assert (first.verdict, second.verdict) == (INCORRECT, INCORRECT)


def test_an_earlier_program_is_not_in_the_memory_of_a_later_one(grader: ProgramGrader) -> None:
    earlier = "def add(a, b):\n    'marimba glockenspiel'\n    return a + b"
    later = """
import gc
def add(a, b):
    needle = "".join(reversed("abmiram")) + " "
    parts = (part for thing in gc.get_objects() for part in gc.get_referents(thing))
    found = any(isinstance(part, str) and len(part) > 9 and needle in part for part in parts)
    return a + b if found else None
"""
    assert [graded.verdict for graded in grader.grade([item(earlier), item(later)])] == [CORRECT, INCORRECT]


def test_only_the_conversation_is_open(grader: ProgramGrader) -> None:
    body = """import os
found = []
for number in range(3, 300):
    try: os.fstat(number); found.append(number)
    except OSError: pass
if found == [3]: raise OSError"""
    assert verdict(grader, item(attempt(body))) == INCORRECT


def test_a_scratch_folder_does_not_carry_files_to_the_next_program(grader: ProgramGrader) -> None:
    if grader.level == LANDLOCK:
        pytest.skip("without namespaces there is no scratch folder")
    writes = "open('left', 'w').write('x')\ndef add(a, b): return a + b"
    reads = attempt("open('left').read()")
    assert [graded.verdict for graded in grader.grade([item(writes), item(reads)])] == [CORRECT, INCORRECT]


def test_the_scratch_folder_does_not_cover_an_interpreter_that_lies_in_tmp() -> None:
    """Its modules would vanish, and right programs that import them would be judged wrong."""
    assert scratch_folder(["/lib", "/usr/lib", "/opt/tmp/python/lib"]) == "/tmp"
    assert scratch_folder(["/lib", "/tmp/python/lib", "/usr/lib"]) == "/scratch"


def test_the_scratch_folder_is_small(grader: ProgramGrader) -> None:
    body = "for n in range(40):\n    with open(f'f{n}', 'wb') as file: file.write(bytes(2**20))"
    assert verdict(grader, item(attempt(body))) == INCORRECT


def test_threads_are_allowed(grader: ProgramGrader) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def add(a, b):
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(int, (a, b)))
"""
    assert verdict(grader, item(code)) == CORRECT


def test_an_event_loop_is_allowed(grader: ProgramGrader) -> None:
    code = """
import asyncio
async def slow(a, b):
    await asyncio.sleep(0)
    return a + b
def add(a, b): return asyncio.run(slow(a, b))
"""
    assert verdict(grader, item(code)) == CORRECT


def test_modules_that_are_not_preloaded_can_be_imported(grader: ProgramGrader) -> None:
    code = "import hashlib, sqlite3, zoneinfo, xml.etree.ElementTree, unittest, email\ndef add(a, b): return a + b"
    assert verdict(grader, item(code)) == CORRECT


def test_memory_is_limited_for_one_object_and_for_many(grader: ProgramGrader) -> None:
    once = "def add(a, b):\n    x = bytearray(2**34)\n    return a + b"
    often = "def add(a, b):\n    x = []\n    while True: x.append(bytes(10**6))"
    assert [graded.verdict for graded in grader.grade([item(once), item(often)])] == [OUT_OF_MEMORY, OUT_OF_MEMORY]


def test_an_endless_program_ends_at_its_deadline_whatever_it_ignores(grader: ProgramGrader) -> None:
    code = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except Exception: pass
while True: pass
"""
    start = time.monotonic()
    assert verdict(grader, item(code)) == TIMEOUT
    assert time.monotonic() - start < TIMEOUT_SECONDS + 0.5


def test_a_stopped_program_ends_at_its_deadline(grader: ProgramGrader) -> None:
    assert (
        verdict(grader, item("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\ndef add(a, b): return 3"))
        == TIMEOUT
    )


def test_a_thread_that_never_ends_holds_nobody(grader: ProgramGrader) -> None:
    start = time.monotonic()
    assert verdict(grader, item(SLEEPER)) == CORRECT
    assert time.monotonic() - start < TIMEOUT_SECONDS


@pytest.mark.parametrize("signal_name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
def test_a_program_that_ends_by_a_signal_has_crashed(grader: ProgramGrader, signal_name: str) -> None:
    assert verdict(grader, item(f"import os, signal\nos.kill(os.getpid(), signal.{signal_name})")) == CRASHED


def test_the_pool_goes_on_after_every_kind_of_end(grader: ProgramGrader) -> None:
    bad = [
        "import os\nos._exit(0)",
        "while True: pass",
        "import ctypes\nctypes.string_at(0)",
        "raise SystemExit",
        "0/0",
    ]
    good = "def add(a, b): return a + b"
    graded = grader.grade([item(code) for code in [*bad, good]])
    assert graded[-1].verdict == CORRECT
    assert CORRECT not in [result.verdict for result in graded[:-1]]


def test_no_process_is_left_after_close() -> None:
    others = _descendants(os.getpid())
    found = ProgramGrader(timeout_seconds=TIMEOUT_SECONDS)
    found.grade([item(SLEEPER)])
    mine = set(_descendants(os.getpid())) - set(others)
    found.close()
    assert mine
    deadline = time.monotonic() + 2
    while (left := [process for process in mine if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_a_program_that_uses_its_processor_time_up_is_told_by_the_signal() -> None:
    """Threads outside of Python's lock may burn more seconds than the clock shows; the verdict is then a timeout."""
    own = os.getpid()
    child = os.fork()
    if not child:
        Confinement(level=NONE, memory_mb=4096, cpu_seconds=1, unlimited="another").confine(own, "")
        while True:
            pass
    _, status = os.waitpid(child, 0)
    assert signal_of(status) == signal.SIGXCPU
    assert _verdict(Ending(None, judge.GONE, status)) == TIMEOUT


def test_a_command_with_threads_can_grade() -> None:
    results: list[str] = []

    def grade() -> None:
        with_thread = ProgramGrader(timeout_seconds=TIMEOUT_SECONDS)
        results.append(verdict(with_thread, item("def add(a, b): return a + b", tests=ADDITION)))
        with_thread.close()

    threads = [threading.Thread(target=grade) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CORRECT, CORRECT]


def _descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    found = [int(child) for child in children if "forkserver" in Path(f"/proc/{child}/cmdline").read_text()]
    return [*found, *(below for child in found for below in _descendants(child))]
