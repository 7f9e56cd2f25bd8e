"""What a measurement was made on: a number without it says nothing."""

import platform
from typing import Any

import torch

from lineardit.kernels.select import inspect_machine


def hardware_stamp() -> dict[str, Any]:
    """Processor or GPU, threads, versions: the line that stands above every table."""
    machine = inspect_machine()
    return {
        "processor": machine.processor,
        "cores": machine.cores,
        "threads": torch.get_num_threads(),
        "features": sorted(machine.features),
        "gpu": [gpu.name for gpu in machine.gpus],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def stamp_line(stamp: dict[str, Any]) -> str:
    """The stamp in one line."""
    gpus = f", {', '.join(stamp['gpu'])}" if stamp["gpu"] else ""
    features = ", ".join(feature for feature in stamp["features"] if "bf16" in feature) or "no bf16"
    return (
        f"{stamp['processor']} ({features}), {stamp['threads']} of {stamp['cores']} cores{gpus}; "
        f"torch {stamp['torch']}, Python {stamp['python']}"
    )
