"""The choice of device and dtype follows from facts, says why, and refuses what is not there."""

from dataclasses import replace

import pytest
import torch

from lineardit.errors import InputError
from lineardit.kernels.select import Gpu, Machine, inspect_machine, select

CPU = Machine(
    system="Linux x86_64",
    processor="a processor",
    features=frozenset({"avx2"}),
    cores=2,
    threads=2,
    memory=8_000_000_000,
    torch="2.13.0+cpu",
    triton=None,
)
OLD, NEW = Gpu("Tesla T4", 16_000_000_000, (7, 5)), Gpu("H200", 140_000_000_000, (9, 0))


def test_a_processor_without_bf16_computes_in_fp32() -> None:
    selection = select(CPU)
    assert (selection.torch_device, selection.torch_dtype) == (torch.device("cpu"), torch.float32)
    assert "bf16 would be slower" in selection.dtype.reason and "built for CPUs" in selection.device.reason


@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16", "bf16"])
def test_a_processor_that_multiplies_bf16_uses_it_and_says_by_what(feature: str) -> None:
    selection = select(replace(CPU, features=frozenset({"avx2", feature})))
    assert selection.torch_dtype == torch.bfloat16 and feature in selection.dtype.reason


@pytest.mark.parametrize(("gpu", "dtype"), [(OLD, torch.float32), (NEW, torch.bfloat16)])
def test_a_gpu_is_taken_with_the_dtype_it_multiplies(gpu: Gpu, dtype: torch.dtype) -> None:
    selection = select(replace(CPU, torch="2.13.0", gpus=(gpu,)))
    assert (selection.torch_device, selection.torch_dtype) == (torch.device("cuda:0"), dtype)
    assert gpu.name in selection.device.reason


def test_attention_runs_on_triton_where_there_is_a_gpu_and_triton_and_else_says_what_lacks() -> None:
    gpu = replace(CPU, gpus=(NEW,))
    assert select(replace(gpu, triton="3.6.0")).attention.name == "triton"
    assert select(gpu).attention.name == "torch" and "not installed" in select(gpu).attention.reason
    assert select(CPU).attention.name == "torch" and "need a GPU" in select(CPU).attention.reason


def test_each_gpu_is_judged_by_its_own_capability() -> None:
    machine = replace(CPU, gpus=(OLD, NEW))
    assert select(machine, "cuda:1").torch_dtype == torch.bfloat16
    assert select(machine, "cuda").torch_dtype == torch.float32


def test_what_is_asked_for_is_taken() -> None:
    selection = select(replace(CPU, gpus=(NEW,)), device="cpu", dtype="fp16")
    assert (selection.device.name, selection.device.reason) == ("cpu", "asked for")
    assert (selection.torch_dtype, selection.dtype.reason) == (torch.float16, "asked for")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(InputError, match=f"^device={device} is not there. Use auto or one of cpu.$"):
        select(CPU, device)


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="^dtype=int8 is unknown. Use auto or one of fp32, bf16, fp16.$"):
        select(CPU, dtype="int8")


def test_this_machine_can_be_looked_at() -> None:
    machine = inspect_machine()
    assert machine.cores >= 1 and machine.threads == torch.get_num_threads()
    assert machine.memory > 100_000_000 and machine.torch == torch.__version__
    assert len(machine.gpus) == torch.cuda.device_count()
    assert select(machine).torch_device.type in {"cpu", "cuda"}
