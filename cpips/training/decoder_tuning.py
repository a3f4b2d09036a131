"""Fine-tune only the decoder. Encoder and entropy model are frozen, so bitstreams stay bit-identical.

The two-stage recipe of MS-ILLM (Muckley et al., ICML 2023, arXiv 2301.11189), also that of PatchGAN fine-tuning
for machine codecs (Le et al., arXiv 2401.10732): encoder and entropy model stay as they are, so that files made before
decode with the new decoder, and every comparison of decoders is one at identical bits::

    from cpips.training.decoder_tuning import DecoderTuner, TuneSettings
    tuner = DecoderTuner(open_codec("hyperprior-q1"), Crops([folder], 128), CharbonnierLoss(), adversary,
                         settings=TuneSettings(steps=500, lambda_adv=0.008, layers="first-2"), out=Path("run"))
    tuner.run()                                   # continues from run/tuning.pt, if there is one
    codec = open_codec("run/codec.safetensors")   # a codec like any other

What is plugged in:

- ``images``: has ``batch(size, crop, *key)``, uint8 ``(size,3,crop,crop)``, a function of the key, as
  :class:`~cpips.training.data.Crops` has; it is called ahead, in a thread;
- ``loss``: a callable of the decoded and the original images, ``(N,3,S,S)`` in [0,1] (the decoded ones overshoot a
  little), that returns a scalar, or a scalar and its named parts, as :class:`~cpips.losses.CombinedLoss` does;
- ``adversary``: a module with the two methods of :class:`Adversary`. It is trained by its own Adam, as far as its
  parameters require grad. Whatever it draws at random comes from torch's global generator, which is seeded for each step.

Each step trains the decoder on ``loss + lambda_adv * generator_loss``, then the adversary on ``discriminator_loss`` of the
same images, detached. In the first ``adversary_from`` steps there is no adversary; with ``lambda_adv = 0`` there is never
one, bit for bit: that is the control which tells what adversarial training adds to training longer.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Protocol, Union

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .._utils import config as toml
from .._utils.io import atomic, replace
from ..codec.container import Bitstream
from ..codec.model import Codec, is_table
from ..encoders import STRIDE, tensors_digest
from ..errors import BitstreamError, CpipsError, ModelError
from ..losses.adversarial import held
from .runs import Run

Reconstruction = Callable[[Tensor, Tensor], Union[Tensor, "tuple[Tensor, Mapping[str, Tensor]]"]]
DECODER = "g_s."


class Images(Protocol):
    """Training images: random crops, as a function of a key."""

    def batch(self, size: int, crop: int, *key: int) -> Tensor:
        """uint8 ``(size,3,crop,crop)``."""
        ...


class Adversary(Protocol):
    """What an adversary gives (and what any :class:`torch.nn.Module` has). All scalars, with their graphs.

    Args of both losses:
        x_hat, x: decoded and original images, ``(N,3,S,S)``; ``x_hat`` comes with its graph to the generator's loss,
            detached to the discriminator's.
        y_hat: the quantized latent that ``x_hat`` was decoded from, ``(N,M,S/16,S/16)``, without a graph.
    """

    def generator_loss(self, x_hat: Tensor, x: Tensor, y_hat: Tensor) -> Tensor:
        """What the decoder lowers."""
        ...

    def discriminator_loss(self, x_hat: Tensor, x: Tensor, y_hat: Tensor) -> Tensor:
        """What the adversary itself lowers."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...

    def to(self, device: torch.device) -> Any: ...


