"""Which hosts are meant: `web & !canary`, `kernel<7`, `(db | cache) & site=ber`, `web*`, `all`.

    selector   = conjunction { "|" conjunction }
    conjunction = term { "&" term }
    term       = "!" term | "(" selector ")" | name | key operator value
    operator   = "<" | "<=" | ">" | ">=" | "=" | "!="

A name is a host, a group, `all`, or a glob over host names. A key is a fact (FACTS) or a label; a fact that
was gathered counts before a label of the same name, so `kernel` is the running release where known. `=` and
`!=` compare texts, globs allowed on the right; the others compare versions (`versions`).

A fact may be unknown: before the host is asked, or because it could not say. Then the answer is UNKNOWN
(Kleene's three-valued logic), and `select` keeps the host and lists it as undecided: whoever has the facts
later goes on with Match.YES only. A label that a host lacks is no such case: nothing equals it.
A name or key that the inventory does not have is an error, not an empty answer: `!canry` must not match all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.inventory import ALL, Host, Inventory
from orchestrator.domain.values import name_hint
from orchestrator.domain.versions import compare_versions

# The keys of `facts.selector_facts`: a host without such a label may still turn out to have the fact.
FACTS = (
    "kernel",
    "machine",
    "hostname",
    "cpus",
    "memory_mib",
    "cma",
    "no_cma_flag",
    "init",
    "virt",
    "lockdown",
    "secure_boot",
    "clocksource",
)

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator><=|>=|!=|<|>|=)
      | (?P<mark>[&|!()])
      | "(?P<quoted>[^"]*)"
      | (?P<word>(?:[\w.*?:+~/@,%-]|\[[^\]\s]*\])+)
    )""",
    re.VERBOSE,
)
_GLOB = re.compile(r"[*?\[]")
_MAX_LENGTH = 4096
_MAX_DEPTH = 32


class Match(Enum):
    """Whether a host is meant. No truth value: UNKNOWN must not pass for either."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"

    def __bool__(self) -> bool:
        raise TypeError("a Match has three values: compare it with Match.YES")


_NOT = {Match.YES: Match.NO, Match.NO: Match.YES, Match.UNKNOWN: Match.UNKNOWN}


@dataclass(frozen=True)
class Name:
    """A host, a group, `all`, or a glob over host names. Columns count from 1."""

    text: str
    column: int

    def matches(self, host: Host, facts: Mapping[str, str]) -> Match:
        here = self.text == ALL or self.text in host.groups or fnmatchcase(host.name, self.text)
        return Match.YES if here else Match.NO


@dataclass(frozen=True)
class Comparison:
    """A fact or label against a value."""

    key: str
    operator: str
    value: str
    column: int

    def matches(self, host: Host, facts: Mapping[str, str]) -> Match:
        have = facts.get(self.key, host.labels.get(self.key))
        if have is None:
            if self.key in FACTS:
                return Match.UNKNOWN
            return Match.YES if self.operator == "!=" else Match.NO
        return Match.YES if self.holds(have) else Match.NO

    def holds(self, have: str) -> bool:
        if self.operator in ("=", "!="):
            return fnmatchcase(have, self.value) == (self.operator == "=")
        order = compare_versions(have, self.value)
        if order is None:
            return False
        return {"<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[self.operator]


@dataclass(frozen=True)
class Not:
    """The opposite of a term; what is unknown stays unknown."""

    term: Term

    def matches(self, host: Host, facts: Mapping[str, str]) -> Match:
        return _NOT[self.term.matches(host, facts)]


@dataclass(frozen=True)
class Joined:
    """All terms (`&`) or any of them (`|`); `decisive` is the answer that one term settles: NO, or YES."""

    terms: tuple[Term, ...]
    decisive: Match

    def matches(self, host: Host, facts: Mapping[str, str]) -> Match:
        answers = [term.matches(host, facts) for term in self.terms]
        if self.decisive in answers:
            return self.decisive
        return Match.UNKNOWN if Match.UNKNOWN in answers else _NOT[self.decisive]


Term = Name | Comparison | Not | Joined


@dataclass(frozen=True)
class Selector:
    """A parsed selector."""

    text: str
    term: Term

    @classmethod
    def parse(cls, text: str) -> Selector:
        """The selector that `text` writes. Raises InputError that names the column."""
        return cls(text, _Parser(text).parse())

    def matches(self, host: Host, facts: Mapping[str, str] | None = None) -> Match:
        """Whether `host` is meant; `facts` are `facts.selector_facts`, None when the host was not asked."""
        return self.term.matches(host, facts or {})

    def leaves(self) -> Iterator[Name | Comparison]:
        """All names and comparisons, from left to right."""
        yield from _leaves(self.term)


def _leaves(term: Term) -> Iterator[Name | Comparison]:
    if isinstance(term, Not):
        yield from _leaves(term.term)
    elif isinstance(term, Joined):
        for part in term.terms:
            yield from _leaves(part)
    else:
        yield term


@dataclass(frozen=True)
class Selection:
    """The hosts that a selector keeps, in the inventory's order; of `undecided` ones, facts will decide."""

    hosts: tuple[str, ...]
    undecided: frozenset[str] = frozenset()


