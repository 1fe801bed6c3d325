"""A run's newest checkpoint as a folder that transformers loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ds_pretrain.config import load_recipe
from ds_pretrain.data.tokenizer import load_tokenizer
from ds_pretrain.engine.checkpoint_files import damage, list_checkpoints, read_manifest
from ds_pretrain.engine.consolidate import whole_weights
from ds_pretrain.errors import CheckpointError, UserError
from ds_pretrain.model.build import build_model, model_config
from ds_pretrain.train.corpus import resolve_corpus
from ds_pretrain.train.history import is_rejected, read_history
from ds_pretrain.train.run_folder import CHECKPOINTS, CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MODULE_PREFIX = "model."


def export_run(run: Path, to: Path) -> str:
    """Writes config, weights (safetensors, fp32) and tokenizer.

    Args:
        run: folder of a run.
        to: new folder.

    Returns:
        A sentence on what was written.

    Raises:
        UserError: no run, no whole checkpoint, or ``to`` holds something.
    """
    from transformers.utils import logging

    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not a run's folder (it has no {CONFIG}); give <run.output_dir>/<run.name>")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to: {to} exists and is not empty; give a new folder")
    recipe = load_recipe([run / CONFIG])
    checkpoint = _newest(run)
    logging.disable_progress_bar()
    corpus = resolve_corpus(recipe)
    config = model_config(recipe.model, corpus.vocabulary, recipe.data.max_seq_len)
    model = build_model(recipe.model, config)
    weights = {name.removeprefix(_MODULE_PREFIX): weight for name, weight in whole_weights(checkpoint).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys)
    if unexpected or set(missing) - tied:
        raise CheckpointError(
            f"{checkpoint} does not fit the model of {run / CONFIG}: missing {missing}, unexpected {unexpected}"
        )
    model.tie_weights()
    model.config.use_cache = True
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if corpus.tokenizer is not None:
        load_tokenizer(corpus.tokenizer).save_pretrained(partial)
    if to.exists():
        to.rmdir()
    os.replace(partial, to)
    return f"{checkpoint} (step {read_manifest(checkpoint)['step']:,}) is exported to {to}"


def continue_text(folder: Path, prompt: str, max_new_tokens: int) -> str:
    """How an exported model continues a text, most likely token by token; a masked one fills in what is hidden.

    Args:
        folder: what ``export_run`` wrote.
        prompt: the beginning, or a text with mask tokens.
        max_new_tokens: length of the continuation, in tokens.

    Returns:
        Prompt and continuation, or the text filled in.

    Raises:
        UserError: no exported model, or no mask token for a masked one to fill in.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not an exported model (it has no config.json); ds-pretrain export makes one")
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(str(folder))
    if any(name.endswith("ForMaskedLM") for name in AutoConfig.from_pretrained(folder).architectures or ()):
        return _fill_in(folder, tokenizer, prompt)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, repetition_penalty=1.2)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def _fill_in(folder: Path, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    from transformers import AutoModelForMaskedLM

    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)["input_ids"]
    hidden = ids == tokenizer.mask_token_id
    if not hidden.any():
        raise UserError(
            f"PROMPT: {folder} holds a masked language model, which fills in what is hidden; "
            f"write {tokenizer.mask_token} for a token to be filled in"
        )
    logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(input_ids=ids).logits
    ids[hidden] = logits[hidden][:, : len(tokenizer)].argmax(-1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def _newest(run: Path) -> Path:
    checkpoints, history = run / CHECKPOINTS, read_history(run)
    for _, folder in reversed(list_checkpoints(checkpoints)):
        if not is_rejected(folder, history) and not damage(folder):
            return folder
    raise CheckpointError(f"{checkpoints}: no whole checkpoint; train the run first")
