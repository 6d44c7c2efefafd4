"""Every setting of a training run, as one frozen value whose field docs are the command line's help."""

import ast
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from attention_branch.errors import UserError, did_you_mean


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run. Plain values only, so that they fit in the run's config.json."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")] = ""
    """Data to train on: a folder, a parquet file, hf:NAME, torchvision:NAME, compcars:PATH, celeba:PATH, or digits."""
    recipe: str = "default"
    """Named settings to start from: default, finetune, digits; as published: cifar, cifar-resnet110, cifar-wrn,
    cifar-densenet, cifar-resnext, cifar-attention, svhn, imagenet, imagenet-vgg, imagenet-attention, compcars, celeba,
    moon, facetracer, panda, lnets-anet; cifar-modern, svhn-modern, imagenet-modern, imagenet-vgg-modern,
    compcars-modern, celeba-modern; with --from: human-maps. Other options override them."""
    out: str | None = None
    """Run folder to write. Left out: runs/MODEL-DATA, with a number added when that is taken."""
    resume: str | None = None
    """Run folder to continue. Its settings are taken over; DATA and other options may be left out."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Run, saved network or hub name to start from, to teach it human maps (needs annotations). Network, data, split
    and augmentation are its own unless given."""
    annotations: str | None = None
    """Folder of human maps (images/, maps/, annotations/) that the network's own maps are pulled towards."""
    map_weight: float = 10.0
    """Weight of the distance between the network's map and the one it should have (the paper's gamma), beside the two
    cross-entropies."""
    keep_weight: float = 1.0
    """Share of map_weight for images without annotation, whose maps are held where they were before. 0 lets them go:
    where all images share a mistake, maps that are held hold the mistake."""
    annotated_share: float = 0.5
    """Share of each batch that is drawn from the annotated images, however few they are."""
    counterexamples: float = 0.0
    """Share of a batch's annotated images that are shown in the surroundings of others: outside of what their human map
    marks lies what is outside of the others' maps. So a hint beside the object no longer tells the class (CAIPI)."""
    train_extractor: bool = False
    """With human maps: train the feature extractor too, and not the attention and perception branch alone."""

    model: str = "resnet18"
    """Backbone: a timm name or a 32-pixel family; `abn models` lists them."""
    baseline: bool = False
    """Train the plain backbone, without an attention branch."""
    mechanism: Literal["residual", "product", "none"] = "residual"
    """What the map does to the features g: g(1+M), gM, or nothing (branch trained, map not applied)."""
    branch: Literal["paper", "lite"] = "paper"
    """Attention branch: a copy of the backbone's last stage, or one of at most 5 percent of the multiply-adds."""
    map_kernel: Literal[3, 1] = 3
    """Kernel of the convolution that makes the map."""
    map_form: Literal["sigmoid", "sum-log"] = "sigmoid"
    """The map M: sigmoid(BN(conv A)), or the authors' SENet's sum over classes of log(1 + A), which has no bound."""
    map_control: Literal["own", "constant", "shuffled"] = "own"
    """Control: a map of 0.5 everywhere, or that of the image before in the batch, in the place of the image's own."""
    perception: Literal["separate", "shared"] = "separate"
    """With several heads: run the perception branch once a head (the paper), or once, the maps weighting its end."""
    pretrained: bool = False
    """Start from the backbone's published weights."""
    image_size: int | tuple[int, int] | None = None
    """Side of the square input in pixels, or its height and width. Left out: the backbone's own."""
    resize: Literal["crop", "squash"] | None = None
    """How a picture comes to that size: shorter side scaled and the centre cut out, or both sides scaled, whatever the
    aspect. Left out: the backbone's own."""
    model_options: tuple[str, ...] = ()
    """Further arguments of the backbone as NAME=VALUE, such as drop_rate=0.2 or, for resnet14 to 110, stem_stride=2."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 128
    """Images per optimiser step, counted over all devices, nodes and accumulation pieces together."""
    accumulate: int = 1
    """Pieces a batch is worked off in, one after the other, to save memory. Batch norms see one piece at a time."""
    optimizer: Literal["sgd", "adamw", "rmsprop"] = "adamw"
    """Optimiser."""
    lr: float = 1e-3
    """Learning rate at its highest, for the whole batch; it is not rescaled by the number of devices."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop; beta1 of adamw."""
    nesterov: bool = False
    """Nesterov's form of the momentum (sgd)."""
    weight_decay: float = 0.05
    """Weight decay; decoupled from the gradient in adamw."""
    decay_all: bool = False
    """Decay norms and biases too, as the authors' code does. Otherwise only weights of two or more dimensions."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; a longer one is shortened to it."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """Course of the learning rate after the warm-up: cosine to zero, times gamma at each milestone, or constant."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from near zero."""
    milestones: tuple[int, ...] = ()
    """Epochs (counted from 0) at whose start the steps schedule multiplies the learning rate by gamma."""
    gamma: float = 0.1
    """Factor of the steps schedule."""

    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0 is off. With cutmix also on, each batch draws one of the two."""
    cutmix: float = 0.0
    """Alpha of cutmix's Beta distribution; 0 is off."""
    augment: str = "flip"
    """Random changes of a training image: none, flip, pad-crop-flip, random-resized-crop, ..."""
    guided: Literal["none", "crop", "drop", "cutmix"] = "none"
    """Change training images where the attention map points: zoom on the attended box, erase it, or paste it into
    another image and mix the labels by attention. Needs an attention branch."""
    guided_share: float = 0.25
    """Share of the images that guided changes; each costs a pass without gradients that makes its map."""
    guided_threshold: float = 0.5
    """Part of a map's own range above which a place is attended to, for guided."""
    guided_by: Literal["running", "ema", "random"] = "running"
    """Whose maps guide: the network's as it is, or those of its running average (needs ema). random is the control:
    boxes of the running maps' sizes at random places, labels mixed by area."""
    ema: float | None = None
    """Decay of a running average of the weights, such as 0.999. When on, the average is what is evaluated and saved."""

    precision: Literal["32", "bf16"] = "32"
    """Arithmetic: float32 (TF32 products on GPUs that have them), or bfloat16 by autocast with float32 weights."""
    compile: bool = False
    """Compile the network (torch.compile): slower to start, faster on GPUs."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    devices: int | None = None
    """Processes (GPUs) on this node. Left out: all GPUs, or one process on the CPU; under torchrun what it started."""
    nodes: int = 1
    """Number of nodes; under torchrun it is read from there."""
    sync_batchnorm: bool = True
    """Let batch norms see the global batch when there are several processes, so that their number changes nothing."""
    workers: int | None = None
    """Processes a device that load images. Left out: none for pictures that fit in memory, else by the cores."""
    seed: int = 0
    """Seed of the split, the start weights, the order of images, augmentation and dropout."""
    maps: int = 8
    """Validation images on the strip of maps drawn after each epoch; 0 draws none."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder (needs the tensorboard package)."""


