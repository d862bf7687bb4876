"""Selectors: grammar, versions, three-valued answers, and mistakes that must not pass for an empty answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.domain.facts import CmaArea, HostFacts, selector_facts
from orchestrator.domain.inventory import Host, Inventory
from orchestrator.domain.selector import FACTS, Match, Selector, select
from orchestrator.domain.versions import compare_versions


def host(name: str, *groups: str, **labels: str) -> Host:
    return Host(name=name, address=name, groups=groups, labels=labels)


HOSTS = [
    host("web1", "web", "canary", kernel="7.2.12+deb13-cloud-amd64", rack="r1", cpus="4"),
    host("web2", "web", kernel="6.12.57+deb13-cloud-amd64", rack="r2"),
    host("web10", "web", kernel="6.9.1", rack="r 3"),
    host("db1", "db", kernel="6.17.13", role="primary"),
    host("old1"),
]
INVENTORY = Inventory(
    hosts={one.name: one for one in HOSTS},
    groups={
        "web": ("web1", "web2", "web10"),
        "canary": ("web1",),
        "db": ("db1",),
        "empty": (),
    },
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", "web1 web2 web10 db1 old1"),
        ("web", "web1 web2 web10"),
        ("web & !canary", "web2 web10"),
        ("web&!canary", "web2 web10"),
        ("!web", "db1 old1"),
        ("db | canary", "web1 db1"),
        ("(db | canary) & rack=r1", "web1"),
        ("db | canary & rack=r2", "db1"),
        ("web1 | db1", "web1 db1"),
        ("web?", "web1 web2"),
        ("web[12]", "web1 web2"),
        ("web[!1]*", "web2"),
        ("*1", "web1 db1 old1"),
        ("rack=r*", "web1 web2 web10"),
        ('rack="r 3"', "web10"),
        ("rack!=r1", "web2 web10 db1 old1"),
        ("!!db", "db1"),
        ("role=primary", "db1"),
        ("web & kernel<7", "web2 web10"),
        ("web & kernel>=6.12", "web1 web2"),
        ("web & kernel<6.12", "web10"),
        ("web & kernel<=6.12.57", "web2 web10"),
        ("web & kernel>6.12.57", "web1"),
        ("db & kernel=6.17*", "db1"),
    ],
)
def test_who_is_meant(text: str, names: str) -> None:
    selection = select(text, INVENTORY)
    assert selection.hosts == tuple(names.split())
    assert not selection.undecided


def test_a_fact_not_yet_known_keeps_the_host_and_says_so() -> None:
    selection = select("kernel<7", INVENTORY)
    assert selection.hosts == ("web2", "web10", "db1", "old1")
    assert selection.undecided == {"old1"}, "old1 has no label `kernel` and was not asked"
    assert select("machine=x86_64", INVENTORY).undecided == set(INVENTORY.hosts)
    assert select("!(machine=x86_64)", INVENTORY).undecided == set(INVENTORY.hosts)
    assert select("old1 | machine=x86_64", INVENTORY).undecided == set(INVENTORY.hosts) - {"old1"}
    assert select("web1 & machine=x86_64", INVENTORY).hosts == ("web1",)


def test_facts_decide_and_count_before_labels() -> None:
    facts = {
        "web1": {"kernel": "6.1.0", "machine": "x86_64"},
        "old1": {"kernel": "7.3.4", "machine": "aarch64"},
    }
    selection = select("kernel<7", INVENTORY, facts)
    assert selection.hosts == ("web1", "web2", "web10", "db1")
    assert not selection.undecided
    assert select("machine=aarch64 & (web1 | old1)", INVENTORY, facts).hosts == ("old1",)


@pytest.mark.parametrize(
    ("text", "column", "says", "hint"),
    [
        ("web & !cannary", 8, "no host and no group is called `cannary`", "did you mean `canary`?"),
        ("wbe1", 1, "called `wbe1`", "did you mean `web1`?"),
        ("zzz", 1, "called `zzz`", "known names: web, canary, db"),
        ("rack", 1, "called `rack`", "`rack` is a label: write `rack=...`"),
        ("rak=r1", 1, "label `rak`", "did you mean `rack`?"),
        ("kernal<7", 1, "label `kernal`", "did you mean `kernel`?"),
        ("wbe*", 1, "no host's name matches `wbe*`", "known hosts: web1"),
        ("web1 web2", 6, "`&` or `|` is missing", "web & !canary"),
        ("web &", 6, "a name is missing", "`all`"),
        ("", 1, "a name is missing", "`all`"),
        ("(web", 5, "a `)` is missing", "bracket"),
        ("web)", 4, "`&` or `|` is missing", ""),
        ("kernel<", 8, "a value is missing after `<`", ""),
        ("kernel<seven", 8, "wants a number or version", "use `=`"),
        ("web $ db", 5, "this character means nothing", ""),
        ('rack="open', 6, "a value is missing", ""),
        ("ra*=x", 1, "not a label", "on the right"),
        ("<7", 1, "a name is missing", ""),
    ],
)
def test_mistakes_are_told_with_their_column(text: str, column: int, says: str, hint: str) -> None:
    position = SourcePosition("pb.yaml", 2, 8)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        select(text, INVENTORY, position=position)
    assert f"column {column}:" in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.position == position


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("rack=r9", "the inventory has `rack` as r 3, r1, r2"),
        ("empty", "the group `empty` has no hosts"),
        ("web & db", "no host matches them together"),
        ("!all", "no host matches them together"),
    ],
)
def test_matching_nothing_is_an_error(text: str, hint: str) -> None:
    with pytest.raises(InputError, match="matches no host") as caught:
        select(text, INVENTORY)
    assert hint in caught.value.hint


def test_a_match_is_not_a_truth_value() -> None:
    with pytest.raises(TypeError):
        bool(Selector.parse("all").matches(HOSTS[0]))


def test_nesting_is_bounded() -> None:
    for text in ("(" * 1000 + "web" + ")" * 1000, "!" * 1000 + "web", "web & " * 5000 + "web"):
        with pytest.raises(InputError):
            Selector.parse(text)


def test_the_keys_are_those_that_hosts_are_asked() -> None:
    facts = HostFacts(
        release="7.3.4",
        machine="x86_64",
        hostname="a",
        cpus_online=1,
        mem_total_bytes=1 << 30,
        cma_areas=(CmaArea(name="reserved", size=1, total_pages=1),),
        knows_no_cma=True,
        init="systemd",
        virt="kvm",
        lockdown="none",
        secure_boot=False,
        clocksource="tsc",
    )
    assert set(selector_facts(facts)) == set(FACTS)


@pytest.mark.parametrize(
    ("left", "right", "order"),
    [
        ("6.12", "6.9", 1),
        ("6.12", "6.12.0", 0),
        ("7.2.12+deb13-cloud-amd64", "7.2.12", 0),
        ("7.2.12+deb13-cloud-amd64", "7.2.9+deb13-cloud-amd64", 1),
        ("7.3-rc2", "7.3", -1),
        ("7.3.0-rc2", "7.3.0-rc10", -1),
        ("7.3~rc1", "7.3", -1),
        ("7.3.4+deb13", "7.3.4+deb12", 1),
        ("v7", "7", 0),
        ("seven", "7", None),
        ("7", "", None),
    ],
)
def test_versions(left: str, right: str, order: int | None) -> None:
    assert compare_versions(left, right) == order
    assert compare_versions(right, left) == (None if order is None else -order)


VERSION = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,2}(-rc[0-9]|\+deb1[0-9])?", fullmatch=True)


@given(VERSION, VERSION)
def test_comparisons_agree_with_each_other(have: str, want: str) -> None:
    one = host("a", v=have)
    answers = {
        operator: Selector.parse(f"v{operator}{want}").matches(one) is Match.YES
        for operator in ("<", "<=", ">", ">=")
    }
    assert answers["<"] != answers[">="]
    assert answers[">"] != answers["<="]


NAMES = st.sampled_from(["web", "db1", "canary", "machine=x86_64", "kernel<7", "rack!=r1"])
TERM = st.recursive(
    NAMES,
    lambda inner: st.one_of(
        inner.map(lambda term: f"!({term})"),
        st.tuples(inner, st.sampled_from(["&", "|"]), inner).map(lambda parts: f"({' '.join(parts)})"),
    ),
    max_leaves=6,
)


@given(TERM, TERM)
def test_de_morgan_holds_with_unknowns(left: str, right: str) -> None:
    for one in HOSTS:
        negated = Selector.parse(f"!(({left}) & ({right}))").matches(one)
        assert negated is Selector.parse(f"!({left}) | !({right})").matches(one)


@given(st.text(alphabet="ab&|!()<>=\"'*[] .\n", max_size=30))
def test_any_text_parses_or_is_an_input_error(text: str) -> None:
    try:
        Selector.parse(text).matches(HOSTS[0])
    except InputError as error:
        assert "column" in error.message
