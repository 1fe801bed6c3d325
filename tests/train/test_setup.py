from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import recipe

from ds_pretrain.data.indexed import idx_path
from ds_pretrain.data.manifest import describe, write_manifest
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.data.tokenizer import save_tokenizer
from ds_pretrain.data.train_tokenizer import TokenizerTraining, train_tokenizer
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.errors import DataError
from ds_pretrain.train.setup import prepare_run
from ds_pretrain.train.stop import StopRequest


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """A job of this process alone; other tests' one where this process has it."""
    met = dist.is_initialized()
    if not met:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, 0, 1, torch.device("cpu"))
    if not met:
        dist.destroy_process_group()


def test_the_index_of_a_corpus_without_a_manifest_is_read_at_the_start(
    tmp_path: Path, ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(train_tokenizer([("words", 1.0)], TokenizerTraining(258)), tmp_path / "tokenizer")
    prefix = tmp_path / "corpus"
    with TokenFileWriter(prefix, "uint16") as writer:
        for _ in range(20):
            writer.append(np.ones(1000))
    run = recipe(
        run={"output_dir": str(tmp_path)},
        data={"train": [{"path": str(prefix)}]},
        tokenizer={"path": str(tmp_path / "tokenizer")},
    )
    prepare_run(run, ranks, StopRequest())
    assert "corpus has no manifest: its whole index is checked" in capsys.readouterr().out
    described = describe(prefix, sources=[], tokenizer=str(tmp_path / "tokenizer"), vocab_size=258, eos_id=0)
    with idx_path(prefix).open("r+b") as file:
        file.seek(34)
        file.write(struct.pack("<2i", 1001, 999))
    with pytest.raises(DataError, match=r"corpus\.idx: sequence 1: begins at byte 2,000"):
        prepare_run(run, ranks, StopRequest())
    write_manifest(prefix, described)  # checked when it was written
    capsys.readouterr()
    prepare_run(run, ranks, StopRequest())
    assert "whole index" not in capsys.readouterr().out
