"""Train with Hugging Face's Trainer: its compute_loss, and a callback that logs the parts of the loss.

    python examples/training_transformers.py --smoke
    python examples/training_transformers.py --images photos --fp16

Needs transformers and accelerate: pip install transformers accelerate.
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn

from _denoising import Denoiser, NoisyPictures, arguments
from cpips.losses import CharbonnierLoss, CombinedLoss, PerceptualLoss

from transformers import Trainer, TrainerCallback, TrainingArguments


class LogParts(TrainerCallback):
    """Adds the mean of each part of the loss, since the last log, to what the Trainer logs.

    The sums stay on the device until then, so that no step waits for it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        self.sums = {name: self.sums.get(name, 0) + value for name, value in parts.items()}
        self.count += 1

    def take(self) -> dict[str, float]:
        means = {name: (value / self.count).item() for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.count and "loss" in logs:
            means = self.take()
            logs |= means  # for the callbacks after this one
            state.log_history[-1] |= means


class DenoisingTrainer(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.parts = LogParts()
        self.callback_handler.callbacks.insert(0, self.parts)  # before those that report to TensorBoard and the like
        self.loss = CombinedLoss({"perceptual": PerceptualLoss(), "charbonnier": (10, CharbonnierLoss())}).to(self.args.device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs):
        output = model(inputs["noisy"])
        total, parts = self.loss(output, inputs["clean"])
        self.parts.add(parts)
        return (total, output) if return_outputs else total


def collate(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    noisy, clean = zip(*pairs)
    return {"noisy": torch.stack(noisy), "clean": torch.stack(clean)}


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """What the Trainer logged."""
    args = arguments(__doc__, argv, ("--fp16", {"action": "store_true"}), ("--bf16", {"action": "store_true"}))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=1e-3, seed=0,
            logging_steps=1 if args.smoke else 100, logging_first_step=True, save_strategy="no", report_to=[],
            disable_tqdm=args.smoke, remove_unused_columns=False, fp16=args.fp16, bf16=args.bf16,
            use_cpu=args.device == "cpu", dataloader_pin_memory=args.device != "cpu")
        trainer = DenoisingTrainer(Denoiser(), settings, data_collator=collate,
                                   train_dataset=NoisyPictures(args.images, side=args.side))
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    main()
