"""What a run leaves after each epoch: a line of figures, the networks, a strip of maps, and the checkpoint."""

import math
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from attention_branch.data import DataSet, ImageSet
from attention_branch.data.dataset import Sample
from attention_branch.errors import UserError
from attention_branch.files import append_text, json_line, read_json_lines, write_text
from attention_branch.metrics import collapse_alarm
from attention_branch.models import ABNOutput
from attention_branch.report.guided_strip import guided_strip
from attention_branch.report.strip import strip
from attention_branch.training.building import Trainable
from attention_branch.training.guided import Guide
from attention_branch.training.module import Classifier
from attention_branch.training.optimization import rate_factor

CHECKPOINT = Path("checkpoints") / "last.ckpt"


class Journal(Checkpoint):
    """Writes the run folder, on process 0. The order is networks, strip, line, checkpoint.

    A run killed in between repeats the epoch from the checkpoint before it; the lines after that one are cut off.
    """

    def __init__(self, folder: Path, data: DataSet, maps: int, tensorboard: bool) -> None:
        self.folder, self.data, self.columns, self.tensorboard = folder, data, maps, tensorboard
        self.best: dict[str, Any] = {}
        self.interrupted = False
        self.began = self.validation_began = 0.0
        self.epoch_seconds: list[float] = []
        self.writer: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far, for the checkpoint."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best epoch so far from a checkpoint."""
        self.best = dict(state_dict["best"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cut off what a killed run wrote after its last checkpoint."""
        if not trainer.is_global_zero:
            return
        cut_metrics(self.folder, trainer.current_epoch)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.began = self.validation_began = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note when the training part of the epoch ended."""
        self.validation_began = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all of the epoch."""
        module = cast(Classifier, pl_module)
        line = self._figures(trainer, module)
        network, epoch = module.evaluated, line["epoch"]
        better = not self.best or (line["validation_accuracy"], -line["validation_loss"]) > (
            self.best["validation_accuracy"],
            -self.best["validation_loss"],
        )
        # With human maps the last epoch counts: validation pictures may hold the very hint that the maps take away.
        better = better or module.teacher is not None
        line["best"] = better
        if better:
            self.best = {key: value for key, value in line.items() if key == "epoch" or key.startswith("validation_")}
        if trainer.is_global_zero:
            network.save_pretrained(self.folder / "last")
            if better:
                network.save_pretrained(self.folder / "model")
            if network.is_abn and self.columns:
                self._draw(module, epoch, line)
            line["seconds"] = round(time.perf_counter() - self.began, 3)
            append_text(self.folder / "metrics.jsonl", json_line(line))
            self._say(trainer, line)
        trainer.save_checkpoint(self.folder / CHECKPOINT, weights_only=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close TensorBoard's file."""
        if self.writer is not None:
            self.writer.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remember whether somebody stopped the run: Ctrl-C, or a scheduler's signal."""
        self.interrupted = isinstance(exception, KeyboardInterrupt | SystemExit)

    def _figures(self, trainer: L.Trainer, module: Classifier) -> dict[str, Any]:
        many = trainer.world_size > 1
        config = module.config
        line: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": config.lr * rate_factor(config, module.steps_per_epoch)(trainer.global_step - 1),
        }
        line |= {f"train_{name}": value for name, value in module.train_tally.read(many).items()}
        line |= {f"validation_{name}": value for name, value in module.validation_tally.read(many).items()}
        if module.teacher is not None:
            line |= module.teacher.figures(many)
        if not all(math.isfinite(value) for value in line.values()):
            raise UserError(
                f"The validation loss is not finite after epoch {line['epoch']} (learning rate {line['lr']:.3g}); "
                "lower the learning rate, add warmup_epochs or set gradient_clip. What was saved before stays."
            )
        seconds = self.validation_began - self.began
        images = module.steps_per_epoch * config.batch_size
        line |= {"images_per_second": round(images / seconds, 2), "train_seconds": round(seconds, 3)}
        if module.maps:
            maps = _all_maps(module.maps, many)
            flat = maps.flatten(2)
            line["map_mean"] = flat.mean().item()
            line["map_spread"] = flat.std(2, correction=0).mean().item()
            line["map_low"], line["map_high"] = flat.amin(2).mean().item(), flat.amax(2).mean().item()
            line["alarm"] = collapse_alarm(maps, bounded=module.evaluated.map_range is not None)
        return line

    def _draw(self, module: Classifier, epoch: int, line: dict[str, Any]) -> None:
        assert self.data.validation is not None
        network = module.evaluated
        title = f"epoch {epoch + 1}, validation accuracy {line['validation_accuracy']:.1%}"
        draw_maps(network, self.data.validation, self.columns, self.folder / "maps" / f"epoch-{epoch:03d}.png", title)
        if module.guide is not None:
            path = self.folder / "guided" / f"epoch-{epoch:03d}.png"
            draw_guided(module.guide, network, self.data.validation, self.columns, path, title)
        if module.surroundings and len(module.surroundings[0]):
            plain, inside, changed = module.surroundings
            plain, changed = (network.preprocessing.denormalize(each).float() for each in (plain, changed))
            path = self.folder / "counterexamples" / f"epoch-{epoch:03d}.png"
            title = f"epoch {epoch + 1}: training image, what its human map marks, as it was shown"
            guided_strip(plain, inside.float(), torch.zeros(len(plain), 4), changed, path, title=title)

    def _say(self, trainer: L.Trainer, line: dict[str, Any]) -> None:
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, line["epoch"])
            self.writer.flush()
        self.epoch_seconds.append(line["seconds"])
        assert trainer.max_epochs is not None
        left = (trainer.max_epochs - line["epoch"] - 1) * sum(self.epoch_seconds) / len(self.epoch_seconds)
        parts = [
            f"epoch {line['epoch'] + 1}/{trainer.max_epochs}",
            f"loss {line['train_loss']:.4f}",
            f"validation {line['validation_loss']:.4f}",
            f"accuracy {line['validation_accuracy']:.1%}",
        ]
        if "validation_attention_accuracy" in line:
            parts.append(f"attention branch {line['validation_attention_accuracy']:.1%}")
        if "map_mean" in line:
            parts.append(f"map {line['map_low']:.2f} to {line['map_high']:.2f}")
        if "train_map_annotated" in line:
            parts.append(f"from the human maps {line['train_map_annotated']:.2f}")
        parts += [f"{line['images_per_second']:.0f} images/s", f"{_duration(left)} left"]
        say = trainer.progress_bar_callback.print if trainer.progress_bar_callback else print
        say("  ".join(parts) + (" *" if line["best"] else ""))
        if line.get("alarm"):
            say(f"  warning: {line['alarm']}")


