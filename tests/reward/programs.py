"""Programs that try to pass without the answer, that try to get out, and that are right.

    python -m tests.reward.programs [--sandbox namespaces]

runs all of them and prints a line for each that did what it must not. Only the standard library and
`reward.sandbox` are needed, so that it also runs as another user with another Python.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reward.domains.code import CodeDomain
from reward.sandbox.box import Box, SandboxError
from reward.sandbox.limits import Limits, Way
from reward.sandbox.ways import way_of
from reward.verdict import GradingPolicy

SECRET = "the-host's-own-secret"

# Each is put before, or instead of, ``add``; none of them adds. An output or a result that was
# claimed is 3, which is right for no test below.
FORGERIES = {
    "exit": "import os\nos._exit(0)",
    "sys_exit": "import sys\nsys.exit(0)",
    "exit_when_called": "import os\ndef add(a, b):\n    os._exit(0)",
    "system_exit_when_called": "def add(a, b):\n    raise SystemExit(0)",
    "keyboard_interrupt": "def add(a, b):\n    raise KeyboardInterrupt",
    "stop_iteration": "def add(a, b):\n    raise StopIteration",
    "assertion_error": "def add(a, b):\n    raise AssertionError",
    "no_function": "x = 1",
    "syntax_error": "def add(a, b) return a + b",
    "nothing": "",
    "returns_none": "def add(a, b):\n    pass",
    "patched_builtins": (
        "import builtins\n"
        "builtins.AssertionError = type('AssertionError', (Exception,), {})\n"
        "builtins.all = builtins.any = builtins.isinstance = lambda *a: True\n"
        "builtins.abs = builtins.round = lambda *a: 0\n"
        "builtins.print = lambda *a, **k: None\n"
        "def add(a, b):\n    return 3"
    ),
    "names_of_python": (
        "def all(x):\n    return True\nany = bool = isinstance = all\ndef abs(x):\n    return 0\n"
        "def check(f):\n    pass\ndef add(a, b):\n    return 3\n"
        "class math:\n    isclose = staticmethod(lambda *a: True)"
    ),
    "equal_to_all": (
        "class Any:\n"
        + "".join(
            f"    def __{name}__(self, *a):\n        return True\n"
            for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "bool", "instancecheck")
        )
        + "".join(
            f"    def __{name}__(self, *a):\n        return self\n"
            for name in ("sub", "rsub", "add", "radd", "mul", "abs", "round", "neg", "getitem",
                         "iter", "call", "getattr", "and", "or", "mod", "truediv")
        )
        + "    def __hash__(self):\n        return 42\n"
        "    def __next__(self):\n        raise StopIteration\n"
        "    def __len__(self):\n        return 0\n"
        "def add(a, b):\n    return Any()"
    ),
    "equal_numbers": (
        "class N(int):\n"
        "    def __eq__(self, o):\n        return True\n"
        "    def __ne__(self, o):\n        return False\n"
        "    def __hash__(self):\n        return 42\n"
        "    def __sub__(self, o):\n        return 0\n"
        "    def __lt__(self, o):\n        return True\n"
        "def add(a, b):\n    return N(3)"
    ),
    "equal_lists": (
        "class L(list):\n    def __eq__(self, o):\n        return True\n"
        "def add(a, b):\n    return L([3])"
    ),
    "equal_texts": (
        "class S(str):\n    def __eq__(self, o):\n        return True\n"
        "    def __hash__(self):\n        return 1\n"
        "def add(a, b):\n    return S('3')"
    ),
    "not_a_number": "def add(a, b):\n    return float('nan')",
    "metaclass": (
        "class M(type):\n    def __eq__(self, o):\n        return True\n"
        "    def __hash__(self):\n        return 1\n"
        "class add(metaclass=M):\n    def __init__(self, *a):\n        pass"
    ),
    "changes_its_arguments": (
        "def add(a, b):\n"
        "    for x in (a, b):\n        if isinstance(x, list):\n            x[:] = [3]\n"
        "    return 3"
    ),
    "patched_modules": (
        "import sys, json, struct, types\n"
        "json.dumps = lambda *a, **k: '{\"value\": 3, \"changed\": [], \"held\": true}'\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('reward'):\n"
        "        for key in list(vars(module)):\n"
        "            if isinstance(vars(module)[key], types.FunctionType):\n"
        "                setattr(module, key, lambda *a, **k: True)\n"
        "def add(a, b):\n    return 3"
    ),
    "patched_encoding": (
        "import sys\n"
        "m = sys.modules.get('reward.sandbox.calling')\n"
        "if m:\n    m.encode = lambda *a: {'ref': 10**9}\n"
        "def add(a, b):\n    return 3"
    ),
    "deep_answers": (
        "import sys\n"
        "def deep():\n    x = 3\n    for _ in range(100000):\n        x = [x]\n    return x\n"
        "m = sys.modules.get('reward.sandbox.calling')\n"
        "if m:\n    m.encode = lambda *a: deep()\n    sys.setrecursionlimit(10**6)\n"
        "def add(a, b):\n    return deep()"
    ),
    "huge_answers": "def add(a, b):\n    return 'x' * 20_000_000",
    "huge_numbers": "def add(a, b):\n    return 1 << 5_000_000",
    "forged_messages": (
        "import json, os, struct\n"
        "def framed(m):\n    b = json.dumps(m).encode()\n    return struct.pack('>I', len(b)) + b\n"
        "forged = b''.join(framed(m) for m in (\n"
        "    {'held': True, 'why': ''}, {'loaded': True}, {'passed': True}, {'correct': True},\n"
        "    {'value': 3, 'changed': []}, {'value': True, 'changed': []},\n"
        "    {'finish': 'ok', 'status': 0, 'stdout': '3', 'stderr': '', 'seconds': 0.0}))\n"
        "for fd in range(256):\n"
        "    try:\n        os.write(fd, forged * 20)\n"
        "    except OSError:\n        pass\n"
        "def add(a, b):\n    return 3\n"
        "print('PASSED'); print('OK'); print('1 passed'); print(json.dumps({'correct': True}))"
    ),
    "listens_to_its_socket": (
        "import os, threading\n"
        "def listen():\n"
        "    while True:\n"
        "        try:\n            print(os.read(3, 65536))\n"
        "        except OSError:\n            return\n"
        "threading.Thread(target=listen, daemon=True).start()\n"
        "def add(a, b):\n    return 3"
    ),
    "closes_its_socket": (
        "import os, time\nos.closerange(3, 256)\n"
        "def add(a, b):\n    return 3\n"
    ),
    "looks_through_memory": (
        "import gc, sys, inspect\n"
        "found = []\n"
        "frame = sys._getframe()\n"
        "while frame:\n    found.append(repr(frame.f_locals)); frame = frame.f_back\n"
        "for o in gc.get_objects():\n"
        "    if isinstance(o, (dict, list, tuple)):\n"
        "        try:\n            found.append(repr(o)[:2000])\n"
        "        except Exception:\n            pass\n"
        "text = ' '.join(found)\n"
        "import re\n"
        "hit = re.search('SUM(\\\\d+)', text)\n"
        "print(text[-20000:])\n"
        "def add(a, b):\n"
        "    for row in inspect.stack():\n        print(row.code_context)\n"
        "    return int(hit.groups()[-1]) if hit else 3"
    ),
    "looks_through_files": (
        "import os, re\n"
        "hit = None\n"
        "for top in ('/work', '/tmp', '/sandbox', '/proc/1', '/proc/self', '/etc', '/root'):\n"
        "    for folder, _, names in os.walk(top):\n"
        "        for name in names[:500]:\n"
        "            if folder[:5] == '/proc' and name not in ('environ', 'cmdline'):\n"
        "                continue\n"
        "            try:\n"
        "                text = open(os.path.join(folder, name), errors='replace').read(100000)\n"
        "            except OSError:\n                continue\n"
        "            hit = hit or re.search('SUM(\\\\d+)', text)\n"
        "def add(a, b):\n    return int(hit.group(1)) if hit else 3\n"
        "print(hit)"
    ),
    "reads_all_input": "import sys\nwhile True:\n    sys.stdin.read(1)\n",
    "writes_without_end": "while True:\n    print('3' * 10000)",
    "writes_errors_without_end": "import sys\nwhile True:\n    sys.stderr.write('3' * 10000)",
    "sleeps": "import time\ntime.sleep(1000)",
    "sleeps_when_called": "import time\ndef add(a, b):\n    time.sleep(1000)",
    "spins": "while True:\n    pass",
    "ignores_signals": (
        "import signal\n"
        "for n in range(1, 65):\n"
        "    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\n"
        "while True:\n    pass"
    ),
    "fork_bomb": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    ),
    "thread_bomb": (
        "import threading, time\n"
        "while True:\n"
        "    try:\n        threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    except RuntimeError:\n        pass"
    ),
    "memory_bomb": "x = []\nwhile True:\n    x.append(bytearray(10**7))",
    "memory_of_many": (
        "import os\n"
        "for _ in range(20):\n    if os.fork() == 0:\n        break\n"
        "x = bytearray(b'1') * (150 * 2**20)\n"
        "while True:\n    pass"
    ),
    "file_bomb": (
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    try:\n        open(f'f{i}', 'wb').write(b'x' * 2**20)\n"
        "    except OSError:\n        if i > 10000:\n            break"
    ),
    "folder_bomb": (
        "import os\n"
        "while True:\n    os.mkdir('d')\n    os.chdir('d')"
    ),
    "deep_recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\n"
        "def add(a, b):\n    return [add(a, b)]\nadd(1, 2)"
    ),
    "breaks_the_interpreter": (
        "import ctypes\nctypes.string_at(0)\n"
    ),
    "daemon": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        while True:\n            time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "print(3)\n"
        "def add(a, b):\n    return 3"
    ),
    "lowers_the_limits_of_others": (
        "import resource\n"
        "for kind in range(16):\n"
        "    for process in (1, 2):\n"
        "        try:\n            resource.prlimit(process, kind, (0, 0))\n"
        "        except (OSError, ValueError):\n            pass\n"
        "print(3)\n"
        "def add(a, b):\n    return 3"
    ),
}  # fmt: skip

# Each prints GOT OUT if it could do what it tries; SECRET stands for a path, PORT for a number.
ESCAPES = {
    "reads_the_host's_file": "print('GOT OUT', open('SECRET').read())",
    "reads_by_the_root_of_others": (
        "import os\n"
        "for p in os.listdir('/proc') + ['self', '1']:\n"
        "    for way in ('root', 'cwd'):\n"
        "        try:\n            print('GOT OUT', open(f'/proc/{p}/{way}SECRET').read())\n"
        "        except OSError:\n            pass"
    ),
    "symbolic_link": "import os\nos.symlink('SECRET', 'a')\nprint('GOT OUT', open('a').read())",
    "hard_link": "import os\nos.link('/etc/ld.so.cache', 'a')\nprint('GOT OUT')",
    "climbs_up": "print('GOT OUT', open('../' * 40 + 'SECRET').read())",
    "chroot": "import os\nos.chroot('.')\nprint('GOT OUT')",
    "environment": (
        "import os\n"
        "if 'HOST_TOKEN' in os.environ:\n    print('GOT OUT')\n"
        "for p in os.listdir('/proc'):\n"
        "    try:\n        text = open(f'/proc/{p}/environ', 'rb').read()\n"
        "    except OSError:\n        continue\n"
        "    if b'HOST_TOKEN' in text:\n        print('GOT OUT')"
    ),
    "reads_the_memory_of_process_one": "open('/proc/1/mem', 'rb')\nprint('GOT OUT')",
    "descriptors_of_process_one": "import os\nprint('GOT OUT', os.listdir('/proc/1/fd'))",
    "open_descriptors": (
        "import os\n"
        "for fd in range(3, 1024):\n"
        "    try:\n        os.fstat(fd)\n        print('GOT OUT', fd)\n"
        "    except OSError:\n        pass"
    ),
    "sees_other_processes": (
        "import os\n"
        "seen = [int(p) for p in os.listdir('/proc') if p.isdigit()]\n"
        "if len(seen) > 2 or max(seen, default=0) > 300:\n    print('GOT OUT', seen)"
    ),
    "connects_to_the_host": (
        "import socket\ns = socket.create_connection(('127.0.0.1', PORT), 2)\nprint('GOT OUT')"
    ),
    "abstract_socket": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0rlvr-PORT')\n"
        "print('GOT OUT')"
    ),
    "listens": "import socket\nsocket.create_server(('127.0.0.1', 0))\nprint('GOT OUT')",
    "raw_socket": (
        "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint('GOT OUT')"
    ),
    "asks_for_a_name": "import socket\nprint('GOT OUT', socket.gethostbyname('example.com'))",
    "signals_process_one": (
        "import os, signal\n"
        "for n in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP):\n"
        "    os.kill(1, n)\n"
        "os.kill(os.getppid(), signal.SIGKILL)"
    ),
    "signals_the_host": "import os\nos.kill(HOSTPID, 9)\nprint('GOT OUT')",
    "traces_process_one": (
        "import ctypes\n"
        "if ctypes.CDLL(None, use_errno=True).ptrace(16, 1, 0, 0) == 0:\n    print('GOT OUT')"
    ),
    "writes_to_python": (
        "import os, sys\n"
        "for path in (os.__file__, sys.executable or '/usr/bin/python3', '/sandbox/reward/a.py',\n"
        "             '/lib/a', '/usr/lib/a', '/a', '/etc/a', '/dev/a', '/proc/sys/kernel/a'):\n"
        "    try:\n        open(path, 'ab').write(b'x')\n        print('GOT OUT', path)\n"
        "    except OSError:\n        pass"
    ),
    "mounts": (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "if libc.mount(b'none', b'/work', b'tmpfs', 0, None) == 0:\n    print('GOT OUT')\n"
        "if libc.mount(b'none', b'/', b'', 32 | 4096, None) == 0:\n    print('GOT OUT')\n"
        "if libc.umount2(b'/work', 2) == 0:\n    print('GOT OUT')"
    ),
    "new_user_namespace": (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "for flags in (0x10000000, 0x20000, 0x40000000):\n"
        "    if libc.unshare(flags) == 0:\n        print('GOT OUT')"
    ),
    "becomes_root": "import os\nos.setuid(0)\nprint('GOT OUT')",
    "raises_its_limits": (
        "import resource\n"
        "for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE,\n"
        "             resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):\n"
        "    soft, hard = resource.getrlimit(kind)\n"
        "    try:\n        resource.setrlimit(kind, (hard + 1, hard + 1))\n"
        "        print('GOT OUT')\n"
        "    except (OSError, ValueError):\n        pass"
    ),
    "memory_without_limit": "import os\nos.memfd_create('a')\nprint('GOT OUT')",
    "shared_memory": (
        "import ctypes\nif ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0:\n    print('GOT OUT')"
    ),
    "devices": (
        "import os\n"
        "if set(os.listdir('/dev')) - {'null', 'zero', 'full', 'random', 'urandom'}:\n"
        "    print('GOT OUT', os.listdir('/dev'))\n"
        "try:\n    os.mknod('a', 0o60666, 0x100)\n    print('GOT OUT')\n"
        "except OSError:\n    pass"
    ),
    "other_folders": (
        "import os\n"
        "for path in ('/home', '/var', '/mnt', '/sys', '/run', '/opt', '/srv', '/boot'):\n"
        "    if os.path.exists(path) and os.listdir(path) and not 'PYTHON'.startswith(path):\n"
        "        print('GOT OUT', path)"
    ),
    "starts_programs": (
        "import os, subprocess\n"
        "for path in ('/bin/sh', '/usr/bin/env', '/usr/bin/python3', '/bin/mount'):\n"
        "    try:\n        subprocess.run([path, '--version'], timeout=5)\n"
        "        print('GOT OUT', path)\n"
        "    except OSError:\n        pass"
    ),
}  # fmt: skip

ADD = "def add(a, b):\n    return a + b\n"
HONEST = {
    "plain": ADD,
    "prints": "def add(a, b):\n    print('adding', a, b)\n    return a + b\n",
    "asserts": "assert 1 + 1 == 2\ndef add(a, b):\n    assert b is not None\n    return a + b\n",
    "class": "class Solution:\n    def add(self, a, b):\n        return a + b\n",
    "own_helpers": (
        "from functools import reduce\nimport operator, collections, re, math, asyncio\n"
        "def all(x):\n    return None\n"
        "def add(*xs):\n    return reduce(operator.add, xs)\n"
    ),
    "guarded_main": ADD + "if __name__ == '__main__':\n    raise SystemExit(3)\n",
    "legal_work": (
        "def add(a, b):\n    s = sum(i * i for i in range(100_000))\n    return a + b if s else s\n"
    ),
    "subclasses": (
        "class N(int):\n    pass\ndef add(a, b):\n"
        "    return N(a + b) if isinstance(a, int) else a + b\n"
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def add(a, b):\n    with ThreadPoolExecutor(4) as pool:\n"
        "        return pool.submit(lambda: a + b).result()\n"
    ),
    "asyncio": (
        "import asyncio\nasync def f(a, b):\n    await asyncio.sleep(0)\n    return a + b\n"
        "def add(a, b):\n    return asyncio.run(f(a, b))\n"
    ),
    "files": (
        "import os, tempfile\ndef add(a, b):\n    with tempfile.TemporaryFile('w+') as f:\n"
        "        f.write(repr((a, b)))\n        f.seek(0)\n        a, b = eval(f.read())\n"
        "    return a + b\n"
    ),
}  # fmt: skip

SUM = "print(sum(map(int, input().split())))"
HONEST_RUNS = {
    "plain": SUM,
    "lines": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "exit": SUM + "\nexit()",
    "buffer": (
        "import sys\nnumbers = map(int, sys.stdin.buffer.read().split())\n"
        "sys.stdout.buffer.write(b'%d\\n' % sum(numbers))"
    ),
    "open_0": "print(sum(map(int, open(0).read().split())))",
    "main": "def main():\n    " + SUM + "\nif __name__ == '__main__':\n    main()",
    "thread": (
        "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\n"
        "def main():\n    " + SUM + "\nt = threading.Thread(target=main)\nt.start()"
    ),
    "at_exit": (
        "import atexit\natexit.register(lambda: print(s))\ns = sum(map(int, input().split()))"
    ),
    "errors": "import sys\nprint('debugging', file=sys.stderr)\n" + SUM,
    "recursion": "def f(n):\n    return 0 if n == 0 else f(n - 1)\nf(900)\n" + SUM,
}  # fmt: skip


@contextmanager
def witnesses() -> Iterator[Callable[[str], str]]:
    """Things of the host that no program may reach: a file, a server, a process, a variable.

    Yields what puts their names into a program. Afterwards all must be as before.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        port = server.getsockname()[1]
        abstract.bind(f"\0rlvr-{port}")
        abstract.listen()
        for one in (server, abstract):
            one.setblocking(False)
        Path(folder).chmod(0o777)
        secret = Path(folder, "secret")
        secret.write_text(SECRET)
        secret.chmod(0o666)
        other = subprocess.Popen(["sleep", "600"])
        os.environ["HOST_TOKEN"] = SECRET
        try:
            yield (
                lambda program: (
                    program.replace("SECRET", str(secret))
                    .replace("PORT", str(port))
                    .replace("HOSTPID", str(other.pid))
                    .replace("PYTHON", os.path.realpath(sys.executable))
                )
            )
            assert secret.read_text() == SECRET
            assert os.listdir(folder) == ["secret"]
            assert other.poll() is None, "a process of the host was ended"
            for one in (server, abstract):
                try:
                    one.accept()
                except BlockingIOError:
                    continue
                raise AssertionError("a program connected to the host")
        finally:
            del os.environ["HOST_TOKEN"]
            other.send_signal(signal.SIGKILL)
            other.wait()