# These change neither the weights nor what is evaluated (beyond rounding), so that a run may go on with other values.
FREE_ON_RESUME = frozenset(
    {"recipe", "out", "resume", "devices", "nodes", "workers", "accelerator", "compile", "maps", "tensorboard"}
)


def check_settings(config: TrainConfig) -> None:
    """Raise a `UserError` for the first setting that cannot work, by its name."""
    hints = get_type_hints(TrainConfig)
    for item in fields(config):
        value = getattr(config, item.name)
        hint = hints[item.name]
        kinds = (hint, *get_args(hint))
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if choices and value not in choices and not (value is None and type(None) in kinds):
            raise UserError(
                f"Unknown {item.name} '{value}'; use one of {', '.join(map(str, choices))}."
                + did_you_mean(str(value), map(str, choices))
            )
    if not config.data:
        raise UserError(
            "No data named; give a folder, a parquet file, hf:NAME, torchvision:NAME, compcars:PATH, celeba:PATH, or "
            "digits."
        )
    whole = {"epochs": 1, "batch_size": 1, "accumulate": 1, "nodes": 1, "seed": 0, "maps": 0}
    smallest: dict[str, float] = {**whole, "lr": 0, "weight_decay": 0, "warmup_epochs": 0, "mixup": 0, "cutmix": 0}
    sides = (config.image_size,) if isinstance(config.image_size, int) else config.image_size or ()
    if not all(side >= 1 for side in sides):
        raise UserError(f"image_size is {config.image_size}; its sides must be 1 or more.")
    optional = {"devices": 1, "workers": 0}
    smallest |= {name: least for name, least in optional.items() if getattr(config, name) is not None}
    for name, least in smallest.items():
        if not least <= getattr(config, name) < float("inf"):
            raise UserError(f"{name} is {getattr(config, name)}; it must be {least} or more.")
    for name, upper in {"momentum": 1.0, "label_smoothing": 1.0, "ema": 1.0}.items():
        value = getattr(config, name)
        if value is not None and not 0 <= value < upper:
            raise UserError(f"{name} is {value}; it must be at least 0 and less than {upper:g}.")
    if config.nesterov and (config.optimizer != "sgd" or config.momentum == 0):
        raise UserError("nesterov needs optimizer sgd with a momentum above 0; leave it out, or change them.")
    if config.gradient_clip is not None and not config.gradient_clip > 0:
        raise UserError(f"gradient_clip is {config.gradient_clip}; it must be above 0, or left out.")
    if list(config.milestones) != sorted(set(config.milestones)):
        raise UserError(f"milestones are {config.milestones}; they must be rising epochs.")
    if config.schedule == "steps" and not config.milestones:
        raise UserError("The steps schedule needs milestones, for instance --milestones 15 25.")
    if config.schedule != "steps" and config.milestones:
        raise UserError(
            f"milestones are for the schedule 'steps', not '{config.schedule}'; leave them out or change it."
        )
    if config.warmup_epochs > config.epochs:
        raise UserError(f"warmup_epochs is {config.warmup_epochs}, longer than the {config.epochs} epochs of training.")
    _check_map(config)
    _check_guided(config)
    _check_human_maps(config)
    if config.resume and config.out and Path(config.resume).resolve() != Path(config.out).resolve():
        raise UserError(f"A continued run writes to its own folder '{config.resume}'; leave out '{config.out}'.")


