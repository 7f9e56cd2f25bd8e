"""Print how tensors are called here, in diffusers and in official files, from the rules that load them.

python tools/key_tables.py                   print the tables
python tools/key_tables.py docs/formats.md   replace them between the markers there
"""

import re
import sys
from pathlib import Path

from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, differing
from lineardit.interop import diffusers, official
from lineardit.interop.rename import Renaming, Rule

BEGIN, END = "<!-- keys: python tools/key_tables.py docs/formats.md -->", "<!-- /keys -->"

_NUMBERS = (
    (re.compile(r"(down_blocks|up_blocks|stages)\.\d+\.(op_list\.)?\d+\."), r"\1.S.\2B."),
    (re.compile(r"(transformer_blocks|blocks)\.\d+\."), r"\1.N."),
    (re.compile(r"\.(weight|bias)$"), r".*"),
)


def tables() -> str:
    """One table for each network."""
    # The options that add tensors are on, so that every name is there.
    transformer = differing(TRANSFORMERS["sana-sprint-0.6b"], depth=1)
    sana, mix = (
        _rows(diffusers.autoencoder_renaming(config), official.autoencoder_renaming(config))
        for config in (AUTOENCODERS["dc-ae-f32c32-sana-1.0"], AUTOENCODERS["dc-ae-f32c32-mix-1.0"])
    )
    return "\n".join(
        [
            "### Transformer\n",
            _table(
                _rows(diffusers.transformer_renaming(transformer), official.transformer_renaming(transformer))
            ),
            "\n### Autoencoder, as dc-ae-f32c32-sana\n",
            _table(sana),
            "\n### What is called otherwise in dc-ae-f32c32-in and -mix, f64 and f128\n",
            _table([row for row in mix if row not in sana]),
        ]
    )


def _rows(theirs: Renaming, published: Renaming) -> list[str]:
    rows: dict[str, str] = {}
    for own, rule in theirs.pairs.items():
        cells = (_cell(rule), _cell(published.pairs[own]))
        rows.setdefault(_plain(own), f"| `{_plain(own)}` | {cells[0]} | {cells[1]} |")
    return list(rows.values())


def _table(rows: list[str]) -> str:
    return "\n".join(["| here | diffusers | official |", "|---|---|---|", *rows])


def _cell(rule: Rule) -> str:
    names = ", ".join(f"`{_plain(name)}`" for name in rule.foreign)
    return f"{names} as 1x1 convolution" if rule.pointwise else names


def _plain(name: str) -> str:
    for pattern, text in _NUMBERS:
        name = pattern.sub(text, name)
    return name


def main() -> None:
    """Print, or replace in the file that is named."""
    if len(sys.argv) == 1:
        sys.stdout.write(tables() + "\n")
        return
    page = Path(sys.argv[1])
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
