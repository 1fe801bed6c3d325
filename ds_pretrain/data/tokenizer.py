"""Tokenizers: loading one, and saving one that was trained."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from ds_pretrain.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
_HUB_SECONDS = 10.0


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder, from the local cache, or by name from the hub.

    Args:
        path: a folder written by transformers, or a hub name.

    Raises:
        DataError: there is none, it is not a fast one, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    looks_local = folder.is_absolute() or path.startswith((".", "~")) or path.endswith("/") or path.count("/") > 1
    if not folder.is_dir() and (looks_local or folder.exists()):
        raise DataError(f"tokenizer {path}: no such folder; allowed: a folder that transformers saved, or a hub name")
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except OSError:
            if folder.is_dir():
                raise
            _check_hub(path)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except DataError:
        raise
    except Exception as error:  # transformers raises anything, from OSError to KeyError, for a folder it cannot read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"tokenizer {path}: cannot be loaded: {reason}; allowed: a folder with a fast tokenizer (tokenizer.json)"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(f"tokenizer {path}: is a slow one; allowed: fast tokenizers (with a tokenizer.json)")
    return tokenizer


def end_of_document_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends a document: end of sequence, or the separator where there is none (BERT).

    Raises:
        DataError: the tokenizer has neither.
    """
    for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return int(token_id)
    raise DataError(
        f"tokenizer {tokenizer.name_or_path}: no end-of-document token; set eos_token in its tokenizer_config.json"
    )


def save_tokenizer(tokenizer_json: str, output_dir: Path) -> None:
    """Write a trained tokenizer as a folder that transformers loads; it appears whole or not at all.

    Args:
        tokenizer_json: from ``train_bpe``.
        output_dir: the folder to make; it may not exist.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json),
        eos_token=EOS_TOKEN,
        mask_token=MASK_TOKEN,
        clean_up_tokenization_spaces=False,
    )
    partial = output_dir.with_name(f".{output_dir.name}.{uuid.uuid4().hex}.partial")
    try:
        tokenizer.save_pretrained(partial)
        os.rename(partial, output_dir)
    except OSError as error:
        raise DataError(f"{output_dir}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_hub(name: str) -> None:
    """Ask the hub once whether it has ``name``: without a network transformers itself would retry for a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:  # the errors of whichever HTTP client the hub's library uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"tokenizer {name}: no such folder, not in the local cache, and the hub does not give it ({reason}); "
            "give a folder that transformers saved, or train one (train:8192)"
        ) from error
