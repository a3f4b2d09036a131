"""The settings of a training config (TOML, one per shipped model in ``configs/``)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from .._utils import config as toml
from ..codec.model import CODECS, HYPER_STRIDE
from ..distortions import DISTORTIONS
from ..encoders import STRIDE
from ..errors import ModelError
from ..losses.features import TRUNK_TAPS

CHOICES = {
    "arch": tuple(CODECS),
    "form": ("latent", "local", "taps", "contrast"),
    "distortion": ("mse", "ms-ssim", "none"),
    "task_net": tuple(TRUNK_TAPS),
    "classifier": ("linear", "backbone"),
    "optimizer": ("adam", "soap"),
    "autocast": ("none", "bfloat16", "float16"),
}
POSITIVE = ("N", "M", "scales", "detail_scales", "lr", "adam_beta2", "clip_norm", "log_every", "checkpoint_every", "class_lr", "head_lr", "task_scale")
NOT_NEGATIVE = ("lmbda", "rate_weight", "class_weight", "judge_weight", "opinion_weight", "photograph_share", "teacher_share", "task_weight", "decision_weight", "order_weight", "shift_weight", "seed",
                "aux_lr", "warmup_steps", "ema_decay", "label_smoothing", "label_color", "mixup")
MS_SSIM_SIDE = 192  # five scales of an 11 px window need more than 160 px


@dataclass(frozen=True)
class Stage:
    """``steps`` steps of ``batch`` random crops of ``crop`` x ``crop`` pixels, ``labelled`` labeled images,
    ``judged`` groups of copies with teacher labels, ``opinions`` groups of copies with people's scores in crops of ``opinion_crop`` px,
    and ``thumbnails`` small images as they are.

    A step's gradient is the mean over ``micro_batches`` equal parts. They are shared out among the processes of a run,
    so that any number of processes that divides them gives the same curve; on CPUs small parts also fit the caches.
    """

    steps: int
    crop: int
    batch: int
    labelled: int = 0
    micro_batches: int = 1
    judged: int = 0
    opinions: int = 0
    opinion_crop: int = 0
    thumbnails: int = 0

    def __post_init__(self) -> None:
        counts = ("batch", "labelled", "judged", "opinions", "thumbnails")
        toml.check(self, positive=("steps", "crop", "batch", "micro_batches"), not_negative=(*counts, "opinion_crop"),
                   multiples={"crop": HYPER_STRIDE, "opinion_crop": STRIDE})
        if any(getattr(self, name) % self.micro_batches for name in counts):
            raise ValueError(f"{self}: the counts of a step must be multiples of micro_batches")
        if bool(self.opinions) != bool(self.opinion_crop):
            raise ValueError(f"{self}: opinions and opinion_crop need each other")


@dataclass(frozen=True)
class TrainConfig:
    """Loss: ``rate_weight bpp + lmbda D + class_weight CE + judge_weight J + task_weight T + decision_weight K``, where D is
    ``255² MSE`` or ``1 - MS-SSIM``.

    With ``lambdas``, a variable-rate codec is trained: each image is coded at a level between two of them, drawn anew each
    step, and its loss has the weight ``sqrt(lmbda / lambda)``, so that all rates count about the same.

    J compares distances in ``form`` at ``taps`` with the judgments in ``judged_data``; T is the distance of the decoded
    image to the original in the features of a frozen task network, for codecs whose images machines look at; K how far the
    network's decisions move. Thumbnails, small images at their own size, are coded beside the photographs: half of rate, D and T
    is theirs, and K of theirs alone. See :class:`~cpips.training.objective.Objective`.

    Learning rate: linear warm-up, then a cosine to zero over all stages.
    """

    name: str
    data: list[str]  # folders of photographs, under the data root
    lmbda: float
    stages: list[Stage]
    lambdas: list[float] = field(default_factory=list)  # of a variable-rate codec's levels, rising; ``lmbda`` is their middle
    arch: str = "hyperprior"
    N: int = 128
    M: int = 192
    init: str = ""  # a codec to start from, relative to the config file
    context: bool = False  # a context model beside the hyperprior (cpips.codec.context)
    entropy_only: bool = False  # the transforms and their gains stay as ``init`` has them, and the entropy model alone learns
    widen: str = ""  # likewise weights of a narrower encoder of the same architecture, to start tied channels from
    init_head: str = ""  # likewise a run's head, or a model's weights, whose head to start from
    scale_jitter: float = 1.0  # crops are of photographs at a scale drawn between it and 1
    rate_weight: float = 1.0
    distortion: str = "mse"
    class_weight: float = 0.0
    labelled_data: list[str] = field(default_factory=list)  # .npz shards, or folders of class folders
    label_crop: float = 1.0  # smallest share of a labeled image's area that its crops have
    label_color: float = 0.0  # how far their brightness, contrast and saturation change
    label_smoothing: float = 0.0
    mixup: float = 0.0  # of labeled images; see cpips.training.data.Labelled
    classifier: str = "linear"
    class_backbone: str = ""  # file of AlexNet's weights, under the data root, of which a classifier of kind 'backbone' is made
    class_lr: float = 1.0  # learning rate of the classifier, as a multiple of the codec's
    head_lr: float = 1.0  # likewise that of the head of judge_weight or opinion_weight
    judge_weight: float = 0.0
    order_weight: float = 0.2
    shift_weight: float = 0.2
    judged_data: str = ""  # a folder of groups with teacher labels, as cpips calibrate makes them
    judged_copies: int = 8  # of each group in a step, half of them ladders
    teachers: list[str] = field(default_factory=list)  # the teachers to use; all if empty
    opinion_weight: float = 0.0
    kadid: str = ""  # folder of KADID-10k's references and scores, under the data root
    photographs: list[str] = field(default_factory=list)  # further ones to distort and label, under the data root
    photograph_share: float = 0.35  # of the groups with opinions
    teacher_share: float = 0.0  # of the teachers' mean in the label of a copy that has an opinion score
    condition_copies: int = 12  # of each further photograph, labeled by KADID's condition means
    taught_copies: int = 6  # likewise, labeled by teachers
    teach_displacements: bool = True  # whether the teachers label copies in which something moved
    focus: list[str] = field(default_factory=list)  # distortions of which each further photograph has a group more, labeled by teachers
    opinion_copies: int = 8  # of each group in a step
    tied: bool = False  # channels of the features come in fours, a filter and its quarter turns
    detach_features: bool = False  # rate and distortion form the latent alone
    form: str = "local"
    taps: list[str] = field(default_factory=lambda: ["y"])
    scales: int = 1
    detail_taps: list[str] = field(default_factory=list)  # where form 'contrast' also compares signed details; needs tied
    detail_scales: int = 1  # the first scales at which it does
    task_weight: float = 0.0
    task_net: str = "squeeze"
    task_trunk: str = ""  # file of the task network's weights, under the data root
    task_taps: list[str] = field(default_factory=list)  # features that are compared, normalized; all of them if empty
    task_scale: int = 1  # how many times thumbnails are enlarged before the task network looks at them
    decision_weight: float = 0.0  # of the change of class probabilities, by a linear classifier of the task network's features
    thumbnail_data: list[str] = field(default_factory=list)  # as labelled_data; their labels make that classifier
    seed: int = 0
    optimizer: str = "adam"
    lr: float = 1e-3
    adam_beta2: float = 0.999  # decay of Adam's second moments
    aux_lr: float = 1e-3
    warmup_steps: int = 300
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    autocast: str = "none"
    log_every: int = 50
    checkpoint_every: int = 500
    notes: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        toml.check(self, positive=POSITIVE, not_negative=NOT_NEGATIVE, below_one=("adam_beta2", "ema_decay"), choices=CHOICES)
        if not self.stages:
            raise ValueError("needs at least one [[stages]] with steps, crop and batch")
        if not self.data:
            raise ValueError("data must name at least one folder of photographs")
        if not (self.rate_weight or self.distortion != "none" or self.class_weight or self.judge_weight
                or self.opinion_weight or self.task_weight):
            raise ValueError("every term of the loss is switched off: rate_weight, distortion, class_weight, "
                             "judge_weight and task_weight")
        if not 0 < self.scale_jitter <= 1:
            raise ValueError(f"scale_jitter = {self.scale_jitter}: must be above 0 and at most 1")
        if self.lambdas:
            if len(self.lambdas) < 2 or self.lambdas[0] <= 0 or any(a >= b for a, b in zip(self.lambdas, self.lambdas[1:])):
                raise ValueError(f"lambdas = {self.lambdas}: must be two or more positive numbers that rise")
            if (self.arch != "hyperprior" or self.distortion != "mse" or self.rate_weight != 1 or self.class_weight
                    or self.judge_weight or self.opinion_weight or self.task_weight or self.thumbnail_data or self.detach_features):
                raise ValueError("lambdas are for arch = 'hyperprior' trained for rate and squared error alone")
        if self.distortion == "ms-ssim" and min(s.crop for s in self.stages) < MS_SSIM_SIDE:
            raise ValueError(f"distortion = 'ms-ssim' needs crops of {MS_SSIM_SIDE} px or more")
        if self.class_weight and not (self.labelled_data and all(s.labelled for s in self.stages)):
            raise ValueError("class_weight needs labelled_data, and labelled = IMAGES in every stage")
        if not self.class_weight and (self.labelled_data or any(s.labelled for s in self.stages)):
            raise ValueError("labelled_data, or labelled images in a stage, change nothing without class_weight")
        if not self.class_weight and (self.classifier != "linear" or self.label_crop < 1 or self.label_color or self.label_smoothing
                                      or self.mixup):
            raise ValueError("classifier, label_crop, label_color, label_smoothing and mixup change nothing without class_weight")
        if not 0 < self.label_crop <= 1 or self.label_color >= 1 or self.label_smoothing >= 1:
            raise ValueError(f"label_crop = {self.label_crop}, label_color = {self.label_color}, label_smoothing = {self.label_smoothing}: "
                             "the first must be above 0 and at most 1, the others below 1")
        if (self.classifier == "backbone") != bool(self.class_backbone):
            raise ValueError("classifier = 'backbone' and class_backbone, the file of AlexNet's weights, need each other")
        if self.classifier == "backbone" and not (self.init and self.arch == "hyperprior"):
            raise ValueError("classifier = 'backbone' needs init, a trained codec of arch = 'hyperprior', half of whose decoder comes before it")
        if self.judge_weight and not (self.judged_data and all(s.judged for s in self.stages)):
            raise ValueError("judge_weight needs judged_data, and judged = GROUPS in every stage")
        if not self.judge_weight and (self.judged_data or any(s.judged for s in self.stages)):
            raise ValueError("judged_data, or judged groups in a stage, change nothing without judge_weight")
        if self.opinion_weight and not (self.kadid and self.form == "contrast" and all(s.opinions for s in self.stages)):
            raise ValueError("opinion_weight needs kadid, form = 'contrast', and opinions = GROUPS in every stage")
        if not self.opinion_weight and (self.kadid or self.photographs or any(s.opinions for s in self.stages)):
            raise ValueError("kadid, photographs, or groups with opinions in a stage, change nothing without opinion_weight")
        if self.judge_weight and self.form == "contrast":
            raise ValueError("form = 'contrast' is trained with opinions, not with judge_weight")
        if self.context and not self.lambdas or self.entropy_only and not (self.lambdas and self.init):
            raise ValueError("context and entropy_only are for variable-rate codecs, which lambdas make, and entropy_only needs init")
        if self.widen and (self.init or not self.tied):
            raise ValueError("widen needs tied, and changes nothing beside init")
        if self.tied and self.arch != "aligned":
            raise ValueError("tied needs arch = 'aligned', whose cells turn with the image")
        if self.detail_taps and not (self.opinion_weight and self.tied and set(self.detail_taps) <= set(self.taps)
                                     and self.detail_scales <= self.scales):
            raise ValueError(f"detail_taps = {self.detail_taps}: needs opinion_weight and tied, some of taps, and detail_scales of "
                             f"at most {self.scales}")
        if unknown_kinds := set(self.focus) - set(DISTORTIONS):
            raise ValueError(f"focus = {self.focus}: unknown {', '.join(sorted(unknown_kinds))}; cpips.distortions.DISTORTIONS has the names")
        if self.focus and not self.photographs:
            raise ValueError("focus changes nothing without photographs to distort")
        if (self.init_head or self.head_lr != 1) and not (self.judge_weight or self.opinion_weight):
            raise ValueError(f"{'init_head' if self.init_head else 'head_lr'} changes nothing without judge_weight or opinion_weight")
        if bool(self.task_weight or self.decision_weight) != bool(self.task_trunk):
            raise ValueError("task_weight and task_trunk, the file of the task network's weights, need each other; decision_weight needs it, too")
        if bool(self.thumbnail_data) != all(s.thumbnails for s in self.stages) or (not self.thumbnail_data and any(s.thumbnails for s in self.stages)):
            raise ValueError("thumbnail_data and thumbnails = IMAGES in every stage need each other")
        if self.decision_weight and not self.thumbnail_data:
            raise ValueError("decision_weight needs thumbnail_data, whose labels make the classifier")
        if self.thumbnail_data and self.distortion == "ms-ssim":
            raise ValueError("distortion = 'ms-ssim' has too many scales for thumbnails")
        if unknown := set(self.task_taps) - set(TRUNK_TAPS[self.task_net]):
            raise ValueError(f"task_taps {', '.join(sorted(unknown))}: must be some of "
                             f"{', '.join(TRUNK_TAPS[self.task_net])}")
        if not self.taps or set(self.taps) - set(CODECS[self.arch].architecture.taps):
            raise ValueError(f"taps = {self.taps}: must be some of {', '.join(CODECS[self.arch].architecture.taps)}")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read a TOML config; ``init`` and ``init_head`` become paths that hold from any folder.

        Raises:
            ModelError: an unknown, missing or unreadable setting; the message names it.
            OSError: the file cannot be read.
        """
        path = Path(path)
        raw = toml.read(path)
        stages = raw.get("stages", [])
        if not (isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)):
            raise ModelError(f"{path}: stages must be tables in double brackets, [[stages]]")
        raw["stages"] = [toml.make(f"{path}, [[stages]] number {i}", Stage, stage) for i, stage in enumerate(stages, 1)]
        config = toml.make(path, cls, raw)
        return dataclasses.replace(config, init=config.init and toml.beside(path, config.init),
                                   widen=config.widen and toml.beside(path, config.widen),
                                   init_head=config.init_head and toml.beside(path, config.init_head))

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("step past the end of the run")

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
