"""Model FLOPs and peaks, worked out by hand."""

from __future__ import annotations

import pytest

from ds_pretrain.train.flops import flops_per_token, peak_flops


def test_a_token_costs_six_per_parameter_and_attention_on_top() -> None:
    # 6 x 1,000 + 12 x 2 x 8 x 16
    assert flops_per_token(1000, num_layers=2, hidden_size=8, seq_len=16) == 9072
    # GPT-2 small at 1,024 tokens: 6 x 124,318,464 + 12 x 12 x 768 x 1,024
    assert flops_per_token(124_318_464, num_layers=12, hidden_size=768, seq_len=1024) == 859_156_992


def test_only_attention_grows_with_length() -> None:
    short, long = (flops_per_token(10**6, 4, 64, seq_len) for seq_len in (128, 256))
    assert long - short == 12 * 4 * 64 * 128


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA A10", 125),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_known_devices(name: str, teraflops: float) -> None:
    assert peak_flops(name, "bf16") == peak_flops(name, "fp16") == teraflops * 1e12
    assert peak_flops(name, "fp32") is None


@pytest.mark.parametrize("name", ["cpu", "NVIDIA GeForce RTX 4090", "NVIDIA A1000", "NVIDIA L400", ""])
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bf16") is None