@torch.no_grad()
def draw_maps(network: Trainable, images: ImageSet, columns: int, path: Path, title: str) -> None:
    """Draw the maps of a fixed handful of images; one column an image and head."""
    heads = list(network.heads) if network.heads else [""]
    shown = heads[:columns]
    samples = _handful(images, max(1, columns // len(shown)))
    pictures = [network.preprocessing.image(sample.image) for sample in samples]
    batch = torch.stack([network.preprocessing.tensor(sample.image) for sample in samples])
    device = network.device
    was_training = network.training
    network.eval()
    try:
        output = network(batch.to(device))
    finally:
        network.train(was_training)
    assert isinstance(output, ABNOutput)
    maps: list[Tensor] = []
    labels, repeated = [], []
    for row, sample in enumerate(samples):
        for task, head in enumerate(shown):
            target = sample.target[head] if isinstance(sample.target, dict) else sample.target
            names = network.class_names[head] if isinstance(network.class_names, dict) else network.class_names
            name = "?" if target < 0 else str(names[target] if names else target)
            maps.append(output.attention[row, task].float().cpu())
            labels.append(f"{head} {name}".strip())
            repeated.append(pictures[row])
    strip(repeated, torch.stack(maps), labels, path, title=title, value_range=network.map_range)


def draw_guided(guide: Guide, network: Trainable, images: ImageSet, columns: int, path: Path, title: str) -> None:
    """Draw what the guide makes of a fixed handful of images."""
    samples = _handful(images, columns)
    batch = torch.stack([network.preprocessing.tensor(sample.image) for sample in samples])
    found = guide.changed(batch.to(next(network.parameters()).device))
    plain, changed = (network.preprocessing.denormalize(each).float().cpu() for each in (batch, found.images))
    share = None if found.share is None else found.share.cpu()
    guided_strip(plain, found.maps.cpu(), found.boxes.cpu(), changed, path, share=share, title=title)


def _handful(images: ImageSet, count: int) -> list[Sample]:
    """Return some images, drawn once and for all from the set's size.

    Even distances would fall in step with sets whose classes alternate.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return [images[int(index)] for index in chosen]


def cut_metrics(folder: Path, epoch: int) -> None:
    """Keep the lines of metrics.jsonl for epochs before `epoch`; a half-written last line goes too."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    write_text(path, "".join(json_line(line) for line in read_metrics(folder) if line["epoch"] < epoch))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without one that a kill left unfinished."""
    path = folder / "metrics.jsonl"
    return read_json_lines(path) if path.exists() else []


def _all_maps(mine: list[Tensor], everywhere: bool) -> Tensor:
    if not everywhere:
        return torch.cat(mine)
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, torch.cat(mine))
    return torch.cat(shares)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
