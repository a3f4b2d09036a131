"""Train with PyTorch Lightning: the loss logs its parts, a torchmetrics metric the distance of the validation images.

    python examples/training_lightning.py --smoke
    python examples/training_lightning.py --images photos --precision 16-mixed --compile

Needs pytorch-lightning and torchmetrics: pip install pytorch-lightning 'cpips[torchmetrics]'.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, random_split

from _denoising import Denoiser, NoisyPictures, arguments
from cpips.losses import CharbonnierLoss, CombinedLoss, PerceptualLoss
from cpips.torchmetrics import CPIPS  # before Lightning: it imports torchmetrics, too

import pytorch_lightning as pl


class Denoising(pl.LightningModule):
    """Its checkpoints hold the network alone: losses and metrics of cpips keep out of ``state_dict()``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Denoiser()
        self.loss = CombinedLoss({"perceptual": PerceptualLoss(), "charbonnier": (10, CharbonnierLoss())})
        self.quality = CPIPS()

    def training_step(self, batch, index):
        noisy, clean = batch
        total, parts = self.loss(self.network(noisy), clean)
        self.log_dict({f"train/{name}": value for name, value in parts.items()})
        return total

    def validation_step(self, batch, index):
        noisy, clean = batch
        self.quality.update(self.network(noisy).clamp(0, 1), clean)  # a metric refuses what a loss lets pass
        self.log("val/cpips", self.quality, batch_size=len(clean))  # Lightning computes and resets it

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """What was logged last."""
    args = arguments(__doc__, argv, ("--precision", {"default": "32-true"}), ("--devices", {"type": int, "default": 1}),
                     ("--compile", {"action": "store_true"}))
    pl.seed_everything(0, verbose=False)
    data = NoisyPictures(args.images, side=args.side)
    train, held_out = random_split(data, [0.9, 0.1])
    module = Denoising()
    if args.compile:
        module.network = torch.compile(module.network)
        module.loss = torch.compile(module.loss)
    trainer = pl.Trainer(max_steps=args.steps, accelerator=args.device, devices=args.devices, precision=args.precision,
                         logger=not args.smoke, enable_checkpointing=not args.smoke, enable_model_summary=False,
                         enable_progress_bar=not args.smoke, log_every_n_steps=min(args.steps, 50))
    trainer.fit(module, DataLoader(train, args.batch, shuffle=True, drop_last=True), DataLoader(held_out, args.batch))
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    found |= trainer.validate(module, DataLoader(held_out, args.batch), verbose=False)[0]
    print("  ".join(f"{name} {value:.4g}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
