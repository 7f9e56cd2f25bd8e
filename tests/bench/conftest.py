"""Measurements that are scripts, as modules."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of benchmarks/ by its name."""
    with pytest.MonkeyPatch.context() as patch:

        def load(name: str) -> ModuleType:
            path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)  # where its dataclasses look it up
            spec.loader.exec_module(module)
            return module

        yield load
