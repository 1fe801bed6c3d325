"""Rows of tokens become what the model is fed: blocks, positions, document boundaries, masked tokens.

Attention confined to blocks of a row is attention inside the block: a row of 1,024 tokens in blocks of 64 is fed as 16
sequences of 64, whose positions run on. So blocks need no mask, cost what short sequences cost, and every attention
of transformers can do them. Documents, whose lengths differ, are told by their positions: each begins at position 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ds_pretrain.data.masking import Masking


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one rank feeds to one forward pass.

    Args:
        input_ids: shape [sequences, seq_len]; of the corpus's type until ``to`` makes it int64.
        targets: of the same type; the token after each input, the same shape, or the masked ones, shape
            [sequences, targets].
        position_ids: int64, shape [sequences, seq_len]; None counts from 0 in every sequence.
        cu_seq_lens: where documents begin in the flattened ``input_ids``, then their number of tokens; int32, shape
            [documents + 1]. None where attention is not confined to documents.
        target_positions: where the masked tokens stand, int64 [sequences, targets]; None where none are masked.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor | None = None
    cu_seq_lens: torch.Tensor | None = None
    target_positions: torch.Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device, tokens widened to int64 there; copies from page-locked memory do not wait."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()}
        wide = {name: moved[name].to(torch.int64) for name in ("input_ids", "targets")}
        return MicroBatch(**(moved | wide))

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory."""
        return MicroBatch(**{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    @property
    def options(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the forward pass beside inputs and targets."""
        given = self._tensors()
        return {name: tensor for name, tensor in given.items() if name not in ("input_ids", "targets")}

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False)
class InputFormat:
    """How rows of the stream become micro batches.

    Args:
        max_seq_len: positions of a window.
        document_end: token that ends a document, to which attention is then confined; None confines nothing.
        reset_positions: count positions from 0 in every block of a row, instead of running on.
        masking: hides tokens, which then are the targets; None predicts the next token everywhere.
    """

    max_seq_len: int
    document_end: int | None = None
    reset_positions: bool = False
    masking: Masking | None = None

    def targets_per_sequence(self, seq_len: int) -> int:
        """Targets of a sequence of ``seq_len`` tokens."""
        return seq_len if self.masking is None else self.masking.targets_per_sequence(seq_len)

    def micro_batches(
        self,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        starts: NDArray[np.int64],
        *,
        seq_len: int,
        micro_batch_size: int,
        places: NDArray[np.int64],
        key: tuple[int, ...],
    ) -> tuple[MicroBatch, ...]:
        """Cuts rows into micro batches.

        Args:
            inputs, targets: rows of the stream, shape [rows, row_len]; ``seq_len`` divides row_len.
            starts: stream position at which each row starts, shape [rows].
            seq_len: tokens of a sequence.
            micro_batch_size: rows of a micro batch.
            places: number of each row in its batch, over all ranks; [rows].
            key: what masking depends on besides: seed and step.
        """
        rows, row_len = inputs.shape
        in_blocks = (rows * row_len // seq_len, seq_len)
        ids, wanted = inputs.reshape(in_blocks), targets.reshape(in_blocks)
        hidden_at = None
        if self.masking is not None:
            per_row = row_len // seq_len
            hidden = self.masking(
                ids.astype(np.int64), (places[:, None] * per_row + np.arange(per_row)).reshape(-1), key
            )
            ids, wanted, hidden_at = hidden.input_ids, hidden.targets, hidden.positions
        begins = None if self.document_end is None else self._document_begins(inputs, starts, self.document_end)
        positions = None
        if begins is not None or (row_len > seq_len and not self.reset_positions):
            positions = self._positions(begins, inputs.shape, seq_len).reshape(in_blocks)
        if begins is not None:
            begins = begins.reshape(in_blocks)
            begins[:, 0] = True
        blocks = micro_batch_size * row_len // seq_len
        return tuple(
            MicroBatch(
                torch.from_numpy(ids[part]),
                torch.from_numpy(wanted[part]),
                None if positions is None else torch.from_numpy(positions[part]),
                None if begins is None else _cumulative_lengths(begins[part]),
                None if hidden_at is None else torch.from_numpy(hidden_at[part]),
            )
            for part in (slice(first, first + blocks) for first in range(0, len(ids), blocks))
        )

    def blank(self, sequences: int, seq_len: int) -> MicroBatch:
        """A micro batch of the shape and kind that training has, of no meaning; each sequence is one document."""
        rows = np.full((sequences, seq_len), 1 if self.document_end == 0 else 0, dtype=np.int64)
        starts = np.zeros(sequences, dtype=np.int64)
        (batch,) = self.micro_batches(
            rows, rows, starts, seq_len=seq_len, micro_batch_size=sequences, places=starts, key=(0,)
        )
        return batch

    def _document_begins(self, inputs: NDArray[Any], starts: NDArray[np.int64], end: int) -> NDArray[np.bool_]:
        """Which positions begin a document: after a token that ends one, and where the row enters another window."""
        begins = np.zeros(inputs.shape, dtype=bool)
        np.equal(inputs[:, :-1], end, out=begins[:, 1:])
        to_seam = -starts % self.max_seq_len
        row_len = inputs.shape[1]
        for seam in range(0, row_len, self.max_seq_len):
            crossing = to_seam + seam < row_len
            begins[crossing, to_seam[crossing] + seam] = True
        return begins

    def _positions(self, begins: NDArray[np.bool_] | None, shape: Sequence[int], seq_len: int) -> NDArray[np.int64]:
        """Position of every token: in its row, or since its document, or its block, began."""
        places = np.arange(shape[1], dtype=np.int64)
        if begins is None:
            return np.broadcast_to(places, shape).copy()
        floor = places // seq_len * seq_len if self.reset_positions else np.zeros_like(places)
        first = np.where(begins, places, floor)
        return places - np.maximum.accumulate(first, axis=1)


def _cumulative_lengths(begins: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.append(np.flatnonzero(begins), begins.size).astype(np.int32))
