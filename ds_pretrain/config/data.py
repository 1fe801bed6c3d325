"""Recipe sections ``run``, ``model``, ``tokenizer`` and ``data``."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ds_pretrain.config.base import Count, Index, Number, PositiveNumber, Section, Whole


class Run(Section):
    """Which run this is, and where it is written."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=128)] = "run"
    """Name of the run's folder: letters, digits, dot, dash and underscore."""
    output_dir: str = "runs"
    """Folder of all runs; the run is written to ``<output_dir>/<name>``."""
    seed: Index = 1234
    """Seeds weights, dropout and the order of the data."""
    deterministic: bool = False
    """Deterministic kernels, for runs that repeat bit for bit on GPUs; slower."""


class Model(Section):
    """The model, by architecture and config, or a pretrained one."""

    architecture: str | None = None
    """Any causal language model type of transformers, e.g. ``gpt2`` or ``llama``; its weights are drawn anew."""
    config: dict[str, Any] = {}
    """Fields of that type's transformers config; vocabulary and positions come from the recipe."""
    pretrained: str | None = None
    """A transformers folder or hub name to continue from, instead of ``architecture``."""
    objective: Literal["causal_lm", "masked_lm"] = "causal_lm"
    """What is predicted."""
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "flex_attention", "eager"] = "auto"
    """Attention of transformers; ``auto`` leaves the choice to it (SDPA where the model has it)."""
    pad_vocab_multiple: Count = 128
    """The embedding's rows are rounded up to a multiple of this, which tensor cores like."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the model."""
    trust_remote_code: bool = False
    """Lets a pretrained folder bring its own Python code."""
    max_logits_bytes: Count = 512 * 1024 * 1024
    """Bytes of fp32 logits of a micro batch above which the loss is computed in chunks of tokens."""


class TokenizerTraining(Section):
    """A byte-level BPE tokenizer, trained on the training text."""

    vocab_size: Annotated[Whole, Field(ge=258)]
    """Number of token ids, special ones included; 256 bytes, the end-of-document token and the mask are the least."""
    min_frequency: Count = 2
    """How often a pair has to occur to be merged."""


class Tokenizer(Section):
    """The tokenizer; may be left out where the corpus manifest names it."""

    path: str | None = None
    """A transformers tokenizer: a folder or a hub name."""
    train: TokenizerTraining | None = None
    """Trains one instead, on ``text`` sources."""


class Source(Section):
    """One corpus: a token file, or text that is prepared once."""

    path: str | None = None
    """Prefix of a ``.bin``/``.idx`` pair."""
    text: str | None = None
    """A file, a folder, or ``python-stdlib``; prepared by rank 0 into ``cache_dir`` before training."""
    name: str | None = None
    """What metrics and ``data_weights`` call it; the last part of ``path`` or ``text`` unless given."""
    weight: PositiveNumber = 1.0
    """Share of this source among all, in tokens: its weight over the sum of all weights."""

    @property
    def label(self) -> str:
        """Its name, given or taken from where it lies."""
        return self.name or PurePath(str(self.path or self.text)).name


def as_sources(value: Any) -> Any:
    """One source may stand without a list, and a plain string is a path."""
    if value is None:
        return []
    items = value if isinstance(value, (list, tuple)) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


class Masking(Section):
    """What a masked language model has to guess."""

    probability: Annotated[Number, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that are targets: 80% of them hidden, 10% replaced by chance, 10% left."""
    whole_words: bool = False
    """Hides whole words instead of single tokens."""


Sources = Annotated[tuple[Source, ...], BeforeValidator(as_sources)]


class Data(Section):
    """Where the tokens come from and how they are cut."""

    train: Annotated[Sources, Field(min_length=1)]
    """Training corpora."""
    validation: Sources = ()
    """Validation corpora; none means no evaluation."""
    validation_fraction: Annotated[Number, Field(gt=0, lt=0.5)] | None = None
    """Share of a ``text`` source's documents that is held out as validation corpus."""
    cache_dir: str = "data/cache"
    """Where ``text`` sources are kept once prepared."""
    max_seq_len: Annotated[Whole, Field(ge=8)] = 1024
    """Full sequence length in tokens: positions of the model, length of a window."""
    sequence_mode: Literal["chunk", "truncate", "mask"] = "chunk"
    """How shorter sequences are made of windows: cut in pieces, their beginning only, or masked."""
    document_mask: bool = False
    """Confines attention to documents; positions begin anew in each."""
    reset_positions: bool = False
    """In mode ``mask``, counts positions from 0 in every block, instead of running on through the row."""
    masking: Masking = Masking()
    """For ``model.objective: masked_lm``."""
    prefetch_steps: Count = 2
    """Steps whose batches are read ahead by a thread."""