def _check_map(config: TrainConfig) -> None:
    # Here, because the command line's help reads this module and no networks.
    from attention_branch.models.registry import stands_alone

    alone = stands_alone(config.model)
    mapless = "baseline has no map" if config.baseline else f"'{config.model}' has no branch, and so no map"
    if config.map_control != "own" and (config.baseline or alone or config.mechanism == "none"):
        what = mapless if config.baseline or alone else "mechanism none applies no map"
        raise UserError(f"map_control is {config.map_control}, but {what}; leave one of them out.")
    if config.map_form == "sum-log" and (config.baseline or alone):
        raise UserError(f"map_form is sum-log, but {mapless}; leave one of them out.")
    options = read_model_options(config.model_options)
    if config.model.startswith("interpretable:") and config.accumulate > 1 and options.get("filter_weight", 1) != 0:
        raise UserError(
            "accumulate would cut the batch whose images the filter loss compares into pieces; leave it out, or take a "
            "smaller batch_size."
        )


def check_shares(share: float, threshold: float) -> None:
    """Refuse a share of images or a threshold that is out of range."""
    if not 0 < share <= 1:
        raise UserError(f"guided_share is {share}; it must be above 0 and at most 1.")
    if not 0 < threshold < 1:
        raise UserError(f"guided_threshold is {threshold}; it must be between 0 and 1.")