@dataclass(frozen=True)
class TuneSettings:
    """How a decoder is trained. The rates and betas are MS-ILLM's.

    Args:
        steps: in all, each of ``batch`` random crops of ``crop`` x ``crop`` px.
        lr, adversary_lr: rates of Adam, for the decoder and for the adversary.
        beta1, beta2: of both Adams.
        schedule: of both rates: ``'constant'``, or ``'cosine'``, to zero at the end.
        lambda_adv: weight of the adversary's term; 0 for none at all.
        adaptive: ``lambda_adv`` is a share of the loss's own gradient: each step it is multiplied with the ratio of both
            gradients' norms at the last trained weights (VQGAN, Esser et al., CVPR 2021, arXiv 2012.09841, eq. 7, whose
            code takes 0.8), at most 10,000. For an adversary whose gradient is not known before it has learned.
        adversary_from: step at which the adversary comes in: the stage before it has none.
        layers: ``'all'``; ``'first-2'``: the two synthesis layers nearest the latent, each a convolution with what follows
            it; ``'last-1'``: the one nearest the pixels. Any number up to the decoder's layers.
        clip_norm: limit of the norm of the decoder's gradient.
        autocast: ``'bfloat16'`` trains the decoder in that type, losses and the latent in float32; ``'none'`` all in float32.
        seed: of crops, and of an adversary's draws.
        label: what loss and adversary are, for a run that is resumed: it goes on only under the same label.

    Raises:
        ModelError: a setting out of its range.

    Example:
        >>> from cpips.training.decoder_tuning import TuneSettings
        >>> TuneSettings(steps=100, layers="first-2").layers
        'first-2'
    """

    steps: int
    crop: int = 128
    batch: int = 4
    lr: float = 1e-4
    adversary_lr: float = 4e-4
    beta1: float = 0.5
    beta2: float = 0.9
    schedule: str = "constant"
    lambda_adv: float = 0.0
    adaptive: bool = False
    adversary_from: int = 0
    layers: str = "all"
    clip_norm: float = 1.0
    autocast: str = "none"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 100
    label: str = ""

    def __post_init__(self) -> None:
        toml.check(self, positive=("steps", "crop", "batch", "lr", "adversary_lr", "clip_norm", "log_every", "checkpoint_every"),
                   not_negative=("lambda_adv", "adversary_from", "seed", "beta1", "beta2"), below_one=("beta1", "beta2"),
                   choices={"schedule": ("constant", "cosine"), "autocast": ("none", "bfloat16")}, multiples={"crop": STRIDE})

    def rate_at(self, step: int) -> float:
        """What the learning rates are multiplied with."""
        return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / self.steps))