def select(
    text: str,
    inventory: Inventory,
    facts: Mapping[str, Mapping[str, str]] | None = None,
    *,
    position: SourcePosition | None = None,
) -> Selection:
    """The hosts of `inventory` that the selector `text` keeps; `facts` by host name, for those asked.

    `position` is where the text was written. Raises InputError when it cannot be parsed, names what is not
    there, or keeps nothing.
    """
    try:
        selector = Selector.parse(text)
        for leaf in selector.leaves():
            _check_known(text, leaf, inventory)
    except InputError as error:
        raise InputError(error.message, hint=error.hint, position=position) from None
    answers = {
        name: selector.matches(host, (facts or {}).get(name)) for name, host in inventory.hosts.items()
    }
    hosts = tuple(name for name, answer in answers.items() if answer is not Match.NO)
    if not hosts:
        raise InputError(
            f"the selector `{text}` matches no host",
            hint=_nothing_hint(selector, inventory),
            position=position,
        )
    return Selection(hosts, frozenset(name for name in hosts if answers[name] is Match.UNKNOWN))


def _check_known(text: str, leaf: Name | Comparison, inventory: Inventory) -> None:
    """Raises InputError for a name or key that stands for nothing in the inventory."""
    labels = sorted({label for host in inventory.hosts.values() for label in host.labels})
    if isinstance(leaf, Comparison):
        if leaf.key not in FACTS and leaf.key not in labels:
            hint = name_hint(leaf.key, [*labels, *FACTS], "known keys")
            raise _at(text, leaf.column, f"no host has the label `{leaf.key}`", hint)
        return
    groups_and_hosts = [*inventory.groups, *inventory.hosts]
    if leaf.text == ALL or leaf.text in groups_and_hosts:
        return
    if not _GLOB.search(leaf.text):
        hint = name_hint(leaf.text, [*groups_and_hosts, ALL], "known names")
        if leaf.text in labels:
            hint = f"`{leaf.text}` is a label: write `{leaf.text}=...`"
        raise _at(text, leaf.column, f"no host and no group is called `{leaf.text}`", hint)
    if not any(fnmatchcase(host, leaf.text) for host in inventory.hosts):
        hint = name_hint(_GLOB.sub("", leaf.text), inventory.hosts, "known hosts")
        raise _at(text, leaf.column, f"no host's name matches `{leaf.text}`", hint)


def _nothing_hint(selector: Selector, inventory: Inventory) -> str:
    """What could have been meant where every part is known and no host has them together."""
    for leaf in selector.leaves():
        if isinstance(leaf, Comparison):
            values = {host.labels[leaf.key] for host in inventory.hosts.values() if leaf.key in host.labels}
            if values and not any(leaf.holds(value) for value in values):
                return f"the inventory has `{leaf.key}` as {', '.join(sorted(values)[:8])}"
        elif leaf.text in inventory.groups and not inventory.groups[leaf.text]:
            return f"the group `{leaf.text}` has no hosts"
    return "each part matches some host, but no host matches them together"


def _at(text: str, column: int, message: str, hint: str) -> InputError:
    return InputError(f"selector `{text}`, column {column}: {message}", hint=hint)


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.token: re.Match[str] | None = None

    def parse(self) -> Term:
        if len(self.text) > _MAX_LENGTH:
            raise InputError(f"a selector of {len(self.text)} characters", hint="name a group instead")
        self.advance()
        term = self.any_of()
        if self.token or self.text[self.at :].strip():
            what = "`&` or `|` is missing here" if self.token else "this character means nothing here"
            raise self.error(what, 'write for instance `web & !canary`; quote a value: `rack="a b"`')
        return term

    @property
    def column(self) -> int:
        """Where the current token begins, or where the text goes wrong."""
        start = self.token.start() if self.token else self.at
        rest = self.text[start:]
        return start + len(rest) - len(rest.lstrip()) + 1

    def advance(self) -> None:
        self.at = self.token.end() if self.token else self.at
        self.token = _TOKEN.match(self.text, self.at)

    def error(self, message: str, hint: str) -> InputError:
        return _at(self.text, self.column, message, hint)

    def mark(self) -> str | None:
        return self.token["mark"] if self.token else None

    def any_of(self) -> Term:
        return self.joined("|", Match.YES)

    def joined(self, mark: str, decisive: Match) -> Term:
        """Terms with `mark` between them; those of a `|` are joined by `&`."""
        part = self.all_of if mark == "|" else self.term
        terms = [part()]
        while self.mark() == mark:
            self.advance()
            terms.append(part())
        return terms[0] if len(terms) == 1 else Joined(tuple(terms), decisive)

    def all_of(self) -> Term:
        return self.joined("&", Match.NO)

    def term(self) -> Term:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.error(f"nested more than {_MAX_DEPTH} deep", "name a group instead")
        mark = self.mark()
        if mark == "!":
            self.advance()
            term: Term = Not(self.term())
        elif mark == "(":
            self.advance()
            term = self.any_of()
            if self.mark() != ")":
                raise self.error("a `)` is missing here", "close the bracket")
            self.advance()
        else:
            term = self.leaf()
        self.depth -= 1
        return term

    def leaf(self) -> Term:
        column = self.column
        name = self.word("a name is missing here", "write a host, a group, a label comparison, or `all`")
        operator = self.token["operator"] if self.token else None
        if not operator:
            return Name(name, column)
        if _GLOB.search(name):
            raise _at(self.text, column, f"not a label: `{name}`", "a glob may stand on the right only")
        self.advance()
        value_column = self.column
        value = self.word(f"a value is missing after `{operator}`", f"write `{name}{operator}...`")
        if operator not in ("=", "!=") and compare_versions(value, "0") is None:
            raise _at(
                self.text, value_column, f"`{operator}` wants a number or version, not `{value}`", "use `=`"
            )
        return Comparison(name, operator, value, column)

    def word(self, missing: str, hint: str) -> str:
        if not self.token or (self.token["word"] is None and self.token["quoted"] is None):
            raise self.error(missing, hint)
        word = self.token["word"] if self.token["word"] is not None else self.token["quoted"]
        self.advance()
        return word
