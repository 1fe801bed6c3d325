from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from ds_pretrain.data import sources
from ds_pretrain.data.sources import SkipCounts, SourceFile, list_files, read_documents
from ds_pretrain.errors import DataError


def texts(*inputs: Path | str, text_field: str = "text", skipped: SkipCounts | None = None) -> list[str]:
    files = list_files([str(name) for name in inputs])
    return [document.text for document in read_documents(files, text_field=text_field, skipped=skipped)]


def test_a_folder_is_read_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "one.md").write_text("b/one")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c.py").write_text("c")
    (tmp_path / "d.jsonl").write_text('{"text": "d1"}\n{"text": "d2"}\n')
    (tmp_path / "picture.png").write_bytes(b"\xff\x00")
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert texts(tmp_path) == ["a", "b/one", "c", "d1", "d2"]


def test_inputs_keep_their_order_and_are_read_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "b.txt", tmp_path) == ["b.txt", "a.txt"]


def test_a_glob_pattern_is_expanded(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "c.md", "deep/d.txt"):
        (tmp_path / name).write_text(name)
    assert texts(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "deep/d.txt"]


def test_a_file_named_outright_may_have_any_ending(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("words")
    assert texts(tmp_path / "notes") == ["words"]


def test_text_is_kept_to_the_byte_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffeins\r\nzwei ü\r\n".encode())
    assert texts(tmp_path) == ["eins\r\nzwei ü\r\n"]


def test_jsonl_takes_the_field_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "text": "x"}\n\n{"body": "two\\nlines"}')
    assert texts(tmp_path, text_field="body") == ["one", "two\nlines"]


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.txt").touch()
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n{"text": "full"}\n')
    skipped = SkipCounts()
    assert texts(tmp_path, skipped=skipped) == ["full"]
    assert skipped == SkipCounts(empty=3, undecodable=0)


def test_source_bytes_add_up_to_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("äöü")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    files = list_files([str(tmp_path)])
    assert sum(document.source_bytes for document in read_documents(files)) == sum(file.size for file in files) == 38


LINES = "".join(f'{{"text": "line {number}"}}\n' for number in range(1, 17))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"body": "x", "id": 1}',
            "a.jsonl: line 17: no field 'text'; its fields: 'body', 'id'; choose .*--text-field",
        ),
        (b'{"text": 3}', "a.jsonl: line 17: field 'text' is a int; allowed: a string"),
        (b'{"text": null}', "a.jsonl: line 17: field 'text' is a NoneType"),
        (b'["text"]', "a.jsonl: line 17: found a list; allowed: an object"),
        (b'{"text": "x"', "a.jsonl: line 17: not JSON: .* column 13"),
        (b'{"text": "\\ud800"}', "a.jsonl: line 17: field 'text': half a surrogate pair at character 0"),
        (b"[" * 200_000, "a.jsonl: line 17: (JSON nested too deeply|not JSON)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode() + line + b"\n")
    with pytest.raises(DataError, match=message):
        texts(tmp_path)


def test_invalid_utf8_names_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff bad")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 5; convert"):
        texts(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: line 2: not UTF-8 at byte 24"):
        texts(tmp_path / "b.jsonl")


def test_undecodable_files_of_a_lenient_source_are_counted(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    skipped = SkipCounts()
    files = [SourceFile(tmp_path / "latin.py", 4, skip_undecodable=True)]
    assert list(read_documents(files, skipped=skipped)) == []
    assert skipped == SkipCounts(empty=0, undecodable=1)


def test_a_document_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 20)
    (tmp_path / "a.txt").write_text("x" * 21)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": "' + "x" * 20 + '"}\n')
    with pytest.raises(DataError, match=r"a\.txt: one document of more than 20 bytes; split the file"):
        texts(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"b\.jsonl: line 2: more than 20 bytes"):
        texts(tmp_path / "b.jsonl")


def test_inputs_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="nowhere: not found; allowed: a file, a folder, a glob pattern or python-stdlib"
    ):
        list_files([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match=r"no text in this folder; allowed are files that end in \.txt"):
        list_files([str(tmp_path)])
    with pytest.raises(DataError, match="no input"):
        list_files([])
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match=r"a\.parquet: \.parquet files are not read; allowed: plain text"):
        list_files([str(tmp_path / "a.parquet")])


def test_the_standard_library_is_listed() -> None:
    files = list_files(["python-stdlib"])
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = [file.path.relative_to(folder).as_posix() for file in files]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not any("site-packages" in name or "dist-packages" in name or "__pycache__" in name for name in names)
    assert [file.path for file in files] == sorted(file.path for file in files)
    assert all(file.skip_undecodable for file in files)
