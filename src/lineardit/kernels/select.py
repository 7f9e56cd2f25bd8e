"""What runs here, and why: device, dtype and attention path, chosen from facts about the machine."""

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lineardit.errors import InputError

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Names of processors' features that multiply bfloat16 matrices: Intel and AMD, Intel's tiles, ARM.
_BF16_FEATURES = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as torch sees it."""

    name: str
    memory: int
    """Bytes."""
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """The facts that decide what runs."""

    system: str
    processor: str
    features: frozenset[str]
    """Those of the processor that matter here: amx_bf16, avx512_bf16, bf16, avx2 ..."""
    cores: int
    """Processors this process may use."""
    threads: int
    """Threads torch computes with."""
    memory: int
    """Bytes, as far as this process may use them."""
    torch: str
    triton: str | None
    """Version, or None where it is not installed."""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One decision."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """What will be used."""

    device: Choice
    dtype: Choice
    attention: Choice
    passes: Choice
    """Those over tokens and pixels on a GPU; for a CPU see `native.outlook`."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device.name)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype.name]


def select(machine: Machine, device: str = "auto", dtype: str = "auto") -> Selection:
    """Decide from facts alone; "auto" takes the fastest that is known to be right.

    Raises:
        InputError: the device or dtype is unknown or not there.
    """
    chosen = _device(machine, device)
    attention = _kernels(machine, chosen.name, "matrix products with sums in float32", "over the state")
    passes = _kernels(machine, chosen.name, "as defined", "modulation after a norm, convolution with gate")
    return Selection(chosen, _dtype(machine, chosen.name, dtype), attention, passes)


def inspect_machine() -> Machine:
    """Look at the machine this runs on."""
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            gpus.append(Gpu(found.name, found.total_memory, (found.major, found.minor)))
    features = _features()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        features=features,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=_memory(),
        torch=torch.__version__,
        triton=_version("triton"),
        gpus=tuple(gpus),
    )


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which `device` multiplies matrices fastest."""
    return DTYPES[_resolved(device.type, "auto")]


def autocast(device: torch.device, dtype: str = "auto") -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 if `dtype` is bf16, or auto and it is fast here; weights stay float32."""
    if _resolved(device.type, dtype) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@cache
def _resolved(device: str, dtype: str) -> str:
    return select(inspect_machine(), device, dtype).dtype.name


def _device(machine: Machine, wanted: str) -> Choice:
    there = ["cpu", *(f"cuda:{index}" for index in range(len(machine.gpus)))]
    if wanted == "auto":
        if machine.gpus:
            return Choice("cuda:0", f"{machine.gpus[0].name} is faster than the CPU")
        why = "this torch is built for CPUs" if "+cpu" in machine.torch else "torch finds no GPU"
        return Choice("cpu", why)
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in there:
        raise InputError(f"device={wanted} is not there. Use auto or one of {', '.join(there)}.")
    return Choice(name, "asked for")


def _dtype(machine: Machine, device: str, wanted: str) -> Choice:
    if wanted != "auto":
        if wanted not in DTYPES:
            raise InputError(f"dtype={wanted} is unknown. Use auto or one of {', '.join(DTYPES)}.")
        return Choice(wanted, "asked for")
    if device == "cpu":
        found = [feature for feature in _BF16_FEATURES if feature in machine.features]
        if found:
            return Choice("bf16", f"the processor multiplies it ({', '.join(found)}), faster than fp32")
        return Choice("fp32", f"the processor has none of {', '.join(_BF16_FEATURES)}: bf16 would be slower")
    major, minor = machine.gpus[int(device.partition(":")[2])].capability
    if major >= 8:
        return Choice("bf16", f"compute capability {major}.{minor} multiplies it")
    return Choice("fp32", f"compute capability {major}.{minor} is below 8.0, which brought bf16")


def _kernels(machine: Machine, device: str, by_torch: str, by_triton: str) -> Choice:
    if device == "cpu":
        return Choice("torch", f"{by_torch}; the Triton kernels need a GPU")
    if machine.triton is None:
        return Choice("torch", f"{by_torch}; triton is not installed")
    return Choice("triton", f"kernels: {by_triton}; once they agree with the definition at first use")


def _features() -> frozenset[str]:
    interesting = (*_BF16_FEATURES, "avx2", "avx512_f", "avx512f", "amx_tile", "neon", "asimd", "sve")
    if hasattr(torch.cpu, "get_capabilities"):
        known = torch.cpu.get_capabilities()
        return frozenset(feature for feature in interesting if known.get(feature))
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(interesting) & frozenset(flags[1].split() if flags else ())


def _processor() -> str:
    name = re.search(r"^model name\s*:\s*(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def _memory() -> int:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    limits = [
        _text(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")
    ]
    return min([installed, *(int(limit) for limit in limits if limit.isdigit())])


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""
