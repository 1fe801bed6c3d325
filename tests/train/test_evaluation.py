from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import recipe

from ds_pretrain.data.inputs import InputFormat
from ds_pretrain.data.manifest import describe, write_manifest
from ds_pretrain.data.token_writer import TokenFileWriter
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.errors import DataError
from ds_pretrain.train.evaluation import Evaluator


def test_an_id_beyond_the_vocabulary_in_validation_text_without_a_manifest_is_placed(tmp_path: Path) -> None:
    prefix = tmp_path / "val"
    with TokenFileWriter(prefix, np.uint16) as writer:
        writer.append(np.arange(150, dtype=np.uint16))
    one_rank = Ranks(0, 1, 0, 1, torch.device("cpu"))

    def evaluator(vocab_size: int) -> Evaluator:
        return Evaluator([("val", prefix)], recipe(), one_rank, InputFormat(64), vocab_size)

    evaluator(129)  # two windows, and the target of the second's last position
    with pytest.raises(DataError, match=r"val\.bin: token 100, in document 0: found id 100; allowed: 0 to 99"):
        evaluator(100)
    write_manifest(prefix, describe(prefix, sources=["x"], tokenizer="t", vocab_size=150, eos_id=0))
    evaluator(100)  # the vocabularies were compared before
