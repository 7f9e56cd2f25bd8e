"""The networks that draw together: loaded, extended by LoRAs and a ControlNet, saved."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.errors import CheckpointError, InputError
from lineardit.interop.assembly import (
    assemble_autoencoder,
    assemble_controlnet,
    assemble_dit,
    assemble_network,
    assemble_text_encoder,
)
from lineardit.interop.bundled import BUNDLED, bundled_folder
from lineardit.interop.export import Format, export, live_place
from lineardit.interop.lora import (
    add_lora,
    loras,
    merge_loras,
    read_lora,
    unload_loras,
    weigh_loras,
)
from lineardit.interop.place import check_control
from lineardit.interop.places import open_place, with_parts
from lineardit.kernels import native
from lineardit.kernels.select import DTYPES, inspect_machine, select
from lineardit.nn.finite import check_parameters, finite_outputs
from lineardit.nn.int8 import Int8Linear, quantize_blocks
from lineardit.nn.offload import offloaded, settle
from lineardit.nn.packed import PackedLinear, pack_blocks
from lineardit.pipeline.compiled import Compiled, compile_decoder
from lineardit.pipeline.sampling import Sampling, sampling_of
from lineardit.text.embedding import TextEncoder
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import Denoiser
from lineardit.transformer.dit import DiT
from lineardit.transformer.model import Transformer

M = TypeVar("M", bound="Model")


class Model:
    """A transformer, an autoencoder and a text encoder that belong together; what draws classes has no text
    encoder, but the names of the classes."""

    def __init__(
        self,
        transformer: Denoiser | DiT,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder | None,
        sampling: Sampling,
        *,
        name: str,
        controlnet: ControlNet | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.transformer, self.autoencoder, self.text_encoder = transformer, autoencoder, text_encoder
        self.controlnet, self.classes = controlnet, tuple(classes)
        self.sampling, self.name = sampling, name
        self._compiled: Compiled | None = None
        self._lora_places: dict[str, str] = {}
        self._control_place: str | None = None

    @classmethod
    def from_pretrained(
        cls: type[M],
        place: str | Path | None = None,
        *,
        autoencoder: str | Path | None = None,
        text_encoder: str | Path | None = None,
        device: str = "auto",
        dtype: str = "fp32",
        variant: str | None = None,
        offload: bool = False,
    ) -> M:
        """Load the bundled model, or that of a place: a folder (ours or of diffusers), a file or a hub id.

        An official file is a transformer only: `autoencoder` and `text_encoder` are the places of the rest.
        `dtype` is fp32, bf16 or fp16, or "auto" for what is fastest here. A text encoder of ours stays in
        float32, a published one in the dtype that it is stored in. `variant` (fp16, bf16) chooses among the
        weights of a diffusers folder.

        `offload` leaves the weights of SANA's blocks, of Gemma's layers, of the encoder and of the decoder in
        their files until they are at work (`nn.offload`): one of these networks at a time is in memory then,
        and within a bound (`Pipeline.limit_memory`) as much of it as fits. Other networks (a ControlNet, T5,
        DiT, the article's) are read at once. What changes weights, such as a LoRA, reads all that it changes.
        What is wrong with a number in a file is found when it is read.

        Raises:
            CheckpointError: there is no model, it is damaged, or parts of it are missing.
            InputError: the device or the dtype is not here, or fp16 cannot hold a weight.
        """
        chosen = select(inspect_machine(), device, dtype)
        opened = open_place(bundled_folder() if place is None else place, variant=variant)
        if autoencoder is not None or text_encoder is not None:
            opened = with_parts(opened, autoencoder, text_encoder, variant=variant)
        if opened.missing:
            raise CheckpointError(
                f"{opened.path} holds no {', no '.join(opened.missing)}: a pipeline needs all three. "
                "Give the folder of a whole model, or the places of the rest: --autoencoder, --text-encoder."
            )
        target, name = chosen.torch_device, chosen.dtype.name
        if opened.draws_classes:
            return cls(
                assemble_dit(opened, name, target),
                assemble_autoencoder(opened, name, target, offloads=offload),
                None,
                sampling_of(opened),
                name=str(place),
                classes=opened.classes,
            )
        return cls(
            assemble_network(opened, name, target, offloads=offload),
            assemble_autoencoder(opened, name, target, offloads=offload),
            assemble_text_encoder(opened, target, offloads=offload),
            sampling_of(opened),
            name=BUNDLED if place is None else str(place),
            controlnet=assemble_controlnet(opened, name, target) if "controlnet" in opened.networks else None,
        )

    def save_pretrained(
        self, folder: str | Path, *, format: Format = "native", dtype: str | None = None, force: bool = False
    ) -> None:
        """Write the model to a folder that `from_pretrained` reads; "diffusers" is read by diffusers too.

        Weights are stored in the dtype that they have, or as fp32, bf16 or fp16.

        Raises:
            OutputError: the folder exists and `force` is not given, or cannot be written.
            ConfigError: the model cannot be told in that format.
            InputError: the model is quantized.
        """
        if self._is_fixed:
            raise InputError(
                "a quantized or packed model is not saved. Save it before that; it takes no time."
            )
        for network in self.networks.values():
            settle(network)
        place = live_place(
            self.name,
            self.transformer,
            self.autoencoder,
            self.text_encoder,
            asdict(self.sampling),
            self.controlnet,
            {"classes": list(self.classes)} if self.classes else None,
        )
        export(place, Path(folder), format, dtype=dtype, force=force)

    def load_controlnet(self, place: str | Path, *, variant: str | None = None) -> None:
        """Take the ControlNet of a place, so that pictures can be drawn along a `control_image`.

        Raises:
            CheckpointError: there is none, it is damaged, or for another transformer.
        """
        opened = open_place(place, variant=variant)
        check_control(opened, self.transformer.config)
        dtype = next(name for name, each in DTYPES.items() if each == self.dtype)
        self.controlnet = assemble_controlnet(opened, dtype, self.device)
        self._control_place = str(place)

    def load_lora(self, place: str | Path, weight: float = 1.0, *, name: str | None = None) -> str:
        """Add a LoRA of peft or diffusers to the transformer, and return what it is called there.

        Several add up. They lie beside the layers, which are what they were once they are unloaded.

        Raises:
            CheckpointError: there is no LoRA, it is damaged, or for another model; nothing is added then.
            InputError: the weight is no finite number, the name is taken, or the model is quantized.
        """
        if self._is_fixed:
            raise InputError("a quantized or packed model takes no LoRA. Load LoRAs first.")
        taken = loras(self.transformer)
        if name is None:
            name = next(free for number in range(len(taken) + 1) if (free := f"lora{number}") not in taken)
        lora = read_lora(place)
        settle(self.transformer)
        add_lora(self.transformer, lora, name, weight)
        self._lora_places[name] = str(place)
        return name

    def weigh_loras(self, **weights: float) -> None:
        """Give LoRAs new weights by their names; the others keep theirs.

        Raises:
            InputError: one is not loaded, or a weight is no finite number.
        """
        weigh_loras(self.transformer, weights)

    def merge_loras(self) -> None:
        """Add all LoRAs with their weights to the layers for good: faster, and ready to be saved."""
        self.name = self.description
        merge_loras(self.transformer)

    def quantize(self) -> None:
        """Round the linear layers of the transformer's blocks to int8 for good, their inputs as they come.

        The weights take half the memory of bfloat16, and products run at up to twice its rate (`nn.int8`);
        what that costs is in docs/performance.md. LoRAs are merged first, and none can be added later.
        Offloaded blocks are rounded whenever they are read.

        Raises:
            InputError: the model is quantized already, or its weights are float16.
        """
        if self._is_packed:
            raise InputError("a packed model is not quantized. Quantize it instead of packing it.")
        self.merge_loras()
        quantize_blocks(self.transformer)
        self.name += ", int8"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All that have weights, in the order in which they draw."""
        found = {
            "text_encoder": getattr(self.text_encoder, "model", self.text_encoder),
            "controlnet": self.controlnet,
            "transformer": self.transformer,
            "autoencoder": self.autoencoder,
        }
        return {name: each for name, each in found.items() if isinstance(each, nn.Module)}

    @property
    def is_quantized(self) -> bool:
        """Whether the transformer's layers are int8."""
        return any(isinstance(each, Int8Linear) for each in self.transformer.modules()) or any(
            part.when_read is not None for part in offloaded(self.transformer)
        )

    def pack(self) -> int:
        """Lay the weights of SANA's blocks out as products read them, and return of how many layers.

        Pictures stay the same, and a step on a CPU takes less time. It is for good: a packed
        model is not saved and takes no LoRA. Offloaded blocks are packed when they are read to stay. None is
        packed where that wins nothing: in other dtypes, without the native library, where layers are int8 or
        have LoRAs beside them.
        """
        if not isinstance(self.transformer, Transformer) or self.device.type != "cpu":
            return 0
        if not native.is_in_use() or self._is_fixed or loras(self.transformer):
            return 0
        return pack_blocks(self.transformer)

    def compile(self) -> None:
        """Compile the steps of SANA's transformer, and the decoder; on a GPU they run as CUDA graphs.

        The first step and the first decoding of each size take a minute or more, the others less time than
        before. With a step cache, a ControlNet or bands steps run as they are.

        Raises:
            InputError: another network, one whose weights wait in their files, or a CPU with the C++ passes.
        """
        if not isinstance(self.transformer, Transformer):
            raise InputError(f"a {type(self.transformer).__name__} is not compiled, SANA's transformer is.")
        if offloaded(self.transformer) or offloaded(self.autoencoder):
            raise InputError("weights that wait in their files are not compiled: leave out one of both.")
        if self.device.type == "cpu" and native.is_in_use():
            raise InputError(
                "torch.compile cannot look into the C++ passes, which are faster. Leave out compile, or "
                "choose kernels torch."
            )
        self._compiled = Compiled(self.transformer)
        compile_decoder(self.autoencoder)

    @property
    def _is_fixed(self) -> bool:
        """Whether weights of the transformer are not as they were read."""
        return self.is_quantized or self._is_packed

    @property
    def _is_packed(self) -> bool:
        """Whether some of its layers are, or will be once they are read."""
        return any(isinstance(each, PackedLinear) for each in self.transformer.modules()) or any(
            part.when_kept is not None for part in offloaded(self.transformer)
        )

    def unload_loras(self, *names: str) -> None:
        """Take LoRAs away, all of them if none is named. Raises `InputError` where one is not loaded."""
        unload_loras(self.transformer, *names)

    @property
    def description(self) -> str:
        """The model with its LoRAs and their weights, as pictures keep it."""
        held = loras(self.transformer).items()
        return self.name + "".join(
            f" + {self._lora_places.get(name, name)} x {weight:g}" for name, weight in held
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In which dtype they compute."""
        return next(self.transformer.parameters()).dtype

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the first layer whose output is not finite raises `NotFiniteError` and is named; slower."""
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for name, network in self.networks.items():
                for part in offloaded(network):
                    stack.enter_context(part.plain())
                check_parameters(network, name)
                stack.enter_context(finite_outputs(network, name))
            yield
