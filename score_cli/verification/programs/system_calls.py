"""Linux system calls by their numbers: those that Python does not offer, and a filter of those a program may make.

What the filter does not list answers ENOSYS, as a kernel that lacks the call would: libraries know how to live with
that. A listed call with arguments that reach beyond the process (a signal to another, a new process) answers EPERM.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import NamedTuple

_NUMBERS = {
    "x86_64": dict(capset=126, mount=165, pivot_root=155, prctl=157, seccomp=317, umount2=166, unshare=272),  # noqa: C408
    "aarch64": dict(capset=91, mount=40, pivot_root=41, prctl=167, seccomp=277, umount2=39, unshare=97),  # noqa: C408
}
# These were added after the numbering of the architectures became one.
_COMMON = {
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "mount_setattr": 442,
}

_MACHINE_NUMBERS = _NUMBERS.get(platform.machine(), {}) | _COMMON
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call; integers, byte strings and null pointers may be passed.

    Raises:
        OSError: the call failed, or this machine has no such call.
    """
    if _libc is None or name not in _MACHINE_NUMBERS:
        raise OSError(errno.ENOSYS, f"{name} is not known on {sys.platform} {platform.machine()}")
    # A bare Python int would be passed as a C int, and an address cut to its lower half.
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(_MACHINE_NUMBERS[name]), *converted)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


# name:number on x86-64:number on aarch64, "-" where an architecture lacks the call.
_ALWAYS = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 close:3:57 close_range:436:436 lseek:8:62
stat:4:- lstat:6:- fstat:5:80 newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439
readlink:89:- readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 getdents:78:- getdents64:217:61 statfs:137:43
fstatfs:138:44 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 select:23:- pselect6:270:72 poll:7:- ppoll:271:73
epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19
timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 recvfrom:45:207 recvmsg:47:212 shutdown:48:210
getsockopt:55:209 setsockopt:54:208 getsockname:51:204 getpeername:52:205 mmap:9:222 munmap:11:215 mprotect:10:226
mremap:25:216 madvise:28:233 brk:12:214 msync:26:227 mincore:27:232 membarrier:324:283 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigsuspend:130:133
sigaltstack:131:132 restart_syscall:219:128 pause:34:- alarm:37:- setitimer:38:103 getitimer:36:102 futex:202:98
set_robust_list:273:99 set_tid_address:218:96 rseq:334:293 arch_prctl:158:- exit:60:93 exit_group:231:94
sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 nanosleep:35:101 clock_nanosleep:230:115
clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 getpid:39:172 gettid:186:178
getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158 getresuid:118:148
getresgid:120:150 getpgrp:111:- getpgid:121:155 getsid:124:156 getpriority:140:141 uname:63:160 sysinfo:99:179
getrusage:98:165 getrlimit:97:163 setrlimit:160:164 getcpu:309:168 getrandom:318:278 umask:95:166 wait4:61:260
waitid:247:95 sendfile:40:71 copy_file_range:326:285 fsync:74:82 fdatasync:75:83 fadvise64:221:223
"""
# Calls that change files or their metadata. Landlock does not govern all of them, so they are
# allowed only where a private mount namespace leaves nothing but the scratch folder to change.
_SCRATCH = """
ftruncate:77:46 truncate:76:45 fallocate:285:47 creat:85:- mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:-
unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:- symlinkat:266:36
chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 utime:132:- utimes:235:- utimensat:280:88 flock:73:32
"""
_CHECKED = """
open:2:- openat:257:56 clone:56:220 fork:57:- vfork:58:- kill:62:129 tgkill:234:131 rt_sigqueueinfo:129:138
rt_tgsigqueueinfo:297:240 prctl:157:167 ioctl:16:29 fcntl:72:25 socketpair:53:199 sendto:44:206 prlimit64:302:261
execve:59:221 execveat:322:281 socket:41:198
"""

# Classic BPF instructions, as linux/bpf_common.h names them.
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16

_CLONE_THREAD, _CLONE_NEW_NAMESPACES = 0x00010000, 0x7E020080
_O_TRUNC = 0o1000
_AF_UNIX = 1
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_NOTIFY = 8, 10, 15, 1026
# FIONBIO, FIOCLEX, FIONCLEX, FIONREAD, TCGETS, TIOCGWINSZ: no ioctl that makes the kernel signal another process.
_IOCTLS = (0x5421, 0x5451, 0x5450, 0x541B, 0x5401, 0x5413)

_SECCOMP_SET_MODE_FILTER = 1


class _Architecture(NamedTuple):
    audit: int
    column: int


_ARCHITECTURES = {"x86_64": _Architecture(0xC000003E, 1), "aarch64": _Architecture(0xC00000B7, 2)}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


_DENY = _instruction(_RETURN, _ERRNO | errno.EPERM)
_PERMIT = _instruction(_RETURN, _ALLOW)
_UNKNOWN = _instruction(_RETURN, _ERRNO | errno.ENOSYS)


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = (row.split(":") for row in table.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _argument(index: int, *, high: bool = False) -> bytes:
    return _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * index + 4 * high)


def _one_of(index: int, values: tuple[int, ...]) -> bytes:
    """Allow the call where the argument is one of the values."""
    tests = b"".join(_instruction(_JUMP_EQUAL, value, 0, 1) + _PERMIT for value in values)
    return _argument(index) + tests + _DENY


def _none_of(index: int, values: tuple[int, ...]) -> bytes:
    tests = b"".join(_instruction(_JUMP_EQUAL, value, 0, 1) + _DENY for value in values)
    return _argument(index) + tests + _PERMIT


def _without_bits(index: int, bits: int) -> bytes:
    return _argument(index) + _instruction(_JUMP_ANY_BIT, bits, 0, 1) + _DENY + _PERMIT


def _checks(process: int, truncation: bool) -> dict[str, bytes]:
    """What each checked call must satisfy, as instructions that end in a verdict."""
    myself = _one_of(0, (process,))
    opening = _PERMIT if truncation else b""
    threads_only = (
        _argument(0)
        + _instruction(_JUMP_ANY_BIT, _CLONE_NEW_NAMESPACES, 0, 1)
        + _DENY
        + _instruction(_JUMP_ANY_BIT, _CLONE_THREAD, 1, 0)
        + _DENY
        + _PERMIT
    )
    # A datagram socket can name a receiver without connecting; only a null address stays inside the pair.
    no_address = (
        _argument(4)
        + _instruction(_JUMP_EQUAL, 0, 1, 0)
        + _DENY
        + _argument(4, high=True)
        + _instruction(_JUMP_EQUAL, 0, 1, 0)
        + _DENY
        + _PERMIT
    )
    return {
        "open": opening or _without_bits(1, _O_TRUNC),
        "openat": opening or _without_bits(2, _O_TRUNC),
        "clone": threads_only,
        "fork": _DENY,
        "vfork": _DENY,
        "execve": _DENY,
        "execveat": _DENY,
        "socket": _DENY,
        "kill": myself,
        "tgkill": myself,
        "rt_sigqueueinfo": myself,
        "rt_tgsigqueueinfo": myself,
        # PR_SET_PDEATHSIG above all must stay out of reach: it ends the program when its server dies.
        "prctl": _one_of(0, (_PR_SET_NAME, _PR_GET_NAME)),
        "ioctl": _one_of(1, _IOCTLS),
        "fcntl": _none_of(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_NOTIFY)),
        "socketpair": _one_of(0, (_AF_UNIX,)),
        "sendto": no_address,
        "prlimit64": _one_of(0, (0, process)),
    }


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as runs of consecutive ones: fewer comparisons per call."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _length(code: bytes) -> int:
    return len(code) // len(_PERMIT)


def _search(ranges: list[tuple[int, int]]) -> bytes:
    """Allow the numbers in the ranges, by binary search: the kernel tries a new filter on every call number."""
    if len(ranges) == 1:
        [(low, high)] = ranges
        return _instruction(_JUMP_AT_LEAST, low, 0, 2) + _instruction(_JUMP_GREATER, high, 1, 0) + _PERMIT + _UNKNOWN
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle]), _search(ranges[middle:])
    return _instruction(_JUMP_AT_LEAST, ranges[middle][0], _length(lower), 0) + lower + upper


def filter_supported() -> bool:
    """Whether the filter is written for this machine's system calls."""
    return platform.machine() in _ARCHITECTURES