def references() -> dict[str, dict[str, object]]:
    """Tests of ``add``, one for each way to state them, as references of the grader."""
    several = (
        "def check(candidate):\n"
        "    assert all(candidate(i, 2 * i) == 3 * i for i in range(2, 30))\n"
        "    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-9\n"
    )
    single = [
        "assert add(17, 25) == 42  # SUM42",
        "assert abs(add(0.5, 0.25) - 0.75) < 1e-9",
        "assert add(20, 22) in (42, 43)",
        "assert math.isclose(add(20, 22), 42)",
        "assert [add(i, 1) for i in range(5, 9)] == list(range(6, 10))",
        "x = [1]\ny = [2, 4]\nassert add(x, y) == [1, 2, 4]",
        "assert not add(17, 25) != 42",
    ]
    return {
        "runs": {"runs": [{"input": "17 25\n", "output": "42"}]},
        "calls": {
            "calls": [
                {"function": "add", "args": [17, 25], "result": 42},
                {"function": "add", "args": [[1], [2]], "result": [1, 2]},
                {"function": "add", "args": ["a", "b"], "result": "ab"},
                {"function": "add", "args": [0.5, 0.25], "result": 0.75},
            ]
        },
        "assertions": {"assertions": single},
        "check": {"assertions": several, "entry": "add"},
    }


