from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_pretrain.data import prepare
from ds_pretrain.data.indexed import TokenFile
from ds_pretrain.data.prepare import prepare_shard
from ds_pretrain.data.publish import partial_folder, publish
from ds_pretrain.data.tokenizer import save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.errors import DataError

BYTES_OF_DISK = 256 << 10


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shared") / "tokenizer"
    save_tokenizer(train_tokenizer([("words", 1.0)], TokenizerTraining(258)), folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """200,000 tokens of two bytes: more than the small disk holds."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{number:0999}"}}\n' for number in range(200)))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={BYTES_OF_DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_that_fills_up_is_named_and_the_work_goes_on_once_it_is_larger(
    tmp_path: Path, corpus: Path, disk: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", 20_000)
    monkeypatch.setattr(prepare, "_COMMIT_SECONDS", 0.0)
    with pytest.raises(DataError, match=r"mine\.partial/0-of-1/train\.bin: cannot be written: No space left on device"):
        prepare.prepare([str(corpus)], disk / "mine", tokenizer=tokenizer, workers=1)
    assert [path.name for path in disk.iterdir()] == ["mine.partial"]
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    report = prepare.prepare([str(corpus)], disk / "mine", tokenizer=tokenizer, workers=1)
    whole = prepare.prepare([str(corpus)], tmp_path / "whole", tokenizer=tokenizer, workers=1)
    assert report.train.bin_sha256 == whole.train.bin_sha256
    assert report.train.idx_sha256 == whole.train.idx_sha256


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As a full disk, where no file system may be mounted: writing beyond ``size`` fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_merge_that_cannot_write_leaves_nothing_and_may_be_repeated(
    tmp_path: Path, corpus: Path, tokenizer: str
) -> None:
    output = tmp_path / "out" / "mine"
    for index in range(2):
        prepare_shard([str(corpus)], output, (index, 2), tokenizer=tokenizer, workers=1)
    with files_no_larger_than(300_000), pytest.raises(DataError, match=r"mine: cannot be written: File too large"):
        publish(output)
    assert [path.name for path in output.parent.iterdir()] == ["mine.partial"]
    publish(output)
    assert TokenFile.open(output).num_tokens == 200_000
    assert not partial_folder(output).exists()
