from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pretrain.data.documents import LeftOut, Selection, choose_documents
from ds_pretrain.data.sources import Kind, SourceFile, list_files, parse_shard, shard_of
from ds_pretrain.errors import DataError, UserError


def texts(*inputs: Path | str, text_field: str = "text", left_out: LeftOut | None = None) -> list[str]:
    files = list_files([str(name) for name in inputs])
    chosen = choose_documents(files, Selection(text_field), left_out=left_out or LeftOut())
    return ["".join(document.text) for document in chosen]


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


def test_inputs_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="nowhere: not found; allowed: a file, a folder, a glob pattern, hf:NAME or python-stdlib"
    ):
        list_files([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match=r"no text in this folder; allowed are files that end in \.txt"):
        list_files([str(tmp_path)])
    with pytest.raises(DataError, match="no input"):
        list_files([])
    for name in ("a.zip", "a.json", "a.txt.bz2", "a.parquet.gz"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=rf"{name}: files of this kind are not read; allowed: \.txt .* \.parquet"):
            list_files([str(tmp_path / name)])


def test_the_standard_library_is_listed() -> None:
    files = list_files(["python-stdlib"])
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = [file.path.relative_to(folder).as_posix() for file in files]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not any("site-packages" in name or "dist-packages" in name or "__pycache__" in name for name in names)
    assert [file.path for file in files] == sorted(file.path for file in files)
    assert all(file.skip_undecodable for file in files)


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from(["text", "jsonl", "parquet"])), min_size=1, max_size=8
    ),
    count=st.integers(1, 9),
)
def test_shards_laid_end_to_end_are_the_whole(sizes: list[tuple[int, Kind]], count: int) -> None:
    files = [SourceFile(Path(str(number)), size, kind) for number, (size, kind) in enumerate(sizes)]
    shards = [shard_of(files, index, count) for index in range(count)]
    covered = [(file.path, byte) for shard in shards for file in shard for byte in range(file.start, file.end)]
    assert covered == [(file.path, byte) for file in files for byte in range(file.size)]
    assert all(file.start == 0 and file.end == file.size for shard in shards for file in shard if file.kind == "text")


def test_shards_of_one_jsonl_file_are_alike_in_bytes() -> None:
    file = SourceFile(Path("a.jsonl"), 1000, "jsonl")
    assert [(part.start, part.end) for index in range(4) for part in shard_of([file], index, 4)] == [
        (0, 250),
        (250, 500),
        (500, 750),
        (750, 1000),
    ]


def test_a_shard_is_read_from_its_name() -> None:
    assert parse_shard("3/64") == (3, 64)
    for text in ("64/64", "3", "a/b", "-1/4", "1/0"):
        with pytest.raises(UserError, match=r"--shard: found .*; allowed: INDEX/COUNT, the index from 0: 0/\d+ to"):
            parse_shard(text)
