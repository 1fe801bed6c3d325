"""The model together with its loss: what the engine runs forward and backward.

The loss is the sum over target tokens, in fp32; the caller divides by the tokens of the whole step, so that every
target weighs the same whatever the micro batches and ranks. Where the fp32 logits of a micro batch would exceed
``max_logits_bytes``, head and loss run in chunks of tokens whose logits are computed again in the backward pass:
memory for one chunk instead of all, for one more product with the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ds_pretrain.config import Model
from ds_pretrain.model.attention import run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

IGNORED_TARGET = -100


class CausalLmLoss(nn.Module):
    """A causal language model that returns its summed loss.

    Args:
        model: a transformers causal LM.
        max_logits_bytes: limit of one fp32 logits tensor, in bytes.
    """

    def __init__(self, model: PreTrainedModel, max_logits_bytes: int) -> None:
        super().__init__()
        self.model = model
        self.max_logits_bytes = max_logits_bytes

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor,
        position_ids: Tensor | None = None,
        cu_seq_lens: Tensor | None = None,
    ) -> Tensor:
        """Sum of the cross entropy over targets.

        Args:
            input_ids: token ids, int64 [sequences, seq_len].
            targets: the token after each input, int64 of the same shape; -100 is not counted.
            position_ids, cu_seq_lens: as in ``run_model``.

        Returns:
            A scalar in fp32, in nats.
        """
        tokens = max_chunk_tokens(self.model.config.vocab_size, self.max_logits_bytes)
        if input_ids.numel() <= tokens:
            logits = run_model(self.model, input_ids, position_ids, cu_seq_lens).logits
            return summed_loss(logits.flatten(0, 1), targets.flatten())
        hidden = run_model(self.model.base_model, input_ids, position_ids, cu_seq_lens).last_hidden_state
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part, wanted in zip(
            torch.split(hidden.flatten(0, 1), tokens), torch.split(targets.flatten(), tokens), strict=True
        ):
            total = total + checkpoint(self._head_loss, part, wanted, use_reentrant=False)
        return total

    def _head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return summed_loss(self.model.get_output_embeddings()(hidden), targets)


class MaskedLmLoss(nn.Module):
    """A masked language model that returns its summed loss.

    The head runs on the masked tokens alone, which saves 85% of its time and of the logits' memory.

    Args:
        model: a transformers masked LM.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor,
        target_positions: Tensor,
        position_ids: Tensor | None = None,
        cu_seq_lens: Tensor | None = None,
    ) -> Tensor:
        """Sum of the cross entropy over targets.

        Args:
            input_ids: token ids, some of them hidden, int64 [sequences, seq_len].
            targets: the tokens that were hidden, int64 [sequences, targets]; -100 is not counted.
            target_positions: where they stood, of the same shape.
            position_ids, cu_seq_lens: as in ``run_model``.

        Returns:
            A scalar in fp32, in nats.
        """

        def gather(_: nn.Module, __: object, output: ModelOutput) -> ModelOutput:
            hidden = output.last_hidden_state
            places = target_positions[..., None].expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, places)
            return output

        # what follows the base model is the head, whatever layers it has
        hook = self.model.base_model.register_forward_hook(gather)
        try:
            logits = run_model(self.model, input_ids, position_ids, cu_seq_lens, bidirectional=True).logits
        finally:
            hook.remove()
        return summed_loss(logits.flatten(0, 1), targets.flatten())


LossModule = CausalLmLoss | MaskedLmLoss


def with_loss(model: PreTrainedModel, settings: Model) -> LossModule:
    """The model together with the loss of a recipe's objective."""
    if settings.objective == "masked_lm":
        return MaskedLmLoss(model)
    return CausalLmLoss(model, settings.max_logits_bytes)


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropy in fp32; logits [tokens, vocab_size], targets int64 [tokens]."""
    return cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED_TARGET)


def max_chunk_tokens(vocab_size: int, max_logits_bytes: int) -> int:
    """Tokens whose fp32 logits fit into ``max_logits_bytes``; at least one."""
    return max(1, max_logits_bytes // (4 * vocab_size))


def head_is_plain(model: PreTrainedModel) -> bool:
    """Whether the logits are just the head's output, so that the loss may be computed in chunks.

    Some models scale or cap their logits after the head; this is found by trying it on two tokens, not from a list.
    Every rank must take part under ZeRO 3.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 1]], device=device)
    training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        found = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    model.train(training)
    return bool(torch.equal(expected, found))
