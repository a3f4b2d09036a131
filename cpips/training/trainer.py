"""Train a codec from a config file: seedable, and resumable after an interruption at any moment to the same curve.

Everything random in a step (crops, labeled images, quantization noise) is a function of (seed, step, part), and a
checkpoint holds the model, its moving average and both optimizers. So a run that was killed and started again ends
where an uninterrupted one ends, bit for bit on the same machine with the same number of threads. Under ``torchrun`` the
parts of a step are shared out among the processes (Lightning Fabric, DDP); the curve is that of one process up to the
order of summation.
"""

from __future__ import annotations

import atexit
import csv
import dataclasses
import gc
import logging
import math
import os
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from .._utils import config as toml
from .._utils.io import atomic, naming, read_text, replace
from ..codec.classifier import BackboneClassifier
from ..codec.context import ContextModel
from ..codec.evaluate import load_codec
from ..codec.model import HYPER_STRIDE, Codec, create_codec
from ..codec.variable import VariableCodec
from ..contrast import PREFIX as CONTRAST
from ..contrast import ContrastHead
from ..errors import ModelError
from ..head import Head, quality_fit
from ..losses import FeatureExtractor
from ..pretrained import read_checkpoint, read_weights
from .calibration.judged import JudgedSet
from .calibration.ranking import TrainableHead
from .classifier_start import start_classifier
from .config import TrainConfig
from .context_start import start_context
from .data import Crops, Labelled
from .objective import Objective
from .opinion_loss import TrainableContrastHead
from .opinions import OpinionSet
from .runs import Run
from .task import TaskNetwork
from .tied import start_from_narrower, start_tied, tie, untie

log = logging.getLogger(__name__)

START_CROPS = 256  # on which the energy of a latent's channels is measured
LOG_FIELDS = ["step", "seconds", "lr", "loss", "bpp", "psnr", "images_per_second", "ms_ssim", "cross_entropy",
              "accuracy", "judgement", "order", "shift", "correlation", "pairs", "opinion_mse", "task", "decision", "thumbnail_bpp"]  # new ones last: logs of before go on


