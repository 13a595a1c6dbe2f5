"""The hand-kept numbers of system calls, against the kernel headers they came from.

x86-64: arch/x86/entry/syscalls/syscall_64.tbl, installed as asm/unistd_64.h; aarch64: asm-generic/unistd.h.
Where a header is not installed, the numbers of that architecture are not looked at.
"""

import ctypes
import platform
import re
from pathlib import Path

import pytest

from score_cli.verification.programs import system_calls

X86_64 = [Path(f"/usr/include/{folder}asm/unistd_64.h") for folder in ("x86_64-linux-gnu/", "")]
GENERIC = [Path("/usr/include/asm-generic/unistd.h")]
HEADERS = {"x86_64": X86_64, "aarch64": GENERIC}


def numbers(headers: list[Path]) -> dict[str, int]:
    """The calls that the first header that is there defines."""
    header = next((path for path in headers if path.exists()), None)
    if header is None:
        pytest.skip(f"no {headers[0]} here")
    text = header.read_text()
    found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    # Both 32 and 64 bits share these numbers; 64 bits call them by the old names.
    wide = dict(re.findall(r"#define __NR_(\w+) __NR3264_(\w+)", text))
    return found | {name: found[shared] for name, shared in wide.items() if shared in found}


def listed(architecture: str) -> dict[str, int]:
    """Every call that the project names, with the number it has for it."""
    column = system_calls._ARCHITECTURES[architecture].column
    tables = system_calls._ALWAYS + system_calls._SCRATCH + system_calls._CHECKED
    filtered = system_calls._numbers(tables, column)
    made = system_calls._NUMBERS[architecture] | system_calls._COMMON
    assert {name: made[name] for name in made.keys() & filtered} == {
        name: filtered[name] for name in made.keys() & filtered
    }
    return filtered | made


@pytest.mark.parametrize("architecture", sorted(HEADERS))
def test_numbers_are_those_of_the_kernel_headers(architecture: str) -> None:
    headers = numbers(HEADERS[architecture])
    ours = listed(architecture)
    assert len(ours) > 100
    # A call newer than the installed header cannot be looked up there.
    newest = max(headers.values())
    unknown = {name for name, number in ours.items() if name not in headers and number <= newest}
    assert unknown == set()
    assert {name: number for name, number in ours.items() if headers.get(name, number) != number} == {}


@pytest.mark.parametrize("architecture", sorted(HEADERS))
def test_a_call_that_has_no_number_in_the_table_has_none_in_the_headers(architecture: str) -> None:
    headers = numbers(HEADERS[architecture])
    column = system_calls._ARCHITECTURES[architecture].column
    rows = [row.split(":") for row in (system_calls._ALWAYS + system_calls._SCRATCH + system_calls._CHECKED).split()]
    assert [row[0] for row in rows if row[column] == "-" and row[0] in headers] == []


@pytest.mark.skipif(platform.system() != "Linux", reason="system calls of Linux")
def test_a_call_by_number_reaches_the_kernel() -> None:
    # PR_SET_NAME and PR_GET_NAME, by linux/prctl.h.
    name = ctypes.create_string_buffer(16)
    before = ctypes.create_string_buffer(16)
    system_calls.call("prctl", 16, ctypes.addressof(before), 0, 0, 0)
    try:
        system_calls.call("prctl", 15, b"score-test", 0, 0, 0)
        system_calls.call("prctl", 16, ctypes.addressof(name), 0, 0, 0)
    finally:
        system_calls.call("prctl", 15, before.value, 0, 0, 0)
    assert name.value == b"score-test"


def test_a_call_that_is_not_listed_is_refused_before_the_kernel() -> None:
    with pytest.raises(OSError, match="getpid is not known on"):
        system_calls.call("getpid")
