"""Model FLOPs, counted analytically: profilers miss fused attention."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# dense bf16/fp16 tensor-core peaks in FLOP/s, from the vendors' data sheets (without sparsity)
PEAK_FLOPS: Mapping[str, float] = MappingProxyType(
    {
        "B200": 2250e12,
        "H200": 989e12,
        "H100 PCIe": 756e12,
        "H100": 989e12,
        "A100": 312e12,
        "L40S": 362e12,
        "L4": 121e12,
        "A10": 125e12,
        "V100": 125e12,
        "T4": 65e12,
        "MI300X": 1307e12,
    }
)


def flops_per_token(parameters: float, num_layers: int, hidden_size: int, seq_len: int) -> float:
    """Forward and backward FLOPs of one token: 6 N + 12 x layers x hidden x length.

    After Chowdhery et al., PaLM (2022), appendix B; recomputation is not counted.

    Args:
        parameters: those that take part in products: all but the input embeddings' lookup.
            Those that only a share of the tokens meets count by that share.
        num_layers: transformer blocks.
        hidden_size: width of the residual stream.
        seq_len: tokens per sequence.
    """
    return 6.0 * parameters + 12.0 * num_layers * hidden_size * seq_len


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak of one device in FLOP/s; None where it is not known, and for fp32.

    Args:
        device_name: what the driver calls the device.
        precision: bf16, fp16 or fp32.
    """
    if precision == "fp32":
        return None
    words = device_name.replace("-", " ").split()
    for name, peak in PEAK_FLOPS.items():
        if all(word in words for word in name.split()):
            return peak
    return None
