"""Where networks run: what params name, checked against what the machine has; and the memory they take."""

import re
import resource
from pathlib import Path

import torch

from goal.errors import UserError

# Linux: writing 5 there has the kernel forget the peak.
FORGET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
CPU = Path("/proc/cpuinfo")
CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one: Arm


def resolve(name: str, field: str, worker: int = 0) -> torch.device:
    """The device for auto | cpu | cuda; auto takes a GPU where there is one. From here on fp32 is not TF32.

    worker: the place of this process among those that work alike on this machine: they take its GPUs in turn.
    Raises UserError, naming the field of params, where a GPU is asked for and none is usable.
    """
    # torch computes convolutions, such as that of the patches, in TF32 otherwise: with 10 bits of 23.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise UserError(f"params.yaml: {field}: cuda, but torch sees no GPU here; set it to auto or cpu")
    if usable and name != "cpu":
        return torch.device("cuda", worker % torch.cuda.device_count())
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic; older ones emulate it, more slowly than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Only Linux lists the CPU's features.
    return not CPU.exists() or bool(CPU_BF16 & set(CPU.read_text().split()))


def forget_peak(device: torch.device) -> None:
    """Reset the peak to the memory that is in use now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif FORGET.exists():
        FORGET.write_text("5")


def peak(device: torch.device) -> int:
    """Bytes that torch has reserved on the GPU, or this process has had of the machine, at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    if STATUS.exists():
        (most,) = re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        return int(most) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