class Trainer(Run["list[tuple[int, dict[str, Any]]]"]):
    """One training run in folder ``out``: ``last.pt`` (checkpoint) and ``log.csv``; at the end ``codec.safetensors``,
    ``classifier.safetensors`` and ``head.safetensors`` if there are such, and ``curve.png``.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; under ``torchrun`` the kind alone counts, each process gets its own.
    """

    CHECKPOINT, KIND, KEYS = "last.pt", "a training run", ("config", "model", "ema")

    def __init__(self, config: TrainConfig, data_root: Path, out: Path, device: str = "cpu"):
        self.config = config
        self.precision = _precision(config.autocast, torch.device(device))
        self.fabric = _fabric(torch.device(device), self.precision)
        for stage in config.stages:
            if stage.micro_batches % self.fabric.world_size:
                raise ValueError(f"{self.fabric.world_size} processes cannot share {stage.micro_batches} micro_batches "
                                 "equally: start as many as divide the micro_batches of every stage")
        super().__init__(config, out, self.fabric.device)
        root = Path(data_root)
        self.data = Crops([root / name for name in config.data], max(s.crop for s in config.stages),
                          scale_jitter=config.scale_jitter)
        self.labelled = None
        if config.class_weight:
            self.labelled = Labelled((root / name for name in config.labelled_data), config.label_crop, config.label_color, config.mixup)
        self.thumbnails = None
        if config.thumbnail_data:
            self.thumbnails = Labelled(root / name for name in config.thumbnail_data)
            if any(side % HYPER_STRIDE for side in self.thumbnails.images.shape[2:]):
                height, width = self.thumbnails.images.shape[2:]
                raise ValueError(f"thumbnail_data has images of {width}x{height} px: expected sides that are multiples of {HYPER_STRIDE}")
        self.judged = None
        if config.judge_weight:
            self.judged = JudgedSet(root / config.judged_data, teachers=config.teachers or None)
        self.opinions = None
        if config.opinion_weight:
            self.opinions = OpinionSet(self.out.parent / "opinions", root / config.kadid,
                                       [root / name for name in config.photographs], config.photograph_share, config.teacher_share,
                                       config.condition_copies, config.taught_copies, config.teach_displacements, config.focus,
                                       lambda done, total: log.info("groups with opinions: %d of %d", done, total))
            if (wanted := max(stage.opinion_crop for stage in config.stages)) > self.opinions.side:
                raise ValueError(f"opinion_crop = {wanted}: the smallest of the groups with opinions has a side of "
                                 f"{self.opinions.side} px; take crops of at most that, or leave small photographs out")

        torch.manual_seed(config.seed)
        codec = _codec_of(config)
        task = None
        if config.task_trunk:
            trunk = FeatureExtractor(config.task_net, trunk=root / config.task_trunk)
            task = TaskNetwork(trunk, config.task_taps, self.thumbnails.classes if config.decision_weight and self.thumbnails else 0,
                               config.task_scale)
        objective = Objective(config, codec, self.labelled.classes if self.labelled else 0, task)
        if objective.head is not None and config.init_head:
            _start_head(objective, codec, config)
        if config.context and codec.context is None:
            start_context(codec, self.data.batch(START_CROPS, config.stages[0].crop, config.seed).float() / 255)
        objective.to(self.fabric.device)
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's annotations
        if config.tied:
            if not config.init:
                start_tied(codec, config.seed)
                if config.widen:
                    start_from_narrower(codec, read_weights(Path(config.widen)))
            tie(codec.g_a)
        if isinstance(objective.head, TrainableContrastHead) and objective.head.details and self.opinions \
                and not any(slopes.any() for slopes in objective.head.slopes.values()):  # not taken over from init_head
            _start_slopes(objective.head, codec, self.opinions)
        if isinstance(objective.classifier, BackboneClassifier) and self.labelled and not (self.out / self.CHECKPOINT).exists():
            trunk = FeatureExtractor("alex", trunk=root / config.class_backbone)
            with self.fabric.autocast():
                start_classifier(objective.classifier, codec, trunk, self.labelled)
        if task is not None and task.weight is not None and self.thumbnails and not (self.out / self.CHECKPOINT).exists():
            with self.fabric.autocast():
                task.fit(self.thumbnails)
        objective.train()
        named = [(name, parameter) for name, parameter in objective.named_parameters()
                 if parameter.requires_grad or not config.entropy_only]  # checkpoints of other runs count frozen weights, too
        aux = [p for name, p in named if name.endswith(".quantiles")]
        optimizer, aux_optimizer = _optimizer(config, named), torch.optim.Adam(aux, lr=config.aux_lr)
        self.module, self.optimizer, self.aux_optimizer = self.fabric.setup(objective, optimizer, aux_optimizer)
        self.ema = AveragedModel(objective, multi_avg_fn=_moving_average(config.ema_decay))
        self._resume()
        if self.first:
            self._trim_log()  # also of a run that was killed before its first checkpoint

    @property
    def model(self) -> Codec:
        return self.module.module.codec

    # ---- one step -----------------------------------------------------------------------------------------------

    def draw(self, step: int) -> list[tuple[int, dict[str, Any]]]:
        """This process's parts of a step's data: their numbers, and what the objective's ``forward`` takes."""
        config, stage = self.config, self.config.stage_at(step)
        key, share = (config.seed, step), stage.micro_batches
        parts = []
        for part in range(self.fabric.global_rank, share, self.fabric.world_size):
            drawn: dict[str, Any] = {"images": self.data.batch(stage.batch // share, stage.crop, *key, part)}
            if self.labelled:
                drawn |= self.labelled.batch(stage.labelled // share, *key, part)
            if self.thumbnails:
                drawn["thumbnails"] = self.thumbnails.batch(stage.thumbnails // share, *key, part)["labelled"]
            if self.opinions:
                drawn |= self.opinions.batch(stage.opinions // share, config.opinion_copies, stage.opinion_crop, *key, part)
            if self.judged:
                drawn |= self.judged.batch(stage.judged // share, config.judged_copies, *key, part)
            parts.append((part, drawn))
        return parts

    def train_step(self, parts: list[tuple[int, dict[str, Any]]]) -> dict[str, float]:
        """One step on what :meth:`draw` gave; returns the terms of the loss, means over all parts."""
        config, share = self.config, 1 / len(parts)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step) * group.get("multiple", 1.0)
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        for i, (part, drawn) in enumerate(parts):
            torch.manual_seed(hash((config.seed, self.step, part)) % 2**63)  # the quantization noise
            ready = {name: self._ready(value) for name, value in drawn.items()}
            with self.fabric.no_backward_sync(self.module, enabled=i + 1 < len(parts)):
                terms = self.module(**ready)
                # the quantiles' own loss shares no parameter with the other: one backward pass serves both
                self.fabric.backward((terms["loss"] + terms.pop("aux_loss")) * share)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        # float16's loss scaler meets infinite gradients on its way to the right scale, and skips those steps itself
        judged = sums["loss"] if config.autocast == "float16" else norm
        assert judged is not None  # norms are None where values are clipped
        if not judged.isfinite():
            raise FloatingPointError(f"training diverged at step {self.step}: lower lr (now {config.lr})")
        self.optimizer.step()
        self.aux_optimizer.step()
        if isinstance(head := self.module.module.head, TrainableHead):
            head.clamp_()
        self.ema.update_parameters(self.module.module)
        self.step += 1
        means = self.fabric.all_reduce(sums, reduce_op="mean")
        assert isinstance(means, dict)  # as what went in
        return {name: value.item() for name, value in means.items()}

    def _ready(self, drawn: Any) -> Any:
        if not isinstance(drawn, torch.Tensor):
            return drawn
        layout = torch.channels_last if drawn.ndim == 4 else torch.preserve_format
        return drawn.to(self.fabric.device, memory_format=layout)

    def _row(self, means: dict[str, float], steps: range, elapsed: float) -> dict[str, float]:
        config, images = self.config, 0
        for stage in map(config.stage_at, steps):
            images += (stage.batch + stage.labelled + stage.thumbnails + stage.judged * (1 + config.judged_copies)
                       + stage.opinions * (1 + config.opinion_copies))
        psnr = {"psnr": -10 * math.log10(means.pop("mse"))} if "mse" in means else {}
        return {"lr": config.lr_at(self.step - 1), **psnr, "images_per_second": images / elapsed, **means}

    def run(self, until: int | None = None, progress: Callable[[dict[str, Any]], None] = lambda row: None) -> Path | None:
        path = super().run(until, progress)
        self.fabric.barrier()  # torchrun ends all when one has ended badly: none goes before the export is there
        return path

    def _finish(self) -> Path:
        if self.first:
            export(self.checkpoint, self.out)
        return self.out / "codec.safetensors"

    @property
    def first(self) -> bool:
        return bool(self.fabric.is_global_zero)

    def _stopped(self) -> bool:
        """Whether any process is to stop: they hear of Ctrl-C at different steps, and the others would wait for it."""
        return bool(self.fabric.all_reduce(torch.tensor(float(self.stop), device=self.device), reduce_op="sum"))

    # ---- files --------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return dict(config=dataclasses.asdict(self.config), model=self.module.module.state_dict(), ema=self.ema.state_dict(),
                    optimizer=self.optimizer.state_dict(), aux_optimizer=self.aux_optimizer.state_dict(),
                    precision=self.precision.state_dict())

    def _changed(self, state: Mapping[str, Any]) -> list[str]:
        ours = dataclasses.asdict(self.config)
        theirs = toml.with_defaults(TrainConfig, state["config"])
        files = ("init", "init_head", "widen")  # the same file may lie elsewhere now
        return ([k for k in ours if k not in ("notes", *files) and ours[k] != theirs[k]]
                + [k for k in files if Path(ours[k]).name != Path(theirs[k]).name])

    def _load(self, state: Mapping[str, Any]) -> None:
        self.module.module.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.precision.load_state_dict(state["precision"])

    def _log(self, row: dict[str, Any]) -> None:
        path = self.out / "log.csv"
        new = not path.exists()
        with naming(path), path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, LOG_FIELDS)
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def _trim_log(self) -> None:
        """Drop the lines that a killed run logged after its last checkpoint, and a line it left half written."""
        path = self.out / "log.csv"
        if not path.exists():
            return
        header, *lines = read_text(path).splitlines() or [",".join(LOG_FIELDS)]
        missing = "," * (len(LOG_FIELDS) - 1 - header.count(","))
        kept = [line + missing for line in lines if line.count(",") == header.count(",") and int(line.split(",", 1)[0]) <= self.step]
        with atomic(path) as stream:
            stream.write(("\n".join([",".join(LOG_FIELDS), *kept]) + "\n").encode())


def _precision(autocast: str, device: torch.device) -> Precision:
    if autocast == "none":
        return Precision()
    if autocast == "float16" and device.type == "cpu":
        raise ValueError("autocast = 'float16' needs a GPU: on a CPU use 'bfloat16' or 'none'")
    return MixedPrecision("bf16-mixed" if autocast == "bfloat16" else "16-mixed", device.type)


def _fabric(device: torch.device, precision: Precision) -> Fabric:
    """One process on ``device``; as many as ``torchrun`` started, where it did."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:
        devices = 1 if device.index is None else [device.index]
        fabric = Fabric(accelerator=device.type, devices=devices, plugins=[precision])
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        fabric = Fabric(accelerator=device.type, devices=local, num_nodes=processes // local, strategy="ddp",
                        plugins=[precision])
    fabric.launch()
    if processes > 1:
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    """End the process group: its threads may abort a process that ends with them."""
    gc.collect()  # of models that hold it
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _optimizer(config: TrainConfig, named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """Adam, or SOAP (Vyas et al., arXiv 2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.

    Rate and distortion pull along few, ill-scaled directions, which a diagonal preconditioner sees badly: SOAP needs a
    third of Adam's steps here, each at twice the time (``benchmarks/optimizers.py``).
    """
    rates = {"classifier.": config.class_lr}
    if config.head_lr != 1:  # with the codec's parameters else, as checkpoints have it
        rates["head."] = config.head_lr
    own = {part: [p for name, p in named if name.startswith(part)] for part in rates}
    codec = [p for name, p in named if not name.endswith(".quantiles") and not name.startswith(tuple(rates))]
    parameters: list[dict[str, Any]] = [{"params": codec}]
    parameters += [{"params": own[part], "multiple": rate} for part, rate in rates.items() if own[part]]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, betas=(0.9, config.adam_beta2))
    from pytorch_optimizer import SOAP

    return SOAP(parameters, lr=config.lr, weight_decay=0.0, precondition_frequency=10, max_precondition_dim=256)


def _codec_of(config: TrainConfig) -> Codec:
    """The codec that a run begins with: a new one, or the one that ``init`` names.

    Raises:
        ValueError: it is not of the config's architecture, widths or levels of rate.
    """
    codec = load_codec(Path(config.init)) if config.init else create_codec(config.arch, config.N, config.M)
    codec.lmbda = codec.lmbda or config.lmbda
    if config.lambdas and not isinstance(codec, VariableCodec):
        codec = VariableCodec.from_fixed(codec, config.lambdas)
    if isinstance(codec, VariableCodec):
        if not config.lambdas:
            raise ValueError(f"{config.init} is a variable-rate codec: the config needs lambdas, those of its levels of rate")
        if codec.lambdas != tuple(config.lambdas):
            codec = codec.with_levels(config.lambdas)
    if (shape := (codec.architecture.name, codec.N, codec.M)) != (config.arch, config.N, config.M):
        raise ValueError(f"{config.init} has arch, N, M = {shape}, the config {(config.arch, config.N, config.M)}")
    return codec


def _start_head(objective: Objective, codec: Codec, config: TrainConfig) -> None:
    """Begin with the head that ``init_head`` names, which may be that of a narrower encoder.

    Raises:
        ModelError: it has none of the config's form.
    """
    state = read_weights(Path(config.init_head))
    mixes = {tap: state.get(f"{CONTRAST}{tap}.mix") for tap in codec.analysis_channels}
    channels = {tap: count if (mix := mixes[tap]) is None else len(mix) for tap, count in codec.analysis_channels.items()}
    head = Head.from_state_dict(state, channels)
    if head is None or isinstance(head, ContrastHead) != isinstance(objective.head, TrainableContrastHead):
        raise ModelError(f"{config.init_head} has no head of form {config.form!r} to start from")
    if isinstance(objective.head, TrainableContrastHead):
        assert isinstance(head, ContrastHead)
        objective.head.start_from(head, quality_fit(state))
    else:
        assert isinstance(head, Head) and objective.head is not None
        objective.head.start_from(head)


@torch.no_grad()
def _start_slopes(head: TrainableContrastHead, codec: Codec, opinions: OpinionSet, count: int = 12) -> None:
    images = torch.stack([torch.from_numpy(np.array(images[0])).permute(2, 0, 1)[:, :288, :288] for images, _ in opinions.references[:count]])
    images = images.to(next(codec.parameters()).device).float() / 255
    right = torch.cat([images[..., :1], images[..., :-1]], 3)
    down = torch.cat([images[..., :1, :], images[..., :-1, :]], 2)
    taps = tuple(head.details)
    head.start_slopes(*(dict(zip(taps, codec.features(moved, taps))) for moved in (images, right, down)))


def _moving_average(decay: float) -> Callable[..., Any]:
    """Exponential moving average whose memory grows with the run up to ``decay``, so that it never lags far behind."""

    @torch.no_grad()
    def update(averages: list[torch.Tensor], values: list[torch.Tensor], count: torch.Tensor) -> None:
        seen = int(count)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + seen) / (10 + seen)))

    return update


OUTPUTS = ("codec.safetensors", "classifier.safetensors", "head.safetensors", "curve.png")  # of export


def has_log(out: Path) -> bool:
    """Whether the folder of a run holds a log of a trainer's, which a run that was killed early goes on with."""
    try:
        begin = read_text(out / "log.csv").splitlines()[:1]
        return not begin or begin[0].split(",") in (LOG_FIELDS, LOG_FIELDS[:-2])  # the latter: before there were the last two
    except (OSError, UnicodeDecodeError):
        return False


def export(checkpoint: Path, out: Path) -> None:
    """Write the moving average in a trainer's checkpoint into folder ``out``, and a plot of the log that lies there.

    ``codec.safetensors`` is a CompressAI state dict, ready for coding; ``classifier.safetensors`` the classifier.
    """
    state = read_checkpoint(checkpoint, torch.device("cpu"), "a training run", ("config", "ema", "step"))
    config = state["config"]
    averaged = {k.removeprefix("module."): v for k, v in state["ema"].items() if k.startswith("module.")}
    lambdas = config.get("lambdas", [])
    model = VariableCodec(config["N"], config["M"], len(lambdas)) if lambdas else create_codec(config["arch"], config["N"], config["M"])
    if config.get("tied"):
        tie(model.g_a)
    state_of_codec = {k.removeprefix("codec."): v for k, v in averaged.items() if k.startswith("codec.")}
    model.context = ContextModel.for_state(state_of_codec, config["N"], config["M"])
    model.load_state_dict(state_of_codec)
    untie(model.g_a)
    optimizer = torch.optim.Adam([model.entropy_bottleneck.quantiles], lr=1e-2)
    for _ in range(500):  # the quantiles bound the coder's tables: settle them on the averaged densities
        optimizer.zero_grad()
        model.aux_loss().backward()
        optimizer.step()
    model.update(force=True)
    metadata = {"seconds": f"{state['seconds']:.0f}", "steps": str(state["step"])}
    metadata |= {key: str(config[key]) for key in ("name", "arch", "N", "M", "lmbda")}
    if lambdas:
        metadata["lambdas"] = " ".join(map(str, lambdas))
    parts = {"codec": model.state_dict()}
    if classifier := {k.removeprefix("classifier."): v for k, v in averaged.items() if k.startswith("classifier.")}:
        parts["classifier"] = classifier
    if weights := {k.removeprefix("head.weights."): v for k, v in averaged.items() if k.startswith("head.weights.")}:
        head = TrainableHead(config["form"], {tap: weight.shape[1] for tap, weight in weights.items()}, config["scales"])
        head.load_state_dict({f"weights.{tap}": weight for tap, weight in weights.items()}, strict=False)
        parts["head"] = head.head().state_dict()
    if settings := {k.removeprefix("head."): v for k, v in averaged.items() if k.startswith("head.logs.")}:
        architecture = model.architecture
        channels = {tap: count for tap, count in model.analysis_channels.items() if f"logs.{tap}-mean_weight" in settings}
        contrast = TrainableContrastHead(channels, architecture.taps, config["scales"], config["tied"],
                                         config.get("detail_taps", ()), config.get("detail_scales", 1))
        contrast.load_state_dict({k.removeprefix("head."): v for k, v in averaged.items() if k.startswith("head.")})
        parts["head"] = contrast.state()
    for name, tensors in parts.items():
        whole = {k: v.detach().contiguous() for k, v in tensors.items()}
        replace(Path(out) / f"{name}.safetensors", lambda path: save_file(whole, path, metadata=metadata))
    if (Path(out) / "log.csv").exists():
        plot_curve(Path(out) / "log.csv", Path(out) / "curve.png")


def plot_curve(log_path: Path, path: Path) -> None:
    """Plot of a trainer's log: each logged term over the steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    with log_path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in ("loss", "bpp", "psnr", "ms_ssim", "cross_entropy", "accuracy", "judgement",
                           "order", "shift", "correlation", "pairs", "opinion_mse", "task", "decision", "thumbnail_bpp")
             if rows[-1].get(name)]
    units = {"psnr": "PSNR, dB", "bpp": "bits per pixel", "ms_ssim": "MS-SSIM", "cross_entropy": "cross-entropy, nats"}
    lines = -(-len(names) // 3)
    figure = Figure(figsize=(3.4 * min(len(names), 3), 2.6 * lines), layout="constrained")
    panels = iter(figure.subplots(lines, min(len(names), 3), squeeze=False).flat)
    for name, axes in zip(names, panels):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*zip(*points), linewidth=1, marker="." if len(points) < 30 else "")
        axes.set(xlabel="step", title=units.get(name, name))
        if name == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
    for axes in panels:  # left over in the last line
        axes.remove()
    replace(path, lambda partial: figure.savefig(partial, format="png", dpi=120))
