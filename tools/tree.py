"""Print the package as a tree with one line per file, from the first lines of the module docstrings.

python tools/tree.py            print it
python tools/tree.py README.md  replace it between the markers there
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree: python tools/tree.py README.md -->", "<!-- /tree -->"
WIDTH = 34


def tree() -> str:
    """The tree as a code block."""
    package = ROOT / "src" / "lineardit"
    lines = ["src/lineardit/"]
    for path in sorted(package.rglob("*.py"), key=_folders_last):
        parts = path.relative_to(package).parts
        if path.name == "__init__.py":
            if len(parts) > 1:
                lines.append("  " * (len(parts) - 1) + f"{parts[-2]}/")
            continue
        name = "  " * len(parts) + path.name
        lines.append(f"{name:{WIDTH}} {_first_line(path)}")
    return "\n".join(["```", *lines, "```"])


def _folders_last(path: Path) -> tuple[tuple[bool, str], ...]:
    """Files of a folder before its folders, its __init__ before all."""
    parts = path.relative_to(ROOT).parts
    return tuple(
        (index < len(parts) - 1, "" if part == "__init__.py" else part) for index, part in enumerate(parts)
    )


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.split("\n")[0].rstrip(".")


def main() -> None:
    """Print, or replace in the file that is named."""
    if len(sys.argv) == 1:
        sys.stdout.write(tree() + "\n")
        return
    page = Path(sys.argv[1])
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{tree()}\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
