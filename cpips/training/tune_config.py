"""The settings of a config for decoder fine-tuning (TOML, ``configs/tune-*.toml``), and the tuner that it describes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import cpips

from .._utils import config as toml
from ..codec.files import open_codec
from ..codec.model import Codec
from ..codec.refine import TERMS, perceptual_term
from ..errors import ModelError, WeightsError
from ..losses import (
    CombinedLoss, NonBinaryAdversary, PatchTokenizer, SemanticEnsembleLoss, Tokenizer, UNetDiscriminator, VQTokenizer, load_tokenizer)
from ..losses.ensemble import TEXTURES
from .data import Crops
from .decoder_tuning import DecoderTuner, TuneSettings
from .patchgan import PatchAdversary

ADVERSARIES = ("none", "binary", "non-binary", "patchgan")
PATCHGAN = ("patchgan_side", "patchgan_count")  # the settings of that adversary alone
TOKENIZERS = (PatchTokenizer.kind, VQTokenizer.kind)


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TuneSettings):
    """:class:`~cpips.training.decoder_tuning.TuneSettings`, and what is plugged in: the semantic ensemble loss, or squared error.

    Args:
        name: of the run.
        codec: a shipped model, or a codec's file, relative to the config's.
        data: folders of photographs, under the data root.
        charbonnier, perceptual, style, patch: of :class:`~cpips.losses.SemanticEnsembleLoss`.
        squared: weight of the squared error (L2), the pixels in [0,1], in place of those three, which must then be 0.
        loss: what ``perceptual`` weighs: ``'cpips'`` for ``metric``; ``'texture'``, :class:`~cpips.losses.TextureLoss`; or
            ``'wasserstein'``, :class:`~cpips.realism.WassersteinDistortion`.
        metric: of the perceptual term, as ``cpips models`` lists it.
        textures: whose features the style term compares, likewise.
        adversary: ``'non-binary'``, ``'binary'`` (one code), ``'patchgan'`` or ``'none'``.
        patchgan_side, patchgan_count: of :class:`~cpips.training.patchgan.PatchAdversary`: side of its patches in px, 16 to
            ``crop``, and how many of each image.
        codes: kinds of originals that the discriminator classifies.
        tokenizer: whose kinds these are: ``'patches'`` (k-means) or ``'vq'``, the autoencoder.
        token_images: crops that the tokenizer is fitted to.
        token_steps, token_width: of the autoencoder.
        width: of the discriminator's first level (of ``'patchgan'``: layer).
        notes: for people.
    """

    name: str
    codec: str
    data: list[str]
    charbonnier: float = 10.0
    perceptual: float = 1.0
    style: float = 1.0
    squared: float = 0.0
    patch: int = 0
    loss: str = TERMS[0]
    metric: str = "cpips-lite"
    textures: str = TEXTURES
    adversary: str = "none"
    codes: int = 64
    tokenizer: str = PatchTokenizer.kind
    token_images: int = 200
    token_steps: int = 1000
    token_width: int = 32
    width: int = 32
    patchgan_side: int = 64
    patchgan_count: int = 3
    notes: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        toml.check(self, positive=("token_images", "token_steps", "token_width"), not_negative=("patch", "squared"),
                   choices={"adversary": ADVERSARIES, "loss": TERMS, "tokenizer": TOKENIZERS})
        if (self.adversary == "none") != (self.lambda_adv == 0):
            raise ModelError(f"adversary = {self.adversary!r} with lambda_adv = {self.lambda_adv}: a weight needs an "
                             "adversary, and an adversary a weight")
        if self.adversary == "patchgan" and not (16 <= self.patchgan_side <= self.crop and self.patchgan_count >= 1):
            raise ModelError(f"patchgan_side = {self.patchgan_side}, patchgan_count = {self.patchgan_count}: expected 16 to "
                             f"crop = {self.crop}, and 1 or more")
        if self.squared and (self.charbonnier or self.perceptual or self.style):
            raise ModelError(f"squared = {self.squared} takes the place of charbonnier, perceptual and style: set these to 0")
        if self.codes < 2:
            raise ModelError(f"codes = {self.codes}: must be 2 or more")
        if not self.data:
            raise ModelError("data must name at least one folder of photographs")

    @classmethod
    def load(cls, path: Path) -> "TuneConfig":
        """Read a TOML config.

        Raises:
            ModelError: an unknown, missing or unreadable setting; the message names it.
            OSError: the file cannot be read.
        """
        path = Path(path)
        config = toml.make(path, cls, toml.read(path))
        if config.codec.endswith(".safetensors"):
            config = dataclasses.replace(config, codec=toml.beside(path, config.codec))
        return config

    @property
    def settings(self) -> TuneSettings:
        """Those of the trainer; its label holds all that decides what is plugged in."""
        names = {f.name for f in dataclasses.fields(TuneSettings)} - {"label"}
        plugged = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
                   if f.name not in names | {"name", "codec", "notes", "label"}
                   and (self.adversary == "patchgan" or f.name not in PATCHGAN)  # runs from before these were settings resume
                   and not (f.name == "loss" and self.loss == TERMS[0]) and not (f.name == "squared" and not self.squared)}
        return TuneSettings(**{name: getattr(self, name) for name in names},
                            label=", ".join(f"{name} {value}" for name, value in plugged.items()))


def make_tuner(config: TuneConfig, data_root: Path, out: Path, device: str = "cpu") -> DecoderTuner:
    """The tuner that ``config`` asks for, in folder ``out``, where it may have begun already.

    LPIPS' weights are read from ``weights`` under the data root, where they lie there.
    """
    images = Crops([Path(data_root) / name for name in config.data], config.crop)
    codec = open_codec(config.codec)
    adversary = make_adversary(config, codec, images, Path(out)) if config.lambda_adv else None
    return DecoderTuner(codec, images, make_loss(config, Path(data_root)), adversary, settings=config.settings, out=out, device=device)


def make_loss(config: TuneConfig, data_root: Path) -> CombinedLoss:
    """What the decoder lowers beside the adversary's term."""
    if config.squared:
        return CombinedLoss({"squared": (config.squared, F.mse_loss)})
    metric = perceptual_term(config.loss) or cpips.create_metric(config.metric, data_root / "weights")
    return SemanticEnsembleLoss(charbonnier=config.charbonnier, perceptual=config.perceptual, style=config.style,
                                patch=config.patch or None, textures=config.textures, metric=metric)