HANG = (
    "reads_all_input", "sleeps", "spins", "ignores_signals", "fork_bomb", "thread_bomb", "daemon",
    "deep_recursion", "looks_through_files", "memory_of_many", "file_bomb", "memory_bomb",
)  # fmt: skip
"""Forgeries that are ended by their limits; what they are asked for matters little."""


KINDS = ("runs", "calls", "assertions", "check")


def forgery_faults(name: str, policy: GradingPolicy, kinds: Sequence[str] = KINDS) -> list[str]:
    """The tests that a forgery passes."""
    golds = {kind: references()[kind] for kind in kinds if name not in HANG or kind == "runs"}
    seconds = 0.5 if name in HANG else 1.5
    domain, faults = CodeDomain(), []
    for kind, gold in golds.items():
        grade = domain.pair(
            fenced(FORGERIES[name]), json.dumps({**gold, "seconds": seconds}), policy
        )
        if grade.correct or grade.credit or grade.status not in ("ok", "crash"):
            faults.append(f"forgery {name} with {kind}: {grade}")
    return faults


def escape_faults(name: str, way: Way, named: Callable[[str], str]) -> list[str]:
    """What an escape reached, and whether the sandbox still serves after it."""
    try:
        with Box(way, Limits(seconds=5)) as box:
            outcome = box.run(named(ESCAPES[name]), "")
            again = box.run("print(1)", "")
    except SandboxError as error:
        return [f"escape {name}: {error}"]
    held = "GOT OUT" not in outcome.stdout and again.stdout == "1\n"
    return [] if held else [f"escape {name}: {outcome.stdout[:200]} {again}"]


