"""YAML files as plain values, with the line and column of every key and value.

Only the node tree of yaml.SafeLoader is used; the values are made here, with the scalars of YAML 1.2's core
schema (https://yaml.org/spec/1.2.2/#103-core-schema): `no`, `on`, `1:30` and dates stay text, and a number
keeps the way it was written (`6.10` is not `6.1`). Duplicate keys, more than one document, and files or
aliases that would expand beyond a bound are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.values import Origin
from orchestrator.domain.values import Path as ValuePath

# An inventory of 10,000 hosts with keys takes some 3 MB and 200,000 nodes.
MAX_BYTES = 16 * 1024 * 1024
MAX_NODES = 1_000_000
MAX_DEPTH = 64

_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_MERGE = "<<"
# What yaml.SafeLoader itself gives a node; any other tag was written by hand and asks for a type.
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)


class WrittenInt(int):
    """An integer that prints the way it was written: `022`."""

    written: str

    @classmethod
    def of(cls, text: str) -> WrittenInt:
        number = cls(text)
        number.written = text
        return number

    def __str__(self) -> str:
        return self.written


class WrittenFloat(float):
    """A number that prints the way it was written: `6.10`."""

    written: str

    @classmethod
    def of(cls, text: str) -> WrittenFloat:
        number = cls(text)
        number.written = text
        return number

    def __str__(self) -> str:
        return self.written


@dataclass
class Source:
    """One file: its data, and where each part stands. Paths are tuples of keys and indexes from the root."""

    file: str
    data: object
    values: dict[ValuePath, SourcePosition] = field(default_factory=dict)
    keys: dict[ValuePath, SourcePosition] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        """The positions of the values, for a domain value to carry."""
        return Origin(self.values)

    def at(self, path: ValuePath) -> SourcePosition:
        """Position of the innermost part of `path` that stands in the file."""
        return self.origin.at(path) or SourcePosition(self.file, 1, 1)

    def at_key(self, path: ValuePath) -> SourcePosition:
        """Position of the key that ends `path`, or of the value where it has none (a list's item)."""
        return self.keys.get(path) or self.at(path)


def read_source(path: Path, what: str) -> Source:
    """The file's data and positions. `what` names the file in messages. Raises InputError."""
    text = _read_text(path, what)
    file = str(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, file) from None
    except yaml.reader.ReaderError as error:
        raise InputError(
            f"a character that YAML does not allow: #x{error.character:04x}",
            hint="save the file as UTF-8 text",
            position=_position_of_offset(text, error.position, file),
        ) from None
    except RecursionError:
        raise InputError(
            f"nested more than {MAX_DEPTH} deep", position=SourcePosition(file, 1, 1), hint="write it flatter"
        ) from None
    source = Source(file, None)
    if node is None:
        raise InputError(
            f"the {what} is empty", position=SourcePosition(file, 1, 1), hint="see playbooks/ for examples"
        )
    source.data = _Reader(source).read(node, ())
    if not isinstance(source.data, dict):
        raise InputError(
            f"the {what} is not a mapping of keys to values",
            hint="see playbooks/ for examples",
            position=source.at(()),
        )
    return source


def _read_text(path: Path, what: str) -> str:
    """The file's text. Raises InputError when it cannot be read, is too large or not UTF-8."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot read the {what} {path}: {error.strerror or error}", hint="check the path"
        ) from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"the {what} {path} is larger than {MAX_BYTES} bytes", hint="is it the right file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise InputError(
            f"the {what} is not UTF-8 text: byte 0x{raw[error.start]:02x}",
            hint="save it as UTF-8",
            position=SourcePosition(str(path), line, column),
        ) from None


def _position_of_offset(text: str, offset: int, file: str) -> SourcePosition:
    line_start = text.rfind("\n", 0, offset) + 1
    return SourcePosition(file, text.count("\n", 0, offset) + 1, offset - line_start + 1)


def _syntax_error(error: yaml.MarkedYAMLError, file: str) -> InputError:
    """What the parser says, where it says it."""
    mark = error.problem_mark or error.context_mark
    position = SourcePosition(file, mark.line + 1, mark.column + 1) if mark else SourcePosition(file, 1, 1)
    problem = error.problem or str(error)
    hint = "check the indentation and the colons just before this place"
    if "'\\t'" in problem:
        hint = "YAML is indented with blanks, not tabs"
    elif "could not find expected ':'" in problem or "mapping values are not allowed" in problem:
        hint = "a key needs `: ` behind it, and a text with a colon needs quotes"
    elif "another document" in problem:
        problem, hint = "more than one document in the file", "take the `---` line away"
    elif "found undefined alias" in problem:
        hint = "a text that begins with `*` (a glob) or `&` needs quotes"
    elif "cannot start any token" in problem:
        hint = "a text that begins with this character needs quotes"
    context = f" {error.context}" if error.context and "document" not in problem else ""
    return InputError(f"not valid YAML: {problem}{context}", hint=hint, position=position)


class _Reader:
    """Makes values from nodes, writing positions into one Source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.nodes = 0
        self.depth = 0

    def position(self, node: yaml.Node) -> SourcePosition:
        mark = node.start_mark
        return SourcePosition(self.source.file, mark.line + 1, mark.column + 1)

    def error(self, node: yaml.Node, message: str, hint: str) -> InputError:
        return InputError(message, hint=hint, position=self.position(node))

    def read(self, node: yaml.Node, path: ValuePath) -> object:
        """The value of a node at `path`. Aliases are expanded, and counted each time."""
        if node.tag not in _TAGS:
            raise self.error(node, f"the tag {node.tag} is not known here", "take it away")
        self.source.values[path] = self.position(node)
        if isinstance(node, yaml.ScalarNode):
            self.count(node)
            return self.scalar(node)
        with self.deeper(node):
            if isinstance(node, yaml.MappingNode):
                return self.read_mapping(node, path)
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]

    def count(self, node: yaml.Node) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(node, f"the file expands to more than {MAX_NODES} values", "use fewer aliases")

    @contextmanager
    def deeper(self, node: yaml.Node) -> Iterator[None]:
        """One level down; an alias that contains itself ends here."""
        self.count(node)
        if self.depth >= MAX_DEPTH:
            raise self.error(node, f"nested more than {MAX_DEPTH} deep", "an alias must not contain itself")
        self.depth += 1
        yield
        self.depth -= 1

    def read_mapping(self, node: yaml.MappingNode, path: ValuePath) -> dict[str, object]:
        """A mapping; what `<<` merges in comes first, so that keys written here override it."""
        result: dict[str, object] = {}
        written: dict[str, SourcePosition] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == _MERGE and not key_node.style:
                result.update(self.read_merge(value_node, path))
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "a key must be a text", "quote it, or check the braces")
            key = str(key_node.value)
            if key == _MERGE and not key_node.style:
                continue
            if key in written:
                raise self.error(
                    key_node,
                    f"`{key}` is here twice (first in line {written[key].line})",
                    "keep one of the two",
                )
            written[key] = self.position(key_node)
            self.source.keys[(*path, key)] = written[key]
            result[key] = self.read(value_node, (*path, key))
        return result

    def read_merge(self, node: yaml.Node, path: ValuePath) -> dict[str, object]:
        """The keys that a `<<` brings in, from one mapping or a list of them (earlier ones win)."""
        if isinstance(node, yaml.MappingNode):
            with self.deeper(node):
                return self.read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            merged: dict[str, object] = {}
            for item in reversed(node.value):
                merged.update(self.read_merge(item, path))
            return merged
        raise self.error(node, "`<<` wants a mapping", "write `<<: *name` with a mapping named `&name`")

    def scalar(self, node: yaml.ScalarNode) -> object:
        """A scalar of the core schema; what is quoted is text."""
        text = str(node.value)
        if node.style:
            return text
        if text in _NULL:
            return None
        if text in _TRUTH:
            return _TRUTH[text]
        # More than 18 digits is no port, count or version, and a float could not hold it.
        if _INT.match(text):
            return WrittenInt.of(text) if len(text) <= 18 else text
        return WrittenFloat.of(text) if _FLOAT.match(text) else text
