from __future__ import annotations

import os
from multiprocessing import active_children
from pathlib import Path

import pytest

from ds_pretrain.data import job_tokenizer
from ds_pretrain.data.documents import Selection
from ds_pretrain.data.job_tokenizer import spread, trained_tokenizer
from ds_pretrain.data.readers import read_source
from ds_pretrain.data.sources import SourceFile, list_files
from ds_pretrain.data.tokenizer import load_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining
from ds_pretrain.errors import DataError


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of 100,000 bytes is read, in parts of 1,000: one at every 10,000."""
    monkeypatch.setattr(job_tokenizer, "_READ_BYTES", 10_000)
    monkeypatch.setattr(job_tokenizer, "_PART_BYTES", 1_000)


def test_large_files_that_can_be_entered_are_read_in_evenly_spaced_parts() -> None:
    files = [SourceFile(Path("a.jsonl"), 25_000, "jsonl"), SourceFile(Path("b.jsonl"), 75_000, "jsonl")]
    parts = spread(files)
    assert [(part.path.name, part.start) for part in parts] == [
        *[("a.jsonl", start) for start in (0, 10_000, 20_000)],
        *[("b.jsonl", start) for start in range(5_000, 75_000, 10_000)],
    ]
    assert {part.end - part.start for part in parts} == {1_000}


def test_small_files_are_taken_by_their_place_and_large_closed_ones_always() -> None:
    small = [SourceFile(Path(f"{number}.txt"), 500) for number in range(100)]
    closed = [SourceFile(Path("z.jsonl.gz"), 20_000, "jsonl", "gzip"), SourceFile(Path("p.parquet"), 30_000, "parquet")]
    assert spread([*small, *closed]) == (*small[::20], *closed)
    assert spread(small[:20]) == tuple(small[:20])


def test_a_tokenizer_learns_from_parts_all_over_the_text(tmp_path: Path) -> None:
    lines = [f'{{"text": "{"early" if number < 1000 else "late"} {"x" * 75}"}}\n' for number in range(2000)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    files = list_files([str(tmp_path / "a.jsonl")])
    read = [document.text for part in spread(files) for document in read_source(part, "text")]
    assert 50 < len(read) < 200
    assert 0.4 < sum("early" in str(text) for text in read) / len(read) < 0.6
    told: list[tuple[int, int]] = []
    folder = trained_tokenizer(
        tmp_path, files, Selection(), TokenizerTraining(300), 1, lambda *progress: told.append(progress)
    )
    vocabulary = load_tokenizer(str(folder)).get_vocab()
    assert {"early", "late"} <= set(vocabulary)
    assert told[-1] == (sum(part.end - part.start for part in spread(files)), told[0][1])
    assert len(told) > 50


def test_a_training_that_is_broken_off_leaves_no_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")  # of which the last line never comes
    files = (SourceFile(tmp_path / "a.jsonl", 10_000, "jsonl"),)
    writer = os.open(tmp_path / "a.jsonl", os.O_RDWR)
    before = set(active_children())

    def kill(*_: int) -> None:
        for process in set(active_children()) - before:
            process.kill()

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    try:
        for told, error in ((kill, DataError), (stop, KeyboardInterrupt)):
            os.write(writer, b'{"text": "words"}\n' * 10)
            with pytest.raises(error):
                trained_tokenizer(tmp_path, files, Selection(), TokenizerTraining(300), 1, told)
            assert set(active_children()) <= before
    finally:
        os.close(writer)
    assert list(tmp_path.glob("tokenizer-*")) == []


def test_what_is_wrong_with_the_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"other": "words"}\n')
    files = list_files([str(tmp_path / "a.jsonl")])
    with pytest.raises(DataError, match=r"a\.jsonl: line 1: no field 'text'"):
        trained_tokenizer(tmp_path, files, Selection(), TokenizerTraining(300), 1, None)
