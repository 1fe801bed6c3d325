"""Pacing functions: a sequence length that grows (or shrinks) over part of a run, as a list of stages.

Every function gives the length at progress p in [0, 1] of the pacing's duration; lengths are rounded down to a
multiple (Li, Zhang, He, NeurIPS 2022, use 8). Instead of asking for the length at every step, the inverse gives the
progress at which each length begins, so that one long list of steps becomes a short list of stages.
"""

from __future__ import annotations

import math

from ds_pretrain.config import Pacing


def paced_lengths(pacing: Pacing, end_seq_len: int) -> list[tuple[float, int]]:
    """Where every sequence length of a pacing function begins.

    Args:
        pacing: kind, first length in tokens, rounding multiple, degree of the root.
        end_seq_len: length in tokens that holds from progress 1 on.

    Returns:
        (progress, seq_len) pairs, progress in [0, 1] of the pacing's duration, in order; the first at 0, the last at 1.
    """
    start = pacing.start_seq_len
    if start == end_seq_len:
        return [(0.0, start)]
    if pacing.kind == "discrete":
        lengths = _doublings(start, end_seq_len)
        return [(index / (len(lengths) - 1), length) for index, length in enumerate(lengths)]
    lengths = _multiples(start, end_seq_len, pacing.multiple)
    return [(_progress(pacing, end_seq_len, length), length) for length in lengths]


def _progress(pacing: Pacing, end: int, length: int) -> float:
    """Inverse of the pacing function: the progress at which ``length`` is reached."""
    start = pacing.start_seq_len
    if pacing.kind == "exponential":  # start x (end / start)^p
        return math.log(length / start) / math.log(end / start)
    share = (length - start) / (end - start)
    if pacing.kind == "root":  # start + (end - start) x p^(1 / degree)
        return float(share**pacing.degree)
    return share  # linear: start + (end - start) x p


def _multiples(start: int, end: int, multiple: int) -> list[int]:
    if start < end:
        inner = range((start // multiple + 1) * multiple, end, multiple)
    else:
        inner = range((start - 1) // multiple * multiple, end, -multiple)
    return [start, *inner, end]


def _doublings(start: int, end: int) -> list[int]:
    lengths = [start]
    if start < end:
        while lengths[-1] * 2 < end:
            lengths.append(lengths[-1] * 2)
    else:
        while lengths[-1] // 2 > end:
            lengths.append(lengths[-1] // 2)
    return [*lengths, end]