class DecoderTuner(Run[Tensor]):
    """One run in folder ``out``: ``tuning.pt`` (checkpoint) and ``history.json``; at the end ``codec.safetensors``.

    A run that is killed and started again ends where an uninterrupted one ends, bit for bit on the same machine.

    Args:
        codec: where to start; it is copied, not changed.
        images, loss, adversary: see the module.
        device: "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelError: layers that the decoder does not have, or ``lambda_adv`` without an adversary.
        WeightsError: the folder has a checkpoint of another codec, or of other settings.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from cpips.codec.model import Codec   # needs compressai (extra codec)
        >>> from cpips.training.data import Crops
        >>> from cpips.training.decoder_tuning import DecoderTuner, TuneSettings
        >>> Path("photos").mkdir()
        >>> Image.new("RGB", (96, 80), "red").save("photos/red.png")
        >>> codec = Codec(8, 12)
        >>> _ = codec.update(force=True)
        >>> settings = TuneSettings(steps=1, crop=64, batch=1, layers="last-1")
        >>> crops, loss = Crops([Path("photos")], 64), torch.nn.functional.mse_loss
        >>> tuner = DecoderTuner(codec.eval(), crops, loss, settings=settings, out=Path("run"))
        >>> tuner.run().name
        'codec.safetensors'
    """

    CHECKPOINT, KIND, KEYS = "tuning.pt", "a decoder's tuning", ("settings", "start", "decoder", "optimizer", "history")

    def __init__(self, codec: Codec, images: Images, loss: Reconstruction, adversary: Adversary | None = None, *,
                 settings: TuneSettings, out: Path, device: str = "cpu"):
        if settings.lambda_adv and adversary is None:
            raise ModelError(f"lambda_adv = {settings.lambda_adv} weighs an adversary, and there is none: give one, or "
                             "set it to 0")
        super().__init__(settings, out, torch.device(device))
        self.settings, self.images = settings, images
        self.start, self.loss = codec, loss.to(self.device) if isinstance(loss, nn.Module) else loss
        self.codec = copy_codec(codec).to(self.device).requires_grad_(False)
        if settings.autocast != "none":  # whose convolutions want it
            self.codec.g_s.to(memory_format=torch.channels_last)
        self.frozen = frozen_digest(codec)
        chosen = chosen_layers(self.codec, settings.layers)
        for layer in chosen:
            layer.requires_grad_(True)
        self.trained = [p for layer in chosen for p in layer.parameters()]
        self.optimizer = torch.optim.Adam(self.trained, lr=settings.lr, betas=(settings.beta1, settings.beta2))
        # without a weight the adversary is not even asked: the control is the run without one
        self.adversary = adversary.to(self.device) if adversary is not None and settings.lambda_adv else None
        self.adversary_optimizer: torch.optim.Adam | None = None
        if self.adversary is not None:
            judges = [p for p in self.adversary.parameters() if p.requires_grad]
            self.adversary_optimizer = torch.optim.Adam(judges, lr=settings.adversary_lr, betas=(settings.beta1, settings.beta2))
        self.history: list[dict[str, float]] = []
        self._resume()

    # ---- one step -----------------------------------------------------------------------------------------------------

    def draw(self, step: int) -> Tensor:
        """Crops ``(batch,3,crop,crop)``, uint8."""
        return self.images.batch(self.settings.batch, self.settings.crop, self.settings.seed, step)

    def train_step(self, drawn: Tensor) -> dict[str, float]:
        """One step on what :meth:`draw` gave; returns its losses: ``loss``, the parts that the loss names, ``generator`` and
        ``discriminator``; and the ``weight`` of ``generator``, where it is adaptive."""
        settings, adversary = self.settings, self.adversary if self.step >= self.settings.adversary_from else None
        for optimizer, lr in ((self.optimizer, settings.lr), (self.adversary_optimizer, settings.adversary_lr)):
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = lr * settings.rate_at(self.step)
        x = drawn.to(self.device).float() / 255
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(hash((settings.seed, self.step)) % 2**63)  # of whatever the adversary draws
            with torch.no_grad():
                y_hat = self.codec.g_a(x).round()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.autocast == "bfloat16"):
                x_hat = self.codec.g_s(y_hat).float()
            found = self.loss(x_hat, x)
            total, parts = found if isinstance(found, tuple) else (found, {})
            row = {name: value for name, value in parts.items() if name != "total"}
            if adversary is not None:
                with held(adversary):
                    row["generator"] = adversary.generator_loss(x_hat, x, y_hat)
            self.optimizer.zero_grad()
            if adversary is not None and settings.adaptive:
                pulls = [torch.autograd.grad(value, x_hat)[0] for value in (total, row["generator"])]
                row["weight"] = self._adapted(x_hat, *pulls)
                x_hat.backward(pulls[0] + row["weight"] * pulls[1])
                total = total + row["weight"] * row["generator"]
            else:
                if adversary is not None:
                    total = total + settings.lambda_adv * row["generator"]
                total.backward()
            row = {"loss": total, **row}
            norm = nn.utils.clip_grad_norm_(self.trained, settings.clip_norm)
            if not norm.isfinite():
                raise FloatingPointError(f"decoder tuning diverged at step {self.step}: lower lr (now {settings.lr}) or "
                                         f"lambda_adv (now {settings.lambda_adv})")
            self.optimizer.step()
            if adversary is not None and self.adversary_optimizer is not None:
                row["discriminator"] = adversary.discriminator_loss(x_hat.detach(), x, y_hat)
                self.adversary_optimizer.zero_grad()
                row["discriminator"].backward()
                self.adversary_optimizer.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in row.items()}

    def _adapted(self, x_hat: Tensor, pull: Tensor, adversarial: Tensor) -> Tensor:
        """The adversary's weight, of the gradients of loss and adversary at ``x_hat``, which has its graph."""
        last = [p for p in self.trained if p.dim() > 1][-1]
        norms = [torch.autograd.grad(x_hat, last, slope, retain_graph=True)[0].norm() for slope in (pull, adversarial)]
        return self.settings.lambda_adv * (norms[0] / (norms[1] + 1e-4)).clamp_max(1e4)

    def _log(self, row: dict[str, Any]) -> None:
        self.history.append(row)

    def _finish(self) -> Path:
        return self.export()

    # ---- files --------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        state = {"settings": dataclasses.asdict(self.settings), "start": self.start.own_digest, "history": self.history,
                 "decoder": self.codec.g_s.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.adversary is not None and self.adversary_optimizer is not None:
            state |= {"adversary": self.adversary.state_dict(),
                      "adversary_optimizer": self.adversary_optimizer.state_dict()}
        return state

    def save(self) -> None:
        super().save()
        with atomic(self.out / "history.json") as stream:
            stream.write((json.dumps(self.history, indent=1) + "\n").encode())

    def _changed(self, state: Mapping[str, Any]) -> list[str]:
        ours = dataclasses.asdict(self.settings) | {"codec": self.start.own_digest}
        theirs = toml.with_defaults(TuneSettings, state["settings"]) | {"codec": state["start"]}
        return [name for name in ours if name not in ("log_every", "checkpoint_every") and ours[name] != theirs[name]]

    def _load(self, state: Mapping[str, Any]) -> None:
        self.codec.g_s.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None and self.adversary_optimizer is not None:
            self.adversary.load_state_dict(state["adversary"])
            self.adversary_optimizer.load_state_dict(state["adversary_optimizer"])
        self.history = state["history"]

    def export(self) -> Path:
        """Write the codec as it is now, checked to write the bitstreams of the one it started from."""
        path, settings = self.out / "codec.safetensors", self.settings
        metadata = {"name": f"{self.start.name}-tuned", "steps": str(self.step), "seconds": f"{self.seconds:.0f}",
                    "tuned_from": self.start.name, "reads": self.start.digest, "layers": settings.layers,
                    "lambda_adv": str(settings.lambda_adv), "label": settings.label}
        if self.start.quality is not None:
            metadata["quality"] = str(self.start.quality)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.codec.state_dict().items()}
        probe = self.images.batch(1, settings.crop, settings.seed, settings.steps)[0].float() / 255

        assert_same_bitstreams(self.start, Codec.from_state_dict(tensors), [probe])
        replace(path, lambda partial: save_file(tensors, partial, metadata=metadata))
        return path


