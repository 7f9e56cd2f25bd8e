"""What holds in every test: one thread, no network, shapes and types of the package checked."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"

PACKAGE = Path(__file__).parents[1] / "src" / "lineardit"
# No tensors there, and pydantic's methods return `Self`, which beartype refuses outside a decorated class.
WITHOUT_TENSORS = {"errors", "config", "cli"}
UNITS = {path.stem for path in PACKAGE.glob("[a-z]*")} - WITHOUT_TENSORS

# Before anything of the package is imported: annotated shapes are then enforced in every call a test makes.
install_import_hook([f"lineardit.{unit}" for unit in sorted(UNITS)], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, saying so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
