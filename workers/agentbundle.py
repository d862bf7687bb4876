"""Makes one source text of workers/hostagent, and the loader that starts it on a host.

The text holds the modules' sources in a table and an importer that serves them from it: nothing is written
to the host's disk, and tracebacks name the real modules and lines. The same package gives the same bytes;
their SHA-256 is the agent's name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent / "hostagent"

# What `python3 -I -c` gets. Reads "<length> <sha256>\n" and that many bytes from stdin, checks, runs.
# Unbuffered: the requests that follow on stdin are the agent's. It must hold no single quote, and parse
# under any Python 3. Exit status 65 (EX_DATAERR): the source did not arrive whole. 69 (EX_UNAVAILABLE): this
# Python is too old.
LOADER = """\
import hashlib, os, sys
def fail(status, text):
    sys.stderr.write("kexec-fleet loader: " + text + "\\n")
    sys.stderr.flush()
    os._exit(status)
def read(count):
    data = b""
    while len(data) < count:
        block = os.read(0, min(count - len(data), 65536))
        if not block:
            fail(65, "end of input after %d of %d bytes" % (len(data), count))
        data += block
    return data
if sys.version_info < (3, 6):
    fail(69, "needs Python 3.6 or later, this is " + sys.version.split()[0])
line = b""
while not line.endswith(b"\\n"):
    line += read(1)
    if len(line) > 100:
        fail(65, "the first line is no header")
try:
    length, name = line.decode("ascii").split()
    length = int(length)
except ValueError:
    fail(65, "the first line is no header")
if not 0 < length <= 8388608:
    fail(65, "a source of %d bytes is not taken" % length)
source = read(length)
if hashlib.sha256(source).hexdigest() != name:
    fail(65, "the source does not have the announced SHA-256")
exec(compile(source, "<kexec-fleet-agent>", "exec"), {"__name__": "__main__", "AGENT": name})
"""

_HEAD = """\
# The host agent of kexec-fleet, made by workers/agentbundle.py. Starts with its loader only.
import importlib.abc
import importlib.machinery
import linecache
import sys

SOURCES = {
"""

_IMPORTER = '''}


class Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Serves SOURCES, {module name: (is a package, source text)}, before anything on the host's disk."""

    def find_spec(self, name, path, target=None):
        if name not in SOURCES:
            return None
        is_package = SOURCES[name][0]
        return importlib.machinery.ModuleSpec(name, self, origin=self.origin(name), is_package=is_package)

    @staticmethod
    def origin(name):
        return "<kexec-fleet-agent>/" + name

    def get_source(self, name):
        return SOURCES[name][1]

    def exec_module(self, module):
        name = module.__name__
        text = SOURCES[name][1]
        linecache.cache[self.origin(name)] = (len(text), None, text.splitlines(True), self.origin(name))
        exec(compile(text, self.origin(name), "exec", dont_inherit=True), module.__dict__)


sys.meta_path.insert(0, Importer())
'''

# The last lines of the text. A test gives its own, which builds another Environment; production has only
# this one.
ENTRY = """\
from workers.hostagent.main import run
run(AGENT)
"""


@dataclass(frozen=True)
class AgentBundle:
    """`source` is what the loader runs, `sha256` (hex) its name."""

    source: bytes
    sha256: str

    @property
    def header(self) -> bytes:
        """The line that goes to the loader before the source."""
        return b"%d %s\n" % (len(self.source), self.sha256.encode())


@cache
def bundle() -> AgentBundle:
    """The agent as hosts run it."""
    return render(ENTRY)


def render(entry: str) -> AgentBundle:
    """The package's modules with `entry` as the program behind them."""
    modules = {"workers": (True, "")}
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = ["workers", "hostagent", *path.relative_to(_PACKAGE).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        modules[".".join(parts[:-1] if is_package else parts)] = (
            is_package,
            path.read_text(encoding="utf-8"),
        )
    table = "".join(f"    {name!r}: {value!a},\n" for name, value in sorted(modules.items()))
    source = (_HEAD + table + _IMPORTER + entry).encode("ascii")
    return AgentBundle(source, hashlib.sha256(source).hexdigest())
