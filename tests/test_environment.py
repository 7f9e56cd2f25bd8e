"""What must not be here, and what must not be imported before it is needed."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def in_new_process(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def modules_after(code: str) -> set[str]:
    out = in_new_process(f"import sys\n{code}\nsys.stdout.write('|' + ' '.join(sys.modules))")
    return set(out.rpartition("|")[2].split())


def requirement_names(lines: list[str]) -> set[str]:
    return {
        re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower() for line in lines if line[:1] not in "#"
    }


def test_torchvision_is_not_installed() -> None:
    names = {(distribution.name or "").lower() for distribution in importlib.metadata.distributions()}
    assert "torch" in names
    assert not {"torchvision", "torchaudio"} & names


def test_torchvision_is_neither_declared_nor_pinned_nor_required_by_what_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert "torch" in requirement_names(declared) & requirement_names(pinned)
    assert "torchvision" not in requirement_names(declared) | requirement_names(pinned)
    for distribution in importlib.metadata.distributions():
        wanted = [line for line in distribution.requires or [] if "extra ==" not in line]
        assert "torchvision" not in requirement_names(wanted), distribution.name


def test_every_pin_is_exact_and_names_no_build_and_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[:1] != "#"]
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)


def test_every_declared_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    pinned = requirement_names((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    # Which triton fits is for torch to say: its build for CUDA asks for one version exactly.
    assert {name.replace("_", "-") for name in requirement_names(declared)} - {"triton"} <= pinned


def test_everything_imports_while_torchvision_is_blocked() -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "src" / "lineardit").rglob("*.py")
    )
    assert "lineardit.training.checkpoint" in modules
    in_new_process(
        "import importlib, sys\n"
        "sys.modules['torchvision'] = None\n"
        f"for name in {modules}: importlib.import_module(name)"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import lineardit",
        "import lineardit.cli.app",
        "from lineardit.cli.app import main; main(['--help'])",
        "from lineardit.cli.app import main; main(['info', '--help'])",
        "import lineardit.config.files",
    ],
)
def test_help_and_configuration_import_no_torch(code: str) -> None:
    heavy = {"torch", "numpy", "PIL", "transformers", "safetensors"}
    loaded = modules_after(code)
    assert "lineardit" in loaded and not loaded & heavy


def test_the_help_of_the_command_imports_neither_typer_nor_pydantic() -> None:
    loaded = modules_after("from lineardit.cli.app import main; main(['--help'])")
    assert not loaded & {"typer", "click", "rich", "pydantic"}
