"""What a corpus holds, as text and a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ds_pretrain.data.inspect import Inspection

_BAR_CHARACTERS = 40


def corpus_table(prefix: Path, found: Inspection) -> Iterator[RenderableType]:
    """Draws what ``inspect_corpus`` found: parts that a rich console prints one after another."""
    mean = found.tokens / found.documents
    yield Text(
        f"{prefix}: {found.documents:,} documents, {found.tokens:,} tokens ({found.dtype})\n"
        f"document length: mean {mean:,.1f}, median {found.median_length:,}, longest {found.longest:,} tokens"
    )
    if found.manifest is not None:
        left_out = ", ".join(
            f"{number:,} {name.replace('_', ' ')}" for name, number in found.manifest.left_out.items() if number
        )
        yield Text(
            f"made of {', '.join(found.manifest.sources)} by ds_pretrain {found.manifest.ds_pretrain_version}\n"
            f"tokenizer: {found.manifest.tokenizer}, {found.manifest.vocab_size:,} entries, "
            f"end of document {found.manifest.eos_id}\n"
            f"left out: {left_out or 'nothing'}"
        )
    else:
        yield Text("no manifest: made by other tools; give --tokenizer to see text")
    if found.largest_id is not None:
        checked = "checksums are right; " if found.manifest is not None else ""
        yield Text(f"verified: {checked}largest token id {found.largest_id:,}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("tokens")
    for heading in ("documents", "share of tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    most = max(row.documents for row in found.histogram)
    for row in found.histogram:
        label = f"{row.low:,} to {row.high - 1:,}" if row.high - row.low > 1 else f"{row.low:,}"
        bar = "█" * round(_BAR_CHARACTERS * row.documents / most)
        table.add_row(label, f"{row.documents:,}", f"{100 * row.tokens / found.tokens:.1f}%", bar)
    yield table
    for sample in found.samples:
        yield Text(f"document {sample.document:,}, {sample.tokens:,} tokens: {sample.text!r}")
