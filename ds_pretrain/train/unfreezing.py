"""Which parameters a stage trains, and the change from one stage's set to another's on a live run."""

from __future__ import annotations

from collections.abc import Mapping

from ds_pretrain.config import Recipe
from ds_pretrain.curriculum import Plan, StagePlan
from ds_pretrain.curriculum.unfreezing import is_trained, same_layers, trained_since
from ds_pretrain.engine.build import Engine, build_engine
from ds_pretrain.engine.carry import collect_state, own_storage, put_state, release
from ds_pretrain.engine.deepspeed_json import Precision, stage_json
from ds_pretrain.engine.ranks import Ranks
from ds_pretrain.engine.rng import restore_rng, rng_state
from ds_pretrain.model.groups import ParameterGroup, parameter_groups
from ds_pretrain.model.layers import layer_depths
from ds_pretrain.model.loss import LossModule


class TrainedLayers:
    """What each stage of a plan trains of a model, and the engine that trains it.

    Args:
        recipe: a checked recipe.
        plan: its stages.
        precision: what ``precision: auto`` came to on the device.
        module: the model with its loss; which of its parameters need gradients is set here.
        ranks: this process among those of the run.

    Raises:
        RecipeError: the layers cannot be told from the rest of the model.
    """

    def __init__(self, recipe: Recipe, plan: Plan, precision: Precision, module: LossModule, ranks: Ranks) -> None:
        self._recipe = recipe
        self._plan = plan
        self._precision = precision
        self._module = module
        self._ranks = ranks
        self._depths: Mapping[str, int] = {}
        if any(stage.trainable_layers is not None for stage in plan.stages):
            self._depths = layer_depths(module.model)

    def build(self, stage: StagePlan) -> Engine:
        """A new engine that trains what a stage trains."""
        self._select(stage)
        document = stage_json(self._recipe, stage, self._precision)
        return build_engine(self._module, self.groups(stage), document, self._recipe.optimizer)

    def renew(self, engine: Engine, stage: StagePlan) -> Engine:
        """A new engine in place of a live one: the weights stay, nothing else does.

        Args:
            engine: the live engine, between two steps; not to be used afterwards.
            stage: what the new one is to train.
        """
        release(engine)
        self._select(stage)
        own_storage(self._module)
        return self.build(stage)

    def change(self, engine: Engine, before: StagePlan, after: StagePlan) -> Engine:
        """The engine of another stage, which goes on where the one before stopped. Every rank takes part.

        What stays trained keeps its master weights, moments and step count, to the bit.

        Args:
            engine: the live engine, between two steps; not to be used afterwards if another one is returned.
            before, after: the stages that it trains, and is to train.

        Returns:
            ``engine`` itself where both stages train the same layers.
        """
        if same_layers(before, after):
            return engine
        random = rng_state()
        state = collect_state(engine, self.groups(before), self._ranks)
        following = self.renew(engine, after)
        put_state(following, self.groups(after), state, self._ranks)
        restore_rng(random)
        return following

    def _select(self, stage: StagePlan) -> None:
        for name, parameter in self._module.model.named_parameters():
            parameter.requires_grad_(name not in self._depths or is_trained(stage, self._depths[name]))

    def groups(self, stage: StagePlan) -> list[ParameterGroup]:
        """The parameter groups of the engine that trains what a stage trains."""
        since = {
            name: trained_since(self._plan, stage.index, depth)
            for name, depth in self._depths.items()
            if is_trained(stage, depth)
        }
        return parameter_groups(self._module.model, self._recipe.optimizer, self._recipe.param_groups, since)
