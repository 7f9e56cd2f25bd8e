"""`lineardit info`: what would be used here and why, and what a picture or a model says of itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lineardit.errors import InputError


def info(
    target: Annotated[
        Path | None, typer.Argument(help="A PNG picture or a model folder; nothing tells about this machine.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Tell what this device would use: auto, cpu, cuda, cuda:1 ...")
    ] = ("auto"),
    dtype: Annotated[str, typer.Option(help="auto, bf16, fp32 or fp16.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for programs instead of a table.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every weight of a model and compare it to what was written."),
    ] = False,
) -> None:
    """Tell which device, dtype and kernels would be used here, or describe a picture or a model."""
    if target is None:
        facts = machine_facts(device, dtype)
    elif target.is_dir():
        facts = model_facts(target, verify)
    elif target.suffix.lower() == ".png" or target.is_file():
        facts = picture_facts(target)
    else:
        raise InputError(f"{target} does not exist. Give a PNG picture or a model folder.")
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _print_tables(facts)


def machine_facts(device: str, dtype: str) -> dict[str, Any]:
    """What would run here, and the facts that decided it."""
    from lineardit.kernels.select import inspect_machine, select

    machine = inspect_machine()
    selection = select(machine, device, dtype)
    return {
        "used here": {
            name: {"choice": choice.name, "reason": choice.reason}
            for name, choice in (
                ("device", selection.device),
                ("dtype", selection.dtype),
                ("linear attention", selection.attention),
            )
        },
        "machine": {
            "system": machine.system,
            "processor": machine.processor,
            "features": sorted(machine.features),
            "cores": machine.cores,
            "threads": machine.threads,
            "memory_bytes": machine.memory,
            "gpus": [f"{gpu.name}, {_bytes(gpu.memory)}" for gpu in machine.gpus],
            "torch": machine.torch,
            "triton": machine.triton,
        },
    }


def picture_facts(path: Path) -> dict[str, Any]:
    """How a picture was made, as far as its file says it."""
    from lineardit.interop.png_text import parse_parameters, read_png_text

    text = read_png_text(path)
    facts: dict[str, Any] = {}
    if text.settings is not None:
        facts["lineardit"] = text.settings
    if text.parameters is not None:
        facts["parameters"] = parse_parameters(text.parameters)
    return facts


def model_facts(folder: Path, verify: bool) -> dict[str, Any]:
    """The components of a model, from its description and the headers of its weights."""
    from lineardit.interop.native import check_files, describe_model

    components, about = describe_model(folder)
    if verify:
        check_files(folder)
    facts: dict[str, Any] = {}
    for name, component in components.items():
        dtypes = sorted({tensor.dtype for tensor in component.tensors.values()})
        facts[name] = {
            "class": component.class_name,
            "parameters": component.parameters,
            "tensors": len(component.tensors),
            "dtype": ", ".join(dtypes),
            "size_bytes": component.written.size,
            "sha256": component.written.sha256 + (" (verified)" if verify else ""),
            **component.config.model_dump(mode="json"),
        }
    if about:
        facts["about"] = about
    card = folder / "README.md"
    if card.is_file():
        facts["card"] = {"text": card.read_text("utf-8", errors="replace")}
    return facts


def _print_tables(facts: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, entries in facts.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, title_style="bold")
        for key, value in entries.items():
            match value:
                case {"choice": choice, "reason": reason}:
                    table.add_row(key, Text(str(choice)), Text(f"because {reason}"))
                case int() if key.endswith("_bytes"):
                    table.add_row(key.removesuffix("_bytes"), Text(_bytes(value)))
                case _:
                    table.add_row(key, Text(_readable(value)))
        console.print(table)
        console.print()


def _readable(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list() if all(isinstance(item, str | int | float) for item in value):
            return ", ".join(str(item) for item in value) or "none"
        case list():
            return "\n".join(json.dumps(item) for item in value)
        case dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _bytes(count: int) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for exponent, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**exponent:
            return f"{count / 1000**exponent:.1f} {unit}"
    return f"{count} B"
