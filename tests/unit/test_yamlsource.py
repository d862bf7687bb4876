"""YAML with positions: what is accepted, and where each mistake is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import InputError, SourcePosition
from orchestrator.loading import yamlsource
from orchestrator.loading.yamlsource import read_source


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(folder: Path, text: str | bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        read_source(written(folder, text), "playbook")
    assert caught.value.hint
    return caught.value


def place(error: InputError) -> tuple[int, int]:
    assert error.position is not None
    return error.position.line, error.position.column


def test_values_keys_and_positions(tmp_path: Path) -> None:
    path = written(tmp_path, "a: 1\nlist:\n  - x\n  - {deep: [true, ~]}\n")
    source = read_source(path, "playbook")
    assert source.data == {"a": 1, "list": ["x", {"deep": [True, None]}]}
    assert source.at(("list", 1, "deep", 0)) == SourcePosition(str(path), 4, 13)
    assert source.at_key(("list", 1, "deep")) == SourcePosition(str(path), 4, 6)
    assert source.at(("list", 1, "missing")) == SourcePosition(str(path), 4, 5), (
        "the innermost part that is there"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-11-04", "2026-11-04"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("true", True),
        ("null", None),
        ("''", ""),
        ("'5'", "5"),
        ("-3", -3),
        ("1e3", 1000.0),
        (".inf", ".inf"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_are_those_of_the_core_schema(tmp_path: Path, text: str, value: object) -> None:
    data = read_source(written(tmp_path, f"key: {text}"), "playbook").data
    assert data == {"key": value}


def test_numbers_print_as_they_were_written(tmp_path: Path) -> None:
    data = read_source(written(tmp_path, "a: 6.10\nb: 022\n"), "inventory").data
    assert isinstance(data, dict)
    assert (str(data["a"]), str(data["b"])) == ("6.10", "022")


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("a: [1, 2", (1, 9), "not valid YAML"),
        ("a: b: c", (1, 5), "mapping values are not allowed"),
        ("a:\n\tb: 1", (2, 1), "cannot start any token"),
        ("a: 1\nb: 2\na: 3\n", (3, 1), "`a` is here twice (first in line 1)"),
        ("a: {x: 1, x: 2}", (1, 11), "`x` is here twice"),
        ("a: *nothing", (1, 4), "undefined alias"),
        ("a: &x [*x]", (1, 4), "nested more than 64 deep"),
        ("a: &x {<<: *x}", (1, 4), "nested more than 64 deep"),
        ("{[1]: 2}", (1, 2), "a key must be a text"),
        ("a: !!python/object:os.system x", (1, 4), "not known here"),
        ("a: !secret x", (1, 4), "the tag !secret is not known"),
        ("a: 1\n---\nb: 2", (2, 1), "more than one document"),
        ("", (1, 1), "the playbook is empty"),
        ("# only a comment\n", (1, 1), "the playbook is empty"),
        ("- a\n- b\n", (1, 1), "not a mapping"),
        ("just text", (1, 1), "not a mapping"),
        ("a: x\x01y", (1, 5), "does not allow: #x0001"),
        (b"a: 1\nb: \xff\xfe", (2, 4), "not UTF-8 text: byte 0xff"),
        ("<<: 5", (1, 5), "`<<` wants a mapping"),
    ],
)
def test_each_mistake_has_its_place(
    tmp_path: Path, text: str | bytes, at: tuple[int, int], says: str
) -> None:
    error = refused(tmp_path, text)
    assert says in error.message
    assert place(error) == at


@pytest.mark.parametrize("depth", [70, 5000])
def test_deep_nesting_ends_in_an_error(tmp_path: Path, depth: int) -> None:
    assert "nested more than 64 deep" in refused(tmp_path, "a: " + "[" * depth + "]" * depth).message


def test_an_alias_bomb_is_bounded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "expands to more than" in refused(tmp_path, "\n".join(lines)).message


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamlsource, "MAX_BYTES", 100)
    assert "larger than 100 bytes" in refused(tmp_path, "a: " + "x" * 100).message


def test_aliases_and_merges(tmp_path: Path) -> None:
    text = "base: &base {user: root, port: 22}\none: {<<: *base, port: 23}\ntwo: *base\n"
    source = read_source(written(tmp_path, text), "inventory")
    assert source.data == {
        "base": {"user": "root", "port": 22},
        "one": {"user": "root", "port": 23},
        "two": {"user": "root", "port": 22},
    }
    assert source.at(("one", "user")).line == 1, "a merged value stands where it was written"
    assert source.at(("one", "port")).line == 2


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot read the playbook"):
        read_source(tmp_path / name, "playbook")


@given(st.text(alphabet="ab:{}[]-&*!|>'\"\n\t #,?%@`<\\\x00\u0085é", max_size=60))
def test_any_text_is_data_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert isinstance(read_source(path, "playbook").data, dict)
    except InputError as error:
        assert error.position is not None
        assert error.position.line >= 1 and error.position.column >= 1