def make_adversary(config: TuneConfig, codec: Codec, images: Crops, out: Path) -> NonBinaryAdversary | PatchAdversary:
    """The untrained adversary of a run; its tokenizer is fitted once and kept as ``tokenizer.safetensors``.

    Raises:
        WeightsError: the folder has a tokenizer of other settings, or a damaged one.
    """
    if config.adversary == "patchgan":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return PatchAdversary(config.patchgan_side, config.patchgan_count, config.width)
    tokenizer: Tokenizer | None = None
    if config.adversary == "non-binary":
        path = out / "tokenizer.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fit_tokenizer(config, images).save(path)
        tokenizer = load_tokenizer(path)
        asked = {"codes": config.codes, "seed": config.seed, "images": config.token_images}
        if isinstance(tokenizer, VQTokenizer):
            asked |= {"steps": config.token_steps, "width": config.token_width}
        made = {name: tokenizer.settings.get(name) for name in asked}
        if (tokenizer.kind, made) != (config.tokenizer, asked):
            raise WeightsError(f"{path} is {tokenizer.kind} with {made}, where the config asks for {config.tokenizer} with "
                               f"{asked}: use another output folder, or delete it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        discriminator = UNetDiscriminator(tokenizer.codes if tokenizer else 1, codec.M, config.width)
    return NonBinaryAdversary(discriminator, tokenizer)


def fit_tokenizer(config: TuneConfig, images: Crops) -> Tokenizer:
    """The tokenizer that ``config`` asks for, of crops that no step of the run draws."""
    crops = images.batch(config.token_images, config.crop, config.seed, config.steps + 1).float() / 255
    if config.tokenizer == VQTokenizer.kind:
        return VQTokenizer.fit(crops, config.codes, width=config.token_width, steps=config.token_steps, seed=config.seed)
    return PatchTokenizer.fit(crops, config.codes, seed=config.seed)
