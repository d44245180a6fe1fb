"""Devices: workers take the GPUs of a machine in turn, and bf16 counts only where the hardware has it."""

from types import SimpleNamespace

import pytest
import torch

from goal.errors import UserError
from goal.runtime import devices


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says on a machine with three GPUs, which none of the tests' machines is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def test_workers_take_the_gpus_in_turn(three_gpus) -> None:
    taken = [devices.resolve("auto", "regions.device", worker) for worker in range(5)]
    assert taken == [torch.device("cuda", index) for index in (0, 1, 2, 0, 1)]
    assert devices.resolve("cuda", "train.device") == torch.device("cuda", 0)
    assert devices.resolve("cpu", "regions.device", 4) == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_fp32_is_not_tf32_once_a_device_is_resolved(name: str) -> None:
    with torch.backends.cudnn.flags(allow_tf32=True):
        torch.backends.cuda.matmul.allow_tf32 = True
        devices.resolve(name, "train.device")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_there_is_the_cpu_or_one_line() -> None:
    assert devices.resolve("auto", "train.device", 3) == torch.device("cpu")
    with pytest.raises(UserError, match=r"params\.yaml: train\.device: cuda, but torch sees no GPU here"):
        devices.resolve("cuda", "train.device")


@pytest.mark.parametrize(("major", "has"), [(7, False), (8, True), (9, True)])
def test_emulated_bf16_does_not_count(three_gpus, monkeypatch, major: int, has: bool) -> None:
    """torch's own question, put to a GPU of this compute capability: before 8 it emulates bf16."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    assert devices.has_bf16(torch.device("cuda", 0)) is has


@pytest.mark.parametrize(("flags", "has"), [("fpu avx2 avx512f", False), ("fpu avx512_bf16", True)])
def test_a_cpu_has_bf16_where_its_flags_say_so(tmp_path, monkeypatch, flags: str, has: bool) -> None:
    monkeypatch.setattr(devices, "CPU", tmp_path / "cpuinfo")
    devices.CPU.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert devices.has_bf16(torch.device("cpu")) is has
