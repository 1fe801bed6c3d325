"""Learning-rate schedules: shapes as pure functions, warmup, and the schedule of a whole plan."""

from ds_pretrain.schedules.schedule import LearningRateSchedule

__all__ = ["LearningRateSchedule"]