class FilterTemplate:
    """A filter built once and finished for each process with its own number.

    Args:
        scratch: allow the calls that create and change files.
        truncation: allow opening with O_TRUNC; False where Landlock cannot tell truncating from reading.
    """

    # Stands where the process number goes; no call number, flag or errno in the filter has this value.
    _PLACEHOLDER = 0x5AFEC0DE

    def __init__(self, *, scratch: bool, truncation: bool) -> None:
        architecture = _ARCHITECTURES[platform.machine()]
        allowed = _numbers(_ALWAYS + (_SCRATCH if scratch else ""), architecture.column)
        checked = _numbers(_CHECKED, architecture.column)
        checks = _checks(self._PLACEHOLDER, truncation)
        code = _instruction(_LOAD, _ARCHITECTURE_OFFSET)
        code += _instruction(_JUMP_EQUAL, architecture.audit, 1, 0) + _instruction(_RETURN, _KILL_PROCESS)
        code += _instruction(_LOAD, _NUMBER_OFFSET)
        for name, number in checked.items():
            code += _instruction(_JUMP_EQUAL, number, 0, _length(checks[name])) + checks[name]
        self._code = code + _search(_ranges(list(allowed.values())))

    def install(self) -> None:
        """Put the calling process under the filter, for good; no_new_privs must be set.

        Raises:
            OSError: the kernel has no seccomp filters.
        """
        code = self._code.replace(struct.pack("=I", self._PLACEHOLDER), struct.pack("=I", os.getpid()))
        program = _Program(_length(code), code)
        call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(program))