def _check_guided(config: TrainConfig) -> None:
    if config.guided == "none":
        plain = TrainConfig()
        for name in ("guided_by", "guided_share", "guided_threshold"):
            if getattr(config, name) != getattr(plain, name):
                raise UserError(f"{name} is {getattr(config, name)}, but nothing is guided; add --guided crop, or so.")
        return
    check_shares(config.guided_share, config.guided_threshold)
    if config.baseline or config.map_control != "own":
        what = "baseline has no map" if config.baseline else f"map_control {config.map_control} has none of its own"
        raise UserError(f"guided is {config.guided}, but {what}; leave one of them out.")
    if config.guided_by == "ema" and not config.ema:
        raise UserError("guided_by is ema, but there is no average of the weights; add --ema 0.999, for instance.")
    if config.guided == "cutmix" and (config.mixup > 0 or config.cutmix > 0):
        name = "mixup" if config.mixup > 0 else "cutmix"
        raise UserError(
            f"guided cutmix and {name} would both mix the labels; leave one of them out (guided crop and drop go "
            f"together with {name})."
        )


def _check_human_maps(config: TrainConfig) -> None:
    if config.start is None and config.annotations is None:
        plain = TrainConfig()
        for name in ("map_weight", "keep_weight", "annotated_share", "counterexamples", "train_extractor"):
            if getattr(config, name) != getattr(plain, name):
                raise UserError(f"{name} is {getattr(config, name)}, but there are no human maps; add --annotations.")
        if config.recipe == "human-maps":
            raise UserError("The recipe human-maps needs --from RUN and --annotations DIR.")
        return
    if config.start is None:
        raise UserError(f"annotations is '{config.annotations}', but no network to start from; add --from RUN.")
    if config.annotations is None:
        raise UserError(f"--from is '{config.start}', but no human maps are named; add --annotations DIR.")
    for name in ("map_weight", "keep_weight"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise UserError(f"{name} is {getattr(config, name)}; it must be 0 or more.")
    if not 0 < config.annotated_share <= 1:
        raise UserError(f"annotated_share is {config.annotated_share}; it must be above 0 and at most 1.")
    if not 0 <= config.counterexamples <= 1:
        raise UserError(f"counterexamples is {config.counterexamples}; it must be at least 0 and at most 1.")
    for name, value, off in (
        ("mixup", config.mixup, 0.0), ("cutmix", config.cutmix, 0.0), ("guided", config.guided, "none"),
    ):  # fmt: skip
        if value != off:
            raise UserError(f"{name} is {value}, but a changed picture no longer fits its human map; leave it out.")
    if config.baseline or config.map_form != "sigmoid" or config.map_control != "own" or config.mechanism == "none":
        what = (
            "baseline has no map" if config.baseline
            else "mechanism none applies no map, so that no map can change the answer" if config.mechanism == "none"
            else f"map_control {config.map_control} has no map of its own" if config.map_control != "own"
            else "a map of the form sum-log has no upper bound to hold a human map of 0 to 1 against"
        )  # fmt: skip
        raise UserError(f"annotations is '{config.annotations}', but {what}; start from another network.")


def read_model_options(options: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE pairs as keyword arguments; values are Python literals, anything else is a string."""
    values: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"The model option '{option}' must read NAME=VALUE, for instance drop_rate=0.2.")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def check_resume(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Refuse to continue with a setting that would make another run of it, naming the setting.

    `epochs` may change unless the schedule's course depends on it.
    """
    free = FREE_ON_RESUME | ({"epochs"} if config.schedule != "cosine" else set())
    defaults = TrainConfig()  # a run from before a setting existed was made as its default says
    for item in fields(config):
        if item.name in free:
            continue
        now, before = getattr(config, item.name), saved.get(item.name, getattr(defaults, item.name))
        before = tuple(before) if isinstance(before, list) else before
        if now != before:
            raise UserError(
                f"'{config.resume}' was trained with {item.name} {before} and cannot go on with {now}; leave "
                f"{item.name} as it was, or start a new run."
            )
