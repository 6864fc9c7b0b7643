"""Which numbers a run computes with: bf16 where the processor is fast in it."""

import torch

from normscope.errors import InvalidConfig


def used_precision(asked: str, device: str) -> str:
    """What `precision` means on this device: "fp32" or "bf16"; "auto" is bf16 where there are instructions for it.

    Raises:
        InvalidConfig: bf16 asked for on a GPU that has none. (Any CPU can emulate it, slowly.)
    """
    fast = _gpu_has_bf16() if device.startswith("cuda") else _cpu_is_fast_in_bf16()
    if asked == "bf16" and not fast and device.startswith("cuda"):
        raise InvalidConfig(f"precision is bf16: {device} has none; give fp32 or auto")
    return ("bf16" if fast else "fp32") if asked == "auto" else asked


def _cpu_is_fast_in_bf16() -> bool:
    """AVX512-BF16 or AMX: without them bf16 is emulated, slower than fp32."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test is not None and test() for test in tests)


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
