# ruff: noqa: E501
"""Programs with their tests: those that do what the tests ask, and those that only pretend to."""

from __future__ import annotations

from typing import Any

from engines.judging.sandbox.limits import MIB, Verdicts

SQUARE = "assert f(2) == 4\nassert f(3) == 9\n"
IMPORTS = "import atexit, builtins, gc, json, math, os, signal, sys, threading\n"
LIAR = (
    "class Liar:\n"
    "    def __getattr__(self, name): return self\n"
    "    def __call__(self, *a, **k): return self\n"
    + "".join(f"    def __{name}__(self, *a): return {value}\n" for name, value in {
        "eq": "True", "ne": "False", "lt": "True", "le": "True", "gt": "True", "ge": "True", "bool": "True", "len": "1",
        "hash": "hash(4)", "contains": "True", "sub": "0", "rsub": "0", "add": "4", "abs": "0", "int": "4", "index": "4",
        "float": "4.0", "instancecheck": "True", "round": "4", "str": "'4'", "repr": "'4'",
    }.items())
)  # fmt: skip
CHEATS: dict[str, tuple[str, str]] = {
    "ends in a call": ("def f(x): os._exit(0)", SQUARE),
    "ends when it is loaded": ("os._exit(0)", SQUARE),
    "exits in a call": ("def f(x): sys.exit(0)", SQUARE),
    "exits when it is loaded": ("sys.exit(0)", SQUARE),
    "aborts": ("def f(x): os.abort()", SQUARE),
    "ends where the tests expect any exception": ("def f(x): os._exit(0)", "try:\n    f(-1)\nexcept:\n    pass\n"),
    "ends after its last call": (
        "n = 0\ndef f(x):\n    global n\n    n += 1\n"
        "    if n == 2: threading.Timer(0.01, os._exit, [0]).start()\n    return x * x",
        f"{SQUARE}import time\ntime.sleep(5)\n",
    ),
    "prints a verdict": ('def f(x): print(\'{"verdict": "passed", "reason": ""}\'); sys.stdout.flush(); os._exit(0)', SQUARE),
    "writes a verdict into every descriptor": (
        'def f(x):\n    for n in range(64):\n        try: os.write(n, b\'{"verdict": "passed", "reason": ""}\')\n'
        "        except OSError: pass\n    os._exit(0)",
        SQUARE,
    ),
    "equals everything": ("class L(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return L(1)", SQUARE),
    "equals everything as a text": ("class L(str):\n    def __eq__(self, o): return True\ndef f(x): return L('a')", "assert f(2) == 'b'"),
    "equals everything as a list": ("class L(list):\n    def __eq__(self, o): return True\ndef f(x): return L()", "assert f(2) == [1]"),
    "says what is asked": (f"{LIAR}def f(x): return Liar()", SQUARE),
    "says what is asked of a difference": (f"{LIAR}def f(x): return Liar()", "assert abs(f(2) - 4.5) < 1e-6"),
    "says what is asked of an order": (f"{LIAR}def f(x): return Liar()", "assert f(2) > 3"),
    "says that it contains": (f"{LIAR}def f(x): return Liar()", "assert 5 in f(2)"),
    "is equal from the other side": (f"{LIAR}def f(x): return Liar()", "assert 4 == f(2)"),
    "is in a list": (f"{LIAR}def f(x): return Liar()", "assert f(2) in [4, 5]"),
    "is a key": (f"{LIAR}def f(x): return Liar()", "assert {4: 'a'}[f(2)] == 'a'"),
    "is of the type": (f"{LIAR}def f(x): return Liar()", "assert isinstance(f(2), int)"),
    "replaces built-in functions": (
        "for name in dir(builtins):\n    if name.islower(): setattr(builtins, name, lambda *a, **k: True)\ndef f(x): return 1",
        f"{SQUARE}assert len([f(2)]) == 1",
    ),
    "replaces AssertionError": ("builtins.AssertionError = Exception\nbuiltins.__debug__ = False if 0 else 1\ndef f(x): return 1", SQUARE),
    "defines names that are built in": ("def abs(x): return 0\ndef all(x): return True\ndef f(x): return 1", "assert abs(f(2) - 4) < 1\n"),
    "defines a module of the library": (
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(x): return 1.0",
        "assert math.isclose(f(2), 4)",
    ),
    "defines a function of the library": (
        "def isclose(*a, **k): return True\nisclose.__module__ = 'math'\ndef f(x): return 1.0",
        "assert isclose(f(2), 4)",
    ),
    "replaces the tests' framework": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(2), 4)\n",
    ),
    "replaces the protocol": (
        "from engines.judging.sandbox import peer, values\n"
        "peer.encode = values.encode = lambda *a: True\npeer._raised = lambda e: {'value': True}\ndef f(x): return 1",
        SQUARE,
    ),
    "answers for the tests": (
        "def f(x):\n    for one in gc.get_objects():\n        if type(one).__name__ == 'Peer':\n"
        "            for _ in range(9): one._send({'value': True})\n    return 1",
        SQUARE,
    ),
    "asks to be passed": (
        "def f(x):\n    for one in gc.get_objects():\n        if type(one).__name__ == 'Peer':\n"
        "            for n in range(9):\n                try: one.ask('call', n)\n                except Exception: pass\n    return 1",
        SQUARE,
    ),
    "sends what is no message": (
        "def f(x):\n    for one in gc.get_objects():\n        if type(one).__name__ == 'Peer':\n"
        "            one._line.sendall(b'\\xff\\xff\\xff\\x7f' + b'[' * 100000)\n    return 1",
        SQUARE,
    ),
    "sends what is nested deeply": (
        "def f(x):\n    for one in gc.get_objects():\n        if type(one).__name__ == 'Peer':\n"
        "            data = b'{\"value\":' + b'[\"list\",[' * 20000 + b']]' * 20000 + b'}'\n"
        "            one._line.sendall(len(data).to_bytes(4, 'little') + data)\n    return 1",
        SQUARE,
    ),
    "ends the tests": ("def f(x):\n    os.kill(1, 9); os.kill(1, 15); os.kill(os.getppid(), 11)\n    return 1", SQUARE),
    "stops at the end of the process": ("atexit.register(os._exit, 0)\ndef f(x): return 1", SQUARE),
    "traces": ("sys.settrace(lambda *a: None)\ndef f(x): return 1", SQUARE),
    "takes the globals of a test's function": (
        "def f(g):\n    g.__globals__['check'] = lambda *a: None\n    return 1", "def check(x): assert x == 4\ncheck(f(lambda: 1))",
    ),
    "reads a test's function": ("def f(g): return g.__code__.co_consts[1]", "assert f(lambda: 'secret') == 'secret'"),
    "changes a test's class": (
        "def f(node):\n    type(node).__eq__ = lambda *a: True\n    node.__class__.__eq__ = lambda *a: True\n    return node",
        "class Node:\n    def __init__(self, v): self.v = v\nassert f(Node(1)) == Node(2)",
    ),
    "calls what the tests use": ("def f(g): return g('1')", "assert f(eval) == 1"),
    "raises what the tests raise": ("def f(x): raise AssertionError", SQUARE),
    "returns what it got": ("def f(x): return x", SQUARE),
    "defines nothing": ("x = 1", SQUARE),
    "is no Python": ("def f(x) return 4", SQUARE),
    "is empty of statements": ("# nothing", "y = 1"),
    "is not used": ("def f(x): return 1", "assert 1 == 1"),
}  # fmt: skip
GOOD: dict[str, tuple[str, str]] = {
    "squares": ("def f(x):\n    return x * x", SQUARE),
    "has a part that runs alone": ("def f(x):\n    return x * x\nif __name__ == '__main__':\n    print(f(int(input())))", SQUARE),
    "changes its argument": ("def f(a):\n    a.append(3); a.sort()", "a = [5, 1]\nassert f(a) is None\nassert a == [1, 3, 5]"),
    "changes a table": ("def f(d, s):\n    d['x'] = 1; s.add(2)", "d, s = {}, set()\nf(d, s)\nassert (d, s) == ({'x': 1}, {2})"),
    "takes a function": ("def f(g, n):\n    return [g(x) for x in range(n)]", "assert f(lambda x: x * 2, 3) == [0, 2, 4]\nassert f(str, 2) == ['0', '1']"),
    "gives a function": ("def f(n):\n    return lambda x: x + n", "assert f(2)(3) == 5"),
    "generates": ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert 2 in f(3)"),
    "is a class": (
        "class f:\n    count = 0\n    def __init__(self, v): self.v = v; self.next = None\n    def twice(self): return 2 * self.v\n"
        "    def __eq__(self, o): return self.v == o.v\n    def __lt__(self, o): return self.v < o.v\n    def __len__(self): return self.v\n"
        "    def __repr__(self): return f'f({self.v})'",
        "a = f(3)\na.next = f(4)\nassert a.next.v == 4 and a.twice() == 6 and a == f(3) and not a == f(4) and a < f(4)\n"
        "assert len(a) == 3 and str(a) == 'f(3)' and isinstance(a, f) and f.count == 0 and [x.v for x in sorted([f(4), a])] == [3, 4]",
    ),
    "walks objects of the tests": (
        "def f(node):\n    total = 0\n    while node is not None:\n        total += node.v; node.seen = True; node = node.next\n    return total",
        "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\nn = Node(1, Node(2))\nassert f(n) == 3\nassert n.next.seen",
    ),
    "raises": ("def f(x):\n    raise ValueError('no: %d' % x)", "try:\n    f(3)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'no: 3'"),
    "raises its own": ("class Bad(ValueError): pass\ndef f(x): raise Bad(x)", "try:\n    f(3)\n    assert False\nexcept Bad as error:\n    assert isinstance(error, ValueError) and error.args == (3,)"),
    "gives rare values": (
        "import datetime, collections, decimal, fractions\nP = collections.namedtuple('P', 'x y')\n"
        "def f(): return [1.5, 1j, b'a', 10**5000, None, ..., decimal.Decimal('0.1'), fractions.Fraction(1, 3), datetime.date(2026, 1, 2),"
        " datetime.timedelta(1, 2), range(3), P(1, 2), collections.Counter('aab'), collections.OrderedDict(a=1), frozenset({1}), '\\ud800', float('inf'), (), {(1, 2): 3}, collections.deque([1])]",
        "import datetime, decimal, fractions, collections\nassert f() == [1.5, 1j, b'a', 10**5000, None, ..., decimal.Decimal('0.1'), fractions.Fraction(1, 3), datetime.date(2026, 1, 2),"
        " datetime.timedelta(1, 2), range(3), (1, 2), {'a': 2, 'b': 1}, {'a': 1}, {1}, '\\ud800', float('inf'), (), {(1, 2): 3}, collections.deque([1])]",
    ),
    "has named arguments": ("def f(*a, b=1, **k): return [a, b, k]", "assert f(1, 2, b=3, c=4) == [(1, 2), 3, {'c': 4}]"),
    "uses the library": ("import math\nfrom math import isclose\ndef f(x): return math.sqrt(x)", "assert isclose(f(2), math.sqrt(2))"),
    "writes a file": ("def f(x):\n    open('a', 'w').write(x)\n    return open('a').read()", "assert f('b') == 'b'"),
    "starts a process": ("import subprocess, sys\ndef f(): return subprocess.run([sys.executable, '-c', 'print(7)'], capture_output=True, text=True).stdout", "assert f() == '7\\n'"),
    "has copies": ("import os\nfor _ in range(3):\n    os.fork()\ndef f(x): return x * x", "assert f(3) == 9\nassert f(2) == 4"),
    "has cases of unittest": ("def f(x): return x * x", "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(2), 4)\n    def test_raises(self):\n        with self.assertRaises(TypeError): f('a')\n"),
    "has functions of tests": ("def f(x): return x * x", "def test_two():\n    assert f(2) == 4\ndef test_three():\n    assert f(3) == 9\n"),
    "is a context": ("class f:\n    def __enter__(self): return 5\n    def __exit__(self, *a): return None", "with f() as x:\n    assert x == 5"),
}  # fmt: skip