def honest_faults(name: str, policy: GradingPolicy) -> list[str]:
    """The tests that a program that is right does not pass."""
    program = {**HONEST, **{f"run_{key}": text for key, text in HONEST_RUNS.items()}}[name]
    kinds = ("runs",) if name.startswith("run_") else ("calls", "assertions", "check")
    grades = {
        kind: CodeDomain().pair(fenced(program), json.dumps(references()[kind]), policy)
        for kind in kinds
    }
    return [f"honest {name} with {kind}: {one}" for kind, one in grades.items() if not one.correct]


def fenced(program: str) -> str:
    """A program as a response has it."""
    return f"```python\n{program}\n```"


def main() -> None:
    """Run all, and print those that did what they must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--quick", action="store_true", help="leave the forgeries out")
    arguments = parser.parse_args()
    policy = GradingPolicy(sandbox=arguments.sandbox)
    way, faults, began = way_of(policy.sandbox), [], time.monotonic()
    with witnesses() as named:
        for name in () if arguments.quick else FORGERIES:
            faults += forgery_faults(name, policy)
        for name in ESCAPES:
            faults += escape_faults(name, way, named)
    for name in (*HONEST, *(f"run_{key}" for key in HONEST_RUNS)):
        faults += honest_faults(name, policy)
    print("\n".join(faults))
    count = len(FORGERIES) * (not arguments.quick) + len(ESCAPES) + len(HONEST) + len(HONEST_RUNS)
    print(f"{way}: {count} programs, {len(faults)} faults, {time.monotonic() - began:.1f} s")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
