"""The attention benchmark as a page and a plot."""

from collections.abc import Sequence

from lineardit.bench.attention import (
    ARTICLE,
    EINSUM,
    FUSED,
    SHIPPED,
    WRITTEN_OUT,
    Measurement,
    Method,
    crossover,
    exponent,
)
from lineardit.bench.clock import Cost
from lineardit.bench.plot import line_plot
from lineardit.bench.table import MIB, markdown_table, significant

FIT_ABOVE = 4096
"""Exponents are fitted over more tokens than this: below, fixed costs count."""
SMALL = 16 * MIB


def attention_page(stamp: str, article: Sequence[Measurement], sweep: Sequence[Measurement]) -> str:
    """Tables, crossover and exponents in Markdown, under the stamp of the machine."""
    parts = ["# Attention, softmax and linear", stamp]
    if article:
        title = "## The article's shape: batch {}, {} heads, {:,} tokens, {} channels a head"
        parts += [title.format(*ARTICLE), _article_table(article)]
    if sweep:
        shape = sweep[0].shape
        parts += [
            f"## Over the number of tokens: batch {shape.batch}, {shape.heads} heads, "
            f"{shape.head_dim} channels a head",
            _sweep_table(sweep),
            _left_out(sweep),
            "\n".join(f"- {sentence}" for sentence in _findings(sweep)),
        ]
    parts.append(
        "Milliseconds are medians of one call, after outputs and gradients were compared with the definition "
        "in float64. Training is forward and backward. Memory is the most held at once beyond the inputs; "
        "below 16 MiB it can hide in memory that was free before. On a CPU freed memory is kept while calls "
        "are timed, and linear attention as shipped is the C++ passes where they can be had."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def attention_plot(sweep: Sequence[Measurement]) -> str:
    """Seconds over tokens, forward, one line per method."""
    series = {
        method.name: [(float(tokens), seconds) for tokens, seconds in _times(sweep, method, False).items()]
        for method in _methods(sweep)
    }
    return line_plot(
        {name: line for name, line in series.items() if line},
        title="Attention, forward",
        x_label="tokens",
        y_label="seconds",
        log_x=True,
        log_y=True,
    )


def _article_table(article: Sequence[Measurement]) -> str:
    base = next((row.forward.seconds for row in article if row.method == WRITTEN_OUT and row.forward), None)
    rows = []
    for row in article:
        faster = f"{significant(base / row.forward.seconds)}x" if base and row.forward else "-"
        rows.append([row.method.name, *_cells(row), faster, row.left_out or "-"])
    header = ["method", "forward ms", "training ms", "forward MiB", "training MiB"]
    return markdown_table([*header, "forward against written out", "left out"], rows)


def _sweep_table(sweep: Sequence[Measurement]) -> str:
    header = ["tokens", "method", "forward ms", "training ms", "forward MiB", "training MiB"]
    order = sorted(sweep, key=lambda row: row.shape.tokens)
    rows = [[f"{row.shape.tokens:,}", row.method.name, *_cells(row)] for row in order if row.forward]
    return markdown_table(header, rows)


def _cells(row: Measurement) -> list[str]:
    costs = (row.forward, row.training)
    return [*(_milliseconds(cost) for cost in costs), *(_mebibytes(cost) for cost in costs)]


def _milliseconds(cost: Cost | None) -> str:
    return significant(1000 * cost.seconds) if cost else "-"


def _mebibytes(cost: Cost | None) -> str:
    if cost is None or cost.peak is None:
        return "-"
    return f"{cost.peak / MIB:,.0f}" if cost.peak >= SMALL else "< 16"


def _left_out(sweep: Sequence[Measurement]) -> str:
    lines = []
    for method in _methods(sweep):
        skipped = [row for row in sweep if row.method == method and row.left_out]
        for kind, some in (
            ("forward", [row for row in skipped if row.forward is None]),
            ("training", [row for row in skipped if row.forward is not None]),
        ):
            if some:
                first = min(some, key=lambda row: row.shape.tokens)
                reason = first.left_out.removeprefix("backward: ")
                lines.append(f"- {method.name}, {kind}, from {first.shape.tokens:,} tokens: {reason}")
    return "\n".join(["Left out:", "", *lines]) if lines else ""


def _findings(sweep: Sequence[Measurement]) -> list[str]:
    sentences = []
    for method in _methods(sweep):
        fits = []
        for what, trained in (("forward", False), ("training", True)):
            points = {n: t for n, t in _times(sweep, method, trained).items() if n > FIT_ABOVE}
            power = exponent(points)
            if power is not None:
                fits.append(f"{what} {power:.2f} ({len(points)} sizes)")
        if fits:
            sentences.append(
                f"{method.name}: time grows with tokens to the power of {', '.join(fits)}, over more than "
                f"{FIT_ABOVE:,} tokens."
            )
    for slow in (FUSED, WRITTEN_OUT):
        for fast in (SHIPPED, EINSUM):
            for what, trained in (("forward", False), ("training", True)):
                sentences += _crossing(sweep, slow, fast, what, trained)
    return sentences


def _crossing(
    sweep: Sequence[Measurement], slow: Method, fast: Method, what: str, trained: bool
) -> list[str]:
    slower, faster = _times(sweep, slow, trained), _times(sweep, fast, trained)
    shared = sorted(slower.keys() & faster.keys())
    if not shared:
        return []
    tokens = crossover(slower, faster)
    if tokens is None:
        verdict = f"not faster up to {shared[-1]:,} tokens, the most measured of both"
    elif tokens <= shared[0]:
        verdict = f"faster at every size measured of both, {shared[0]:,} to {shared[-1]:,} tokens"
    else:
        verdict = f"faster from about {significant(tokens, 2)} tokens on"
    return [f"{fast.name} against {slow.name}, {what}: {verdict}."]


def _methods(sweep: Sequence[Measurement]) -> list[Method]:
    return list(dict.fromkeys(row.method for row in sweep))


def _times(sweep: Sequence[Measurement], method: Method, trained: bool) -> dict[int, float]:
    costs = {
        row.shape.tokens: row.training if trained else row.forward for row in sweep if row.method == method
    }
    return {tokens: cost.seconds for tokens, cost in costs.items() if cost is not None}
