"""Options that several verbs have in common."""

from typing import Annotated

import typer

AutoencoderPlace = Annotated[
    str | None, typer.Option(help="Place of the autoencoder, where the model has none or another is wanted.")
]
TextEncoderPlace = Annotated[
    str | None, typer.Option(help="Place of the text encoder, likewise; a folder of Gemma-2 will do.")
]
