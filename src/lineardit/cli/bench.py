"""`lineardit bench`: measurements that anyone can repeat, each under the machine's stamp."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineardit.errors import InputError, OutputError

if TYPE_CHECKING:
    from lineardit.bench.attention import Measurement

PROMPT = "a red apple left of a cat on a sky blue background"
STEPS, RUNS, BUDGET = 20, 5, 10.0
TAKEN = {
    "image": {"model", "num_inference_steps", "runs"},
    "attention": {"tokens", "budget", "device", "plot"},
    "models": {"only", "pixels", "budget", "device"},
    "step": {"only", "pixels", "budget"},
    "decode": {"only", "pixels", "budget"},
    "peers": {"only", "pixels", "budget"},
}
"""The options that belong to one measurement alone."""


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="image: one picture from a cold start, by part. attention: softmax and linear, by tokens. "
            "models: whole networks with random weights. step, decode, peers (both, and whole pictures): "
            "SANA-0.6B side by side with diffusers on the same weights."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="image: folder of a model; the bundled one unless given.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help=f"image: denoising steps; {STEPS} unless given.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help=f"image: fresh processes, the median counts; {RUNS} unless given.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="attention: sizes, as 256,1024; 256 to 262144 unless given.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="models: some networks, as dit-xl/2,sana-0.6b. peers: some contenders, with ; between them."
        ),
    ] = None,
    pixels: Annotated[
        str | None, typer.Option(help="models: some sides, as 512,1024; every network's own unless given.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help=f"attention, models: seconds per measurement; {BUDGET:g} unless given. "
            "0 times no models, only counts."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="attention, models: auto, cpu or cuda; auto unless given.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="attention: also draw the times, as SVG.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch; 0 leaves it to torch.")] = 0,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the table as Markdown.")
    ] = None,
) -> None:
    """Measure speed and memory on this machine."""
    _check(what, {name: value for name, value in locals().items() if value is not None})
    import torch

    if threads:
        torch.set_num_threads(threads)
    seconds = BUDGET if budget is None else budget
    sweep: list[Measurement] = []
    if what == "image":
        page = _image(model, num_inference_steps or STEPS, runs or RUNS, threads, dtype)
    elif what in ("step", "decode", "peers"):
        page = _peers(what, only, _sizes("pixels", pixels), seconds, dtype, threads)
    elif what == "models":
        page = _models(only, _sizes("pixels", pixels), seconds, device or "auto", dtype)
    else:
        page, sweep = _attention(_sizes("tokens", tokens), seconds, device or "auto", dtype)
    typer.echo(page)
    if output is not None:
        _write(output, page)
    if plot is not None:
        from lineardit.bench.attention_report import attention_plot

        _write(plot, attention_plot(sweep))


def _check(what: str, given: dict[str, object]) -> None:
    if what not in TAKEN:
        raise InputError(f"unknown measurement {what!r}. Use one of {', '.join(TAKEN)}.")
    for name in sorted(given.keys() & (set().union(*TAKEN.values()) - TAKEN[what])):
        owners = "bench " + ", ".join(owner for owner, names in TAKEN.items() if name in names)
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option} belongs to {owners}, not to bench {what}. Leave it out.")
    for name, usual, least in (
        ("num_inference_steps", STEPS, 1),
        ("runs", RUNS, 1),
        ("budget", BUDGET, 0),
        ("threads", 0, 0),
    ):
        value = given.get(name, usual)
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise InputError(f"{name}={value} is not a number of {least} or more. Use {usual:g}.")


def _sizes(name: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"{name}={text!r} is no list of positive whole numbers. Use 512,1024.")
    return sorted({int(word) for word in words})


def _image(model: str | None, steps: int, runs: int, threads: int, dtype: str) -> str:
    from lineardit.bench.image import PARTS, measure_cold_split
    from lineardit.bench.stamp import hardware_stamp, stamp_line
    from lineardit.bench.table import markdown_table

    split = measure_cold_split(PROMPT, model=model, steps=steps, runs=runs, threads=threads, dtype=dtype)
    rows = [[part, f"{split.parts[part]:.2f}"] for part in PARTS]
    rows.append(["**process, start to end**", f"**{split.whole:.2f}**"])
    return (
        f"# One picture from a cold start\n\n{stamp_line(hardware_stamp())}; {dtype}, {steps} guided steps, "
        f"median of {runs} processes.\n\n{markdown_table(['part', 'seconds'], rows)}\n"
    )


def _attention(
    sizes: list[int] | None, budget: float, device: str, dtype: str
) -> "tuple[str, list[Measurement]]":
    """The page, and what of it is drawn."""
    from lineardit.bench.attention import ARTICLE, TOKENS, measure_attention
    from lineardit.bench.attention_report import attention_page
    from lineardit.bench.stamp import hardware_stamp, stamp_line
    from lineardit.kernels import native
    from lineardit.kernels.select import inspect_machine, select

    chosen = select(inspect_machine(), device, dtype)
    place, precision = chosen.torch_device, chosen.torch_dtype
    if place.type == "cpu":
        native.use("auto")  # as shipped is what `lineardit generate` and `train` take
    several = sizes or list(TOKENS)
    shapes = [ARTICLE._replace(batch=1, tokens=size) for size in several]
    sweep = list(measure_attention(shapes, place, precision, budget))
    # Its softmax written out takes 20 GB or so where it is trained: only where its size is asked for.
    article = (
        list(measure_attention([ARTICLE], place, precision, budget)) if ARTICLE.tokens in several else []
    )
    stamp = f"{stamp_line(hardware_stamp())}; on {place}, {dtype}, at most {budget:g} s a measurement."
    return attention_page(stamp, article, sweep), sweep


def _models(only: str | None, pixels: list[int] | None, budget: float, device: str, dtype: str) -> str:
    from lineardit.bench.models import SUBJECTS, measure_models, subject_named
    from lineardit.bench.models_report import models_page
    from lineardit.bench.stamp import hardware_stamp, stamp_line
    from lineardit.kernels.select import inspect_machine, select

    names = list(SUBJECTS) if only is None else [name.strip() for name in only.split(",")]
    known = {size for name in names for size in subject_named(name).pixels}
    for size in pixels or []:
        if size not in known:
            raise InputError(f"pixels={size} is no size of {', '.join(names)}. Use {_listed(known)}.")
    chosen = select(inspect_machine(), device, dtype)
    rows = list(measure_models(names, pixels, chosen.torch_device, chosen.dtype.name, budget))
    place = chosen.torch_device
    stamp = f"{stamp_line(hardware_stamp())}; on {place}, {dtype}, at most {budget:g} s a measurement."
    return models_page(stamp, rows)


def _peers(
    what: str, only: str | None, pixels: list[int] | None, budget: float, dtype: str, threads: int
) -> str:
    import torch

    from lineardit.bench.clock import operations_per_second
    from lineardit.bench.peers import CONTENDERS, LARGE, PARTS, STRIDE, measure_peers, operations
    from lineardit.bench.peers_report import Limit, peers_page
    from lineardit.bench.stamp import hardware_stamp, stamp_line
    from lineardit.kernels.select import DTYPES

    names = list(CONTENDERS) if only is None else [name.strip() for name in only.split(";")]
    sizes = pixels or [512, 1024]
    for size in sizes:
        if size % STRIDE:
            raise InputError(f"pixels={size} is not a multiple of {STRIDE}, the pixels per latent. Use 512.")
    parts = PARTS if what == "peers" else (what,)
    rows = list(measure_peers(names, parts, sizes, dtype, budget, threads))
    rate = operations_per_second(torch.device("cpu"), DTYPES[dtype], LARGE)
    limit = Limit({(part, size): operations(part, size) for part in parts for size in sizes}, rate)
    return peers_page(f"{stamp_line(hardware_stamp())}; {dtype}.", rows, limit)


def _listed(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror}.") from None
