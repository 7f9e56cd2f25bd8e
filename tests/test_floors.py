"""The house has floors: a unit imports strictly lower ones, or itself, and always by its absolute name."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "lineardit"

FLOORS = {
    "errors": 0,
    "config": 1,
    "kernels": 2,
    "nn": 3,
    "transformer": 4,
    "autoencoder": 4,
    "text": 4,
    "diffusion": 4,
    "data": 4,
    "interop": 5,
    "pipeline": 6,
    "training": 6,
    "evaluation": 6,
    "bench": 6,
    "serving": 7,
    "cli": 8,
    # The door: what the whole package offers by name.
    "__init__": 9,
    "__main__": 9,
}


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions and `if TYPE_CHECKING` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def violations(package: Path) -> list[str]:
    """Every import that breaks a rule, with its place and the rule."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        unit = place.parts[0].removesuffix(".py")
        if unit not in FLOORS:
            found.append(f"{place}: the unit {unit} has no floor")
            continue
        for line, module in imported_modules(ast.parse(path.read_text("utf-8"))):
            where = f"{place}:{line}: {unit} imports {module}"
            if module.startswith("."):
                found.append(f"{where}, a relative name")
            elif module == "lineardit":
                found.append(f"{where}, the whole package instead of a module")
            elif module.startswith("lineardit."):
                other = module.split(".")[1]
                if other not in FLOORS:
                    found.append(f"{where}, which has no floor")
                elif other != unit and FLOORS[other] >= FLOORS[unit]:
                    found.append(f"{where}, floor {FLOORS[other]} from floor {FLOORS[unit]}")
    return found


def test_every_unit_imports_only_lower_floors() -> None:
    assert not violations(PACKAGE)


def test_every_unit_has_a_floor() -> None:
    units = {
        path.stem
        for path in PACKAGE.glob("[a-z]*")
        if (path / "__init__.py").exists() or path.suffix == ".py"
    }
    assert units <= set(FLOORS)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("nn/planted.py", "from lineardit.transformer.model import Sana", "floor 4 from floor 3"),
        ("diffusion/planted.py", "from lineardit.transformer.model import Sana", "floor 4 from floor 4"),
        ("config/planted.py", "def late():\n    import lineardit.kernels.reference", "floor 2 from floor 1"),
        ("training/planted.py", "from .loop import train", "a relative name"),
        ("cli/planted.py", "import lineardit", "the whole package"),
        ("cli/planted.py", "from lineardit.somewhere import x", "no floor"),
        ("somewhere.py", "import json", "the unit somewhere has no floor"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    copy = tmp_path / "lineardit"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    before = violations(copy)
    (copy / file).write_text(line + "\n", "utf-8")
    (planted,) = set(violations(copy)) - set(before)
    assert file in planted and complaint in planted


def test_a_downward_import_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "info.py").write_text(
        "from lineardit.errors import InputError\nfrom lineardit.cli.app import app\n", "utf-8"
    )
    assert not violations(tmp_path)
