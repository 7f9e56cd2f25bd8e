"""What a model says of how it is to be sampled; it lies beside the weights."""

from dataclasses import dataclass, fields

from lineardit.errors import CheckpointError
from lineardit.interop.native import INDEX
from lineardit.interop.place import Place

CONSISTENCY = "scm"
"""The sampler of models that see the image in one to four steps."""


@dataclass(frozen=True)
class Sampling:
    """What a model was made to be sampled with; a call may differ."""

    shift: float = 1.0
    """Flow shift of the time grid."""
    guidance_scale: float = 4.5
    num_inference_steps: int = 20
    size: int = 1024
    """Pixels per side where no height or width is given."""
    sampler: str = "dpm++"
    whole_times: bool = False
    """The network sees times cut to whole thousandths, all it was shown in training (SANA 1.0 and 1.5)."""
    published_euler: bool = False
    """Euler's times are those of diffusers' scheduler (`euler_flow_times`) instead of even steps."""


def sampling_of(place: Place) -> Sampling:
    """What a place says of it. Raises `CheckpointError` for what is no field of `Sampling`."""
    try:
        return Sampling(**place.sampling)
    except TypeError:
        known = ", ".join(field.name for field in fields(Sampling))
        raise CheckpointError(
            f"{place.path / INDEX} is damaged: about.sampling holds some of {known}."
        ) from None