def copy_codec(codec: Codec) -> Codec:
    """A codec of its own with the same tensors and name."""
    twin = type(codec).from_state_dict(copy.deepcopy(codec.state_dict()))
    twin.name, twin.reads = codec.name, codec.reads
    return twin


def synthesis_layers(codec: Codec) -> list[nn.Sequential]:
    """The decoder's layers from the latent to the pixels: each a convolution with what follows it, up to the next."""
    layers: list[list[nn.Module]] = []
    for module in codec.g_s:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            layers.append([])
        layers[-1].append(module)
    return [nn.Sequential(*layer) for layer in layers]


def chosen_layers(codec: Codec, layers: str) -> list[nn.Sequential]:
    """Those of :func:`synthesis_layers` that ``layers`` names: ``'all'``, ``'first-K'``, ``'last-K'``.

    Raises:
        ModelError: another name, or a K that is not from 1 to the number of layers.
    """
    every = synthesis_layers(codec)
    end, _, count = layers.partition("-")
    if layers == "all":
        return every
    if end not in ("first", "last") or not count.isdigit() or not 1 <= int(count) <= len(every):
        raise ModelError(f"layers = {layers!r}: expected 'all', or 'first-K' or 'last-K' with K from 1 to {len(every)}")
    return every[: int(count)] if end == "first" else every[-int(count):]


def frozen_digest(codec: Codec) -> str:
    """SHA-256 over everything learned but the decoder: encoder, hyper-transforms, entropy model."""
    return tensors_digest((name, tensor) for name, tensor in codec.state_dict().items()
                          if not is_table(name) and not name.startswith(DECODER))


def assert_same_bitstreams(before: Codec, after: Codec, images: list[Tensor]) -> None:
    """Check that two codecs differ in their decoders alone: the tensors of everything else, the coder's tables, and the
    bytes that both write for ``images``, each ``(3,H,W)`` in [0,1].

    Raises:
        BitstreamError: they do not; the message says in what.
    """
    if frozen_digest(before) != frozen_digest(after):
        raise BitstreamError("the codecs differ in their encoders or entropy models: their bitstreams differ, too")
    before, after = copy_codec(before), copy_codec(after)  # on the CPU, with tables of their own
    for i, image in enumerate(images):
        one, two = before.encode(image), after.encode(image)
        if one != two:
            raise BitstreamError(f"the bitstreams of image {i} differ: {_size(one)} and {_size(two)} bytes; the encoders "
                                 "are the same, so the coder's tables must have been computed on another machine")
        if not torch.equal(before.decode_latent(two), after.decode_latent(one)):
            raise CpipsError(f"the latents in the bitstreams of image {i} differ")


def _size(stream: Bitstream) -> int:
    return len(stream.z) + len(stream.y)
