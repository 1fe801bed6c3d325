"""Ranks and their device: the process group, threads, precision and seeds of one training process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator

from ds_pretrain.config import Recipe
from ds_pretrain.engine.deepspeed_json import Precision
from ds_pretrain.engine.operators import clear_leftover_locks, unlink_shared_buffers
from ds_pretrain.errors import LostRankError, PortTakenError, Stopped, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Args:
        rank: 0 to world_size - 1.
        world_size: processes of the run.
        local_rank: rank on this machine.
        local_size: processes of the run on this machine.
        device: where this rank trains.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes logs."""
        return self.rank == 0


def start_ranks(timeout_seconds: float) -> Ranks:
    """Joins the process group that the launcher described in the environment.

    Args:
        timeout_seconds: how long a collective may wait for a rank that is gone.

    Returns:
        This process's place in the group.

    Raises:
        PortTakenError: another process listens on the port where the ranks are to meet.
        LostRankError: they did not all come.
    """
    accelerator = get_accelerator()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        # the launcher leaves every rank all cores, which then fight over them
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    if not on_cpu:
        accelerator.set_device(local_rank)
    # started without a launcher, a run has one rank
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    clear_leftover_locks()
    try:
        _meet(accelerator.communication_backend_name(), timeout_seconds)
    except dist.DistError as error:
        raise _not_met(error, timeout_seconds) from error
    device = torch.device(accelerator.current_device_name())
    # what is imported by now stays to the end: DeepSpeed collects at every start of an engine, and Python now and then
    # in the midst of training, and would look at millions of objects for nothing
    gc.freeze()
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)


def _meet(backend: str, timeout_seconds: float) -> None:
    with redirect_stdout(StringIO()):  # each rank prints that an operator was built
        deepspeed.init_distributed(
            dist_backend=backend,
            timeout=timedelta(seconds=timeout_seconds),
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            auto_mpi_discovery=False,
        )
    barrier()
    unlink_shared_buffers(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])


def share_timeout() -> None:
    """Gives every process group the run's time-out; those that DeepSpeed makes would wait for torch's half an hour."""
    device = torch.device(get_accelerator().device_name())
    timeout = c10d._get_default_group()._get_backend(device).options._timeout
    for group in c10d._world.pg_map:
        c10d._set_pg_timeout(timeout, group)


def _not_met(error: dist.DistError, timeout_seconds: float) -> PortTakenError | LostRankError:
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    reason = str(error).splitlines()[0]
    if "EADDRINUSE" in reason or "address already in use" in reason:
        return PortTakenError(
            f"port {port} of {address}, where the ranks are to meet, is in use by another process; end that process, "
            f"or choose another port, e.g. --master_port {int(port) + 1} (with ds-pretrain launch behind --)"
        )
    return LostRankError(
        f"rank {os.environ.get('RANK', '0')}: the ranks have not all met at {address}:{port} within "
        f"{timeout_seconds:g} s ({reason[:200]}); see that every machine starts, and reaches that address"
    )


def device_precision(requested: str) -> Precision:
    """What a recipe's precision comes to on this device.

    Args:
        requested: auto, bf16, fp16 or fp32.

    Returns:
        The precision; ``auto`` is bf16 where the device has it, else fp16, and fp32 on a CPU, where the half
        precisions save neither time nor memory that matters.
    """
    accelerator = get_accelerator()
    if requested == "bf16" or requested == "fp16" or requested == "fp32":
        return requested  # type: ignore[return-value]
    if accelerator.device_name() == "cpu":
        return "fp32"
    if accelerator.is_bf16_supported():
        return "bf16"
    return "fp16" if accelerator.is_fp16_supported() else "fp32"


def engine_precision(engine: DeepSpeedEngine) -> Precision:
    """What a live engine trains in."""
    if engine.bfloat16_enabled():
        return "bf16"
    return "fp16" if engine.fp16_enabled() else "fp32"


def device_description(ranks: Ranks) -> str:
    """What the driver calls this rank's device."""
    accelerator = get_accelerator()
    if accelerator.device_name() != "cuda":
        return str(accelerator.device_name())
    return str(torch.cuda.get_device_name(ranks.device))


def seed_rank(recipe: Recipe, rank: int, step: int = 0) -> None:
    """Seeds what draws random numbers on this rank: weights alike on all, dropout different on each.

    Args:
        recipe: a checked recipe; ``run.deterministic`` asks for deterministic kernels too.
        rank: this process's rank; pass 0 while the weights are built.
        step: steps done, where the run goes on with other ranks than those whose generators were saved.
    """
    key = [recipe.run.seed, rank, *([step] if step else [])]
    seed = int(np.random.SeedSequence(key).generate_state(1, dtype=np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    get_accelerator().manual_seed_all(seed)
    if recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def gather_objects(value: T, ranks: Ranks) -> Sequence[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    values: list[T | None] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def broadcast_object(value: T | None, ranks: Ranks) -> T:
    """Rank 0's value on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0, device=ranks.device)
    return values[0]  # type: ignore[return-value]


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether any rank brings a true flag, on every rank alike."""
    return ask_any_rank(flag, ranks)()


def ask_any_rank(flag: bool, ranks: Ranks) -> Callable[[], bool]:
    """What ``any_rank`` asks, without waiting: the function that is returned waits, and gives the answer."""
    count = torch.tensor(float(flag), device=ranks.device)
    work = dist.all_reduce(count, async_op=True)

    def answer() -> bool:
        work.wait()
        return bool(count > 0)

    return answer


def on_main(ranks: Ranks, work: Callable[[], T]) -> T:
    """Does something on rank 0 while the others wait, and gives its result, or its error, to all.

    Args:
        ranks: this process among those of the run.
        work: called on rank 0 alone.

    Raises:
        UserError: what ``work`` raised, on every rank.
        Stopped: likewise.
    """
    result: tuple[Any, UserError | Stopped | None] | None = None
    if ranks.is_main:
        try:
            result = work(), None
        except (UserError, Stopped) as error:
            result = None, error
        except OSError as error:  # the others wait for an answer
            result = None, UserError(f"{error.filename}: {error.strerror}; free space or mend the disk")
    value, problem = broadcast_object(result, ranks)
    if problem is not None:
        raise problem
    return value  # type: ignore[no-any-return]


def barrier() -> None:
    """Waits until every rank has come here."""
    deepspeed.comm.barrier()


def stop_ranks() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