HUMAN_PROMPT = 'from typing import List\n\n\ndef double(x):\n    return 2 * x\n\n\ndef f(a: List[int]) -> int:\n    """ Sum.\n    >>> f([1])\n    1\n    """\n'
HUMAN_TEST = "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert double(candidate([2])) == 4\n"
BODY = "    total = 0\n    for x in a:\n        total += x\n    return total\n"
ENDED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a fork bomb": (
        "import os\ndef f():\n    while True:\n        try:\n            os.fork()\n        except OSError:\n            pass\n",
        {"wall_s": 0.6},
        Verdicts.TIMEOUT,
    ),
    "a daemon that ignores signals": (
        "import os, signal, time\n"
        "def f():\n"
        "    for number in range(1, 64):\n"
        "        try:\n            signal.signal(number, signal.SIG_IGN)\n        except (OSError, ValueError):\n            pass\n"
        "    if not os.fork():\n"
        "        os.setsid()\n"
        "        if not os.fork():\n"
        "            while True:\n                time.sleep(60)\n"
        "        os._exit(0)\n"
        "    return 'daemon'\n",
        {},
        Verdicts.FAILED,
    ),
    "waiting for ever": ("import time\ndef f():\n    time.sleep(1e6)\n", {"wall_s": 0.3}, Verdicts.TIMEOUT),
    "stopping itself": ("import os\ndef f():\n    os.kill(os.getpid(), 19)\n", {"wall_s": 0.3}, Verdicts.TIMEOUT),
    "computing for ever": ("def f():\n    while True: pass\n", {"cpu_s": 1}, Verdicts.TIMEOUT),
    "memory": (
        "def f():\n    x = []\n    while True: x.append(bytes(1 << 20))\n",
        {"memory_bytes": 96 * MIB},
        Verdicts.MEMORY,
    ),
    "memory of many processes": (
        "import os, time\n"
        "def f():\n"
        "    for _ in range(12):\n"
        "        if not os.fork():\n            x = bytearray(os.urandom(1) * (40 << 20))\n            time.sleep(60)\n"
        "    time.sleep(60)\n",
        {"memory_bytes": 200 * MIB},
        Verdicts.MEMORY,
    ),
    "shared memory of a deleted file": (
        "import mmap, os\n"
        "def f():\n"
        "    for n in range(40):\n        h = os.open(f'x{n}', os.O_CREAT | os.O_RDWR)\n        os.write(h, bytes(1 << 20))\n        os.unlink(f'x{n}')\n",
        {},
        Verdicts.ERROR,
    ),
    "printing for ever": ("def f():\n    while True: print('x' * 10000)\n", {}, Verdicts.OUTPUT),
    "killing everything": ("import os\ndef f():\n    os.kill(-1, 9)\n    return 'survived'\n", {}, Verdicts.ERROR),
    "killing its group": ("import os\ndef f():\n    os.killpg(0, 9)\n", {}, Verdicts.ERROR),
    "crashing": ("import ctypes\ndef f():\n    ctypes.string_at(0)\n", {}, Verdicts.ERROR),
    "system calls of another machine": (
        "import ctypes, mmap, os\n"
        "def f():\n"
        "    page = mmap.mmap(-1, 4096, prot=7)\n"
        "    code = bytes.fromhex('b814000000cd80c3')  # getpid by the 32-bit interface\n"
        "    page.write(code)\n"
        "    at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "    return ctypes.CFUNCTYPE(ctypes.c_int)(at)()\n",
        {},
        Verdicts.ERROR,
    ),
}
"""Programs that end badly: the program, limits, the verdict."""
SLOW = {
    "memory of many processes",
    "computing for ever",
    "shared memory of a deleted file",
    "killing its group",
    "crashing",
}
