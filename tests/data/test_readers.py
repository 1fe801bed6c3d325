from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ds_pretrain.data import readers
from ds_pretrain.data.documents import LeftOut, Selection, choose_documents
from ds_pretrain.data.readers import read_source
from ds_pretrain.data.sources import SourceFile, list_files, shard_of
from ds_pretrain.errors import DataError


def texts(*inputs: Path | str, text_field: str = "text", left_out: LeftOut | None = None, **options: Any) -> list[str]:
    files = list_files([str(name) for name in inputs], **options)
    return read(files, text_field, left_out)


def read(files: Any, text_field: str = "text", left_out: LeftOut | None = None) -> list[str]:
    chosen = choose_documents(files, Selection(text_field), left_out=left_out or LeftOut())
    return ["".join(document.text) for document in chosen]


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
    left_out = LeftOut()
    assert texts(tmp_path, left_out=left_out) == ["full"]
    assert left_out == LeftOut(empty=3)


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
    left_out = LeftOut()
    assert read([SourceFile(tmp_path / "latin.py", 4, skip_undecodable=True)], left_out=left_out) == []
    assert left_out == LeftOut(undecodable=1)


DOCUMENTS = [f'document {number}, with a comma,\nand a "second" line: ünïcödé 🙂' for number in range(40)]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        rows.writerows([["id", "text"], *(["1", text] for text in DOCUMENTS)])


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": [1] * 40, "text": DOCUMENTS}), path, row_group_size=7)


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_csv, ".parquet": write_parquet}


def compress(path: Path, ending: str) -> Path:
    target = path.with_name(path.name + ending)
    if ending == ".gz":  # of two members, as files that were put together are
        data = path.read_bytes()
        target.write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]))
    else:
        with pa.CompressedOutputStream(str(target), "zstd") as stream:
            stream.write(path.read_bytes())
    path.unlink()
    return target


@pytest.mark.parametrize("ending", [*WRITERS, ".jsonl.gz", ".jsonl.zst", ".csv.gz", ".csv.zst", ".tsv.gz"])
def test_every_kind_of_records_gives_its_documents(tmp_path: Path, ending: str) -> None:
    plain, _, compression = ending[1:].partition(".")
    path = tmp_path / f"a.{plain}"
    WRITERS[f".{plain}"](path)
    if compression:
        path = compress(path, f".{compression}")
    assert texts(path) == DOCUMENTS
    assert texts(tmp_path) == DOCUMENTS


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_text_is_one_document(tmp_path: Path, ending: str) -> None:
    (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS))
    assert texts(compress(tmp_path / "a.txt", ending)) == ["\n".join(DOCUMENTS)]


@pytest.mark.parametrize("ending", [*WRITERS, ".csv.gz"])
def test_reading_goes_on_behind_any_record(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending.removesuffix('.gz')}"
    WRITERS[path.suffix](path)
    (source,) = list_files([str(compress(path, ".gz") if ending.endswith(".gz") else path)])
    whole = list(read_source(source, "text"))
    for skipped in (1, 6, 7, 8, 39, 40):
        assert list(read_source(source, "text", whole[skipped - 1].record)) == whole[skipped:]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv", "saved"])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_shards_read_what_the_whole_holds(tmp_path: Path, ending: str, count: int) -> None:
    path = tmp_path / f"a{ending}"
    if ending == "saved":
        datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(path)
    else:
        WRITERS[ending](path)
    files = list_files([str(path)])
    parts = [shard_of(files, index, count) for index in range(count)]
    assert [text for part in parts for text in read(part)] == DOCUMENTS
    assert len([part for part in parts if read(part)]) > (count > 1 and ending != ".csv")


def test_positions_rise_to_the_size_of_the_source(tmp_path: Path) -> None:
    for ending, write in WRITERS.items():
        write(tmp_path / f"a{ending}")
        (source,) = list_files([str(tmp_path / f"a{ending}")])
        positions = [document.position for document in read_source(source, "text")]
        assert positions == sorted(positions)
        assert positions[-1] <= source.size
    (jsonl,) = list_files([str(tmp_path / "a.jsonl")])
    assert list(read_source(jsonl, "text"))[-1].position == jsonl.size


