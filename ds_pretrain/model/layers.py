"""How deep every parameter lies below the head, found from the model itself instead of a list of architectures.

The layers are the model's outermost list of blocks. What runs before or after them is told by watching one forward
pass of a copy on the meta device, which has no weights and costs no memory: the order in which modules are registered
lies (OPT registers its final norm before its layers).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ds_pretrain.curriculum import Plan
from ds_pretrain.errors import Problem, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_depths(model: PreTrainedModel) -> dict[str, int]:
    """The depth of every parameter: the head is 0, the top layer 1, the bottom one N, embeddings N + 1.

    Outside the layers, the first use decides: what is used before the first layer is an embedding (so a tied
    embedding and head is one), what is used after the last layer, or not at all, belongs to the head; what is used
    between two layers belongs to the lower one.

    Args:
        model: a transformers model; only names are taken from it, so it may be partitioned (ZeRO 3).

    Returns:
        Parameter name, as in ``model.named_parameters()``, to depth.

    Raises:
        RecipeError: the layers cannot be told from the rest of the model.
    """
    stack, layers = _layers(model)
    first_use = _layers_done_at_first_use(model, stack)
    depths = {}
    for name, _ in model.named_parameters():
        if name.startswith(f"{stack}."):
            depths[name] = len(layers) - int(name[len(stack) + 1 :].split(".")[0])
        else:
            done = first_use.get(name, len(layers))
            depths[name] = 0 if done >= len(layers) else len(layers) + 1 - done
    return depths


def num_layers(model: PreTrainedModel) -> int:
    """Number of layers.

    Args:
        model: a transformers model.

    Raises:
        RecipeError: the layers cannot be told from the rest of the model.
    """
    return len(_layers(model)[1])


def check_trained_layers(model: PreTrainedModel, plan: Plan) -> None:
    """Refuses stages that train more layers than there are.

    Args:
        model: a transformers model, on any device.
        plan: the stages.

    Raises:
        RecipeError: a stage does, or the layers cannot be told.
    """
    asked = [stage for stage in plan.stages if stage.trainable_layers is not None]
    if not asked:
        return
    layers = num_layers(model)
    problems = [
        Problem(
            f"stage {stage.index}: trainable_layers",
            f"found {stage.trainable_layers}, but this {model.config.model_type} has {layers} layers; allowed: 0 to "
            f"{layers}, or leave it out to train everything, the embeddings too",
        )
        for stage in asked
        if stage.trainable_layers is not None and stage.trainable_layers > layers
    ]
    if problems:
        raise RecipeError(problems)


def has_learned_positions(model: PreTrainedModel) -> bool:
    """Whether positions are an embedding that is learned, one row a position."""
    positions = getattr(model.config, "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    return positions is not None and any(
        isinstance(part, nn.Embedding) and part is not tokens and part.num_embeddings >= positions
        for part in model.modules()
    )


def first_position(model: PreTrainedModel) -> int:
    """The position of a sequence's first token: behind the padding's where positions have a row for it (RoBERTa)."""
    found = [
        part.padding_idx + 1
        for name, part in model.named_modules()
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None
    ]
    return found[0] if found else 0


def _layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    found: dict[str, nn.ModuleList] = {}
    for name, part in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(part, nn.ModuleList) and not inside and next(part.parameters(), None) is not None:
            found[name] = part
    if len(found) > 1:
        number = getattr(model.config, "num_hidden_layers", None)
        found = {name: part for name, part in found.items() if len(part) == number}
    if len(found) != 1:
        raise _not_found(model, "it has no single list of layers")
    return next(iter(found.items()))


class _FirstUse(TorchFunctionMode):
    """Notes at the first use of every tensor how many layers had run by then."""

    def __init__(self) -> None:
        super().__init__()
        self.layers_done = 0
        self.noted: dict[int, int] = {}

    def layer_done(self, *_: object) -> None:
        self.layers_done += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, Tensor):
                self.noted.setdefault(id(value), self.layers_done)
        return func(*args, **(kwargs or {}))


def _layers_done_at_first_use(model: PreTrainedModel, stack: str) -> dict[str, int]:
    config = copy.deepcopy(model.config)
    # others may need a device, a half precision, or the values that experts are chosen by
    config._attn_implementation, config._experts_implementation = "eager", "batched_mm"
    watch = _FirstUse()
    try:
        # fake tensors tell transformers that there are no values to look into, which plain meta tensors do not
        with torch.device("meta"), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            twin = type(model)(config).eval()
            for layer in twin.get_submodule(stack):
                layer.register_forward_hook(watch.layer_done)
            ids = torch.zeros((1, 2), dtype=torch.long)
            with watch:
                twin(input_ids=ids)
    except Exception as error:  # whatever a model's own code happens to raise where there are no values
        raise _not_found(model, f"it does not run without values: {' '.join(str(error).split())}") from error
    named = twin.named_parameters(remove_duplicate=False)
    return {name: watch.noted[id(parameter)] for name, parameter in named if id(parameter) in watch.noted}


def _not_found(model: PreTrainedModel, reason: str) -> RecipeError:
    return RecipeError(
        [
            Problem(
                "param_groups.kind",
                f"cannot tell the layers of {model.config.model_type} from the rest ({reason}); "
                "use kind: patterns, which names parameters itself",
            )
        ]
    )