def test_saved_and_local_data_sets_are_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": DOCUMENTS, "id": [1] * 40})
    data.save_to_disk(tmp_path / "saved")
    parts = datasets.DatasetDict({"train": data.select(range(30)), "test": data.select(range(30, 40))})
    parts.save_to_disk(tmp_path / "splits")
    (tmp_path / "local").mkdir()
    write_parquet(tmp_path / "local" / "a.parquet")
    assert texts(tmp_path / "saved") == texts(tmp_path / "saved", streaming=True) == DOCUMENTS
    assert texts(tmp_path / "splits", split="test") == DOCUMENTS[30:]
    local = f"hf:{tmp_path / 'local'}"
    assert texts(local, split="train") == texts(local, split="train", streaming=True) == DOCUMENTS
    assert texts(local, streaming=True) == DOCUMENTS  # it has one split only
    with pytest.raises(DataError, match=r"splits: found split None; allowed: train, test; choose one with --split"):
        texts(tmp_path / "splits")
    with pytest.raises(DataError, match=r"nowhere: cannot be loaded as a data set: .*--split"):
        texts(f"hf:{tmp_path / 'nowhere'}")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"local: no field 'body'; its fields: 'id', 'text'; .*--text-field"):
            texts(local, split="train", text_field="body", streaming=streaming)


def test_a_stream_goes_on_behind_any_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    (source,) = list_files([f"hf:{tmp_path}"], split="train", streaming=True)
    whole = list(read_source(source, "text"))
    assert [document.text for document in whole] == DOCUMENTS
    assert list(read_source(source, "text", whole[10].record)) == whole[11:]


def _parquet_null(path: Path) -> None:
    pq.write_table(pa.table({"text": [*DOCUMENTS[:16], None]}), path, row_group_size=5)


def _parquet_number(path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), path)


def _parquet_bytes(path: Path) -> None:
    table = pa.table({"text": pa.array([b"fine", b"\xff"]).cast(pa.binary()).view(pa.string())})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.csv", lambda p: p.write_text("id,body\n1,x\n"), "a.csv: line 1: no field 'text'; its fields: 'id', 'body'"),
        (
            "a.csv",
            lambda p: p.write_text("id,text\n" + "1,x\n" * 15 + "1\n"),
            "a.csv: line 17: 1 fields, and 'text' is number 2; mend the line",
        ),
        (
            "a.csv",
            lambda p: p.write_text('id,text\n1,"never closed\n'),
            "a.csv: line 2: not CSV: unexpected end of data",
        ),
        ("a.csv", lambda p: p.write_bytes(b"id,text\n1,\xff\n"), "a.csv: line 2: not UTF-8 at byte 10"),
        ("a.parquet", _parquet_null, "a.parquet: row 17: field 'text' is a NoneType; allowed: a string"),
        ("a.parquet", _parquet_number, "a.parquet: field 'text' is int64; allowed: a string"),
        ("a.parquet", _parquet_bytes, "a.parquet: row group 0: field 'text' is not UTF-8"),
        ("a.parquet", lambda p: p.write_bytes(b"PAR1 nothing"), "a.parquet: not a whole Parquet file"),
        ("a.jsonl.gz", lambda p: p.write_bytes(b"plain"), r"a.jsonl.gz: cannot be read: .*damaged: copy it again"),
        (
            "a.txt.gz",
            lambda p: p.write_bytes(gzip.compress(b"text " * 1000)[:-20]),
            "a.txt.gz: cannot be read: .*runcated",
        ),
    ],
)
def test_damaged_files_are_named_with_the_place(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_the_line_of_an_error_is_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES + '{"body": "x"}\n')
    (source,) = list_files([str(path)])
    for bad in ('{"body": "x"}\n', '{"text": "\xff"}\n'):
        path.write_bytes((LINES + bad).encode("latin-1"))
        for start in range(1, len(LINES)):
            with pytest.raises(DataError, match=r"a\.jsonl: line 17: "):
                read([replace(source, start=start)])


def test_a_long_text_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 20)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 7)
    long = "\ufeff" + "ünïcödé 🙂" * 9
    (tmp_path / "a.txt").write_text(long)
    (source,) = list_files([str(tmp_path)])
    (document,) = read_source(source, "text")
    assert not isinstance(document.text, str)
    blocks = list(document.text)
    assert "".join(blocks) == "".join(document.text) == long[1:]
    assert max(map(len, blocks)) <= 8
    (tmp_path / "b.txt").write_bytes(b"x" * 30 + b"\xc3")
    with pytest.raises(DataError, match=r"b\.txt: not UTF-8 at byte 30"):
        texts(tmp_path / "b.txt")


def test_a_record_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 20)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": "' + "x" * 20 + '"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: line 2: more than 20 bytes; split it, or make it a text file"):
        texts(tmp_path / "b.jsonl")
    pq.write_table(pa.table({"text": ["short", "x" * 21]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: row 2: field 'text' has 21 characters; allowed: 20"):
        texts(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text('text\n"x\n' + "x\n" * 20 + '"\n')
    with pytest.raises(DataError, match=r"d\.csv: line \d+: not CSV: field larger than field limit"):
        texts(tmp_path / "d.csv")
