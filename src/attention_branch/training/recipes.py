"""Named settings, each number beside its source."""

import dataclasses
from dataclasses import replace
from typing import Any

from attention_branch.errors import UserError, did_you_mean
from attention_branch.training.config import TrainConfig

# The ABN authors' cifar.py (machine-perception-robotics-group/attention_branch_network) with its own defaults.
_CIFAR = TrainConfig(
    recipe="cifar",
    model="resnet110",
    epochs=300,  # cifar.py's default, and the length of all four logs the authors published
    batch_size=128,  # cifar.py's default; the paper's text says 256
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,  # cifar.py's default
    decay_all=True,  # torch.optim.SGD over all parameters
    schedule="steps",
    milestones=(150, 225),  # 50 and 75 % (paper); counted from 0, as in cifar.py
    gamma=0.1,
    augment="pad-crop-flip",  # RandomCrop(32, padding=4), horizontal flip
)

# The ABN authors' imagenet.py, that is PyTorch's ImageNet example.
_IMAGENET = TrainConfig(
    recipe="imagenet",
    model="resnet50",
    epochs=90,
    batch_size=256,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    decay_all=True,
    schedule="steps",
    milestones=(31, 61),  # README's command and the authors' logs; PyTorch's example drops at 30 and 60
    gamma=0.1,
    augment="random-resized-crop",
)

# TrivialAugment's CIFAR-100 configuration (automl/trivialaugment, confs/wresnet28x10_cifar100_*_ta_wide_*.yaml): the
# values without a remark. Its cutout of 16 pixels is left out.
_CIFAR_MODERN = replace(
    _CIFAR,
    recipe="cifar-modern",
    epochs=200,
    batch_size=128,
    lr=0.1,
    nesterov=True,
    weight_decay=5e-4,
    decay_all=False,
    schedule="cosine",
    milestones=(),
    warmup_epochs=5,  # Goyal et al., arXiv 1706.02677, section 2.2
    label_smoothing=0.1,  # Szegedy et al., arXiv 1512.00567
    ema=0.999,  # Tarvainen and Valpola, arXiv 1703.01780
    augment="pad-crop-flip-trivial",
)

# torchvision's recipe for ResNet-50 IMAGENET1K_V2 (pytorch/vision issue 3995 and its article "How to train
# state-of-the-art models using TorchVision's latest primitives"). Left out: random erasing 0.1, four repeats of an
# image in a batch, training at 176 pixels.
_IMAGENET_MODERN = replace(
    _IMAGENET,
    recipe="imagenet-modern",
    epochs=600,
    batch_size=1024,  # 8 x 128
    lr=0.5,
    weight_decay=2e-5,
    decay_all=False,  # --norm-weight-decay 0
    schedule="cosine",
    milestones=(),
    warmup_epochs=5,
    label_smoothing=0.1,
    mixup=0.2,
    cutmix=1.0,
    # Every 32 steps 1 - (1 - 0.99998) * 1024 * 32 / 600 = 0.99891 there, that is 0.99997 a step.
    ema=0.99997,
    augment="trivial-augment",
)

# Residual Attention Networks (arXiv 1704.06904, sections 4.1 and 4.2; no training file was published): SGD with
# Nesterov's momentum 0.9, rate 0.1, weight decay 1e-4. On CIFAR batches of 64, a tenth of the rate at 64k and at 96k of
# 160k steps, which are 81.9, 122.9 and 204.8 passes over 50,000 pictures: the paper's text as remembered, of which the
# author of the port tengshaofeng/ResidualAttentionNetwork-pytorch names 204 epochs too (issue 1), with batches of 64.
_CIFAR_ATTENTION = replace(
    _CIFAR,
    recipe="cifar-attention",
    model="attention452_cifar",
    baseline=True,
    epochs=205,
    batch_size=64,
    nesterov=True,
    weight_decay=1e-4,
    milestones=(82, 123),
)

# The same on ImageNet: a tenth of the rate at 200k, 400k and 500k of 530k steps (quoted in
# fwang91/residual-attention-network, issue 17). The paper names no batch; 256 is a reader's there and our reading, so
# that 5,005 steps are one pass. That reader got 22.36 % error with it, the paper states 21.76.
_IMAGENET_ATTENTION = replace(
    _IMAGENET,
    recipe="imagenet-attention",
    model="attention56",
    baseline=True,
    epochs=106,
    nesterov=True,
    milestones=(40, 80, 100),
)

# The paper's multi-task comparison on CompCars: car model and car maker, two heads. No code was published. Size, epochs
# and batch are the paper's as remembered, not checked against its text; the rest is our reading.
_COMPCARS = TrainConfig(
    recipe="compcars",
    model="resnet101",
    pretrained=True,  # our reading: 36,451 pictures of 432 car models are too few to start from nothing
    image_size=(224, 323),  # "323 x 224", read as width by height: the cars are photographed lengthwise
    resize="squash",
    epochs=50,
    batch_size=32,
    optimizer="sgd",
    lr=0.01,  # our reading: as for CelebA
    momentum=0.9,
    weight_decay=1e-4,  # our reading: as for CelebA and ImageNet
    decay_all=True,
    schedule="steps",
    milestones=(25, 37),  # our reading: 50 and 75 %, as on CIFAR
    gamma=0.1,
    augment="flip",  # our reading
)

# The authors' Chainer code for CelebA's 40 attributes (ABN_CelebA_Chainer, train_param.py). Its loss is the mean over
# the attributes, ours the sum (the paper's section 3.4): a rate 40 times smaller and a decay 40 times larger make the
# same steps of SGD.
_CELEBA = TrainConfig(
    recipe="celeba",
    model="resnet101",
    pretrained=True,  # on ImageNet
    mechanism="product",  # M * g there, without the residual; its M has no sigmoid, ours has one
    image_size=224,
    resize="squash",  # to 224x224, the aspect ignored
    epochs=10,
    batch_size=8,
    optimizer="sgd",
    lr=0.01 / 40,
    momentum=0.9,
    weight_decay=1e-4 * 40,
    decay_all=True,  # a hook over all parameters
    schedule="steps",
    milestones=(4, 8),  # times 0.1 every 4 epochs
    gamma=0.1,
    augment="none",
    seed=1701,
)

# MOON (Rudd et al., ECCV 2016, arXiv 1603.07027): VGG-16 from random weights, RMSProp at 0.00001, 24 epochs, pictures
# at their own size of 178x218, and for the published error of 9.06 % the training data's own distribution as target.
_MOON = TrainConfig(
    recipe="moon",
    model="moon",
    model_options=("target='source'",),
    image_size=(218, 178),
    resize="squash",
    epochs=24,
    batch_size=64,  # our reading
    optimizer="rmsprop",
    lr=1e-5,
    momentum=0.0,
    weight_decay=0.0,  # our reading
    schedule="constant",
    augment="none",  # our reading
)

# Systems of several networks, each trained for so many epochs: our choice, see "panda" and "lnets-anet" below.
_PARTS = TrainConfig(
    pretrained=True,
    image_size=(218, 178),
    resize="squash",
    epochs=10,
    batch_size=128,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    warmup_epochs=1,
    augment="flip",
)

RECIPES: dict[str, TrainConfig] = {
    # From scratch on a folder of any size: the optimiser and schedule that need the least tuning.
    "default": TrainConfig(
        epochs=30,
        optimizer="adamw",
        lr=1e-3,  # AdamW's default in torch
        weight_decay=0.05,  # ConvNeXt (arXiv 2201.03545), table 5
        warmup_epochs=1,
        augment="flip",
    ),
    # A folder of hundreds to some ten thousand images on pretrained weights.
    "finetune": TrainConfig(
        recipe="finetune",
        model="resnet50",
        pretrained=True,
        epochs=20,
        batch_size=64,
        optimizer="adamw",
        lr=1e-4,  # the order used for fine-tuning in "ResNet strikes back" (arXiv 2110.00476) and timm's examples
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=1,
        label_smoothing=0.1,  # Szegedy et al., arXiv 1512.00567
        gradient_clip=1.0,
        augment="random-resized-crop",
    ),
    # The embedded digits in a minute or two on two cores. Many distinct pictures, each seen a few times, teach more in
    # the same time than few seen often; the stride in the stem pays for them. Learning rate, batch size, weight decay
    # and label smoothing were chosen on the validation split.
    "digits": TrainConfig(
        recipe="digits",
        data="digits:train=28000",
        model="resnet14",
        model_options=("stem_stride=2",),
        mechanism="product",
        branch="lite",
        image_size=64,  # the pictures' own size
        epochs=4,
        batch_size=64,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-3,
        schedule="cosine",
        warmup_epochs=0.6,
        label_smoothing=0.1,
        augment="none",  # place, size and colour are random already; a mirrored digit is another sign
    ),
    # The study of `abn reproduce digits`: the network and pictures of the demo at a lower rate, because at 0.1 one
    # of three plain backbones does not leave chance. Chosen on the validation split for the plain backbone alone: 0.03
    # gives 10.3, 9.5 and 14.4 % error there with seeds 2, 0 and 1, 0.1 gives 90.0, 7.0 and 4.9 %.
    "digits-study": TrainConfig(
        recipe="digits-study",
        data="digits:train=28000",
        model="resnet14",
        model_options=("stem_stride=2",),
        image_size=64,
        epochs=4,
        batch_size=64,
        optimizer="sgd",
        lr=0.03,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-3,
        schedule="cosine",
        warmup_epochs=1.0,
        label_smoothing=0.1,
        augment="none",
    ),
    # For a trained network and a folder of human maps (--from, --annotations). Weight of the maps and rate were
    # tried on the validation split of one seed of the digits with a mark (benchmarks/human_maps.py): there the maps
    # of new images move.
    "human-maps": TrainConfig(
        recipe="human-maps",
        epochs=3,
        batch_size=64,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.05,
        warmup_epochs=0.2,
        augment="none",  # that of the run where there is one
    ),
    # For constructed data of several heads (mosaics, grouped classes) in the place of CelebA and Comp-Cars: the CIFAR
    # settings, a fifth as long. The number of heads divides the rate where it is used (`reproduce/plan.py`).
    "constructed": replace(
        _CIFAR,
        recipe="constructed",
        model="resnet20",
        model_options=("stem_stride=2",),
        epochs=60,
        milestones=(30, 45),
        weight_decay=1e-4,
    ),
    # --- as published ---
    "cifar": _CIFAR,
    # README's command: -a resnet --depth 110 --wd 1e-4, which builds bottlenecks of 164 layers. (TRAINING.md's 164
    # epochs with drops at 81 and 122 come from the code it is based on; the authors' log has 300, 150, 225.)
    "cifar-resnet110": replace(_CIFAR, recipe="cifar-resnet110", model="resnet164b", weight_decay=1e-4),
    # The authors' log: 300 epochs, 0.1, 0.02, 0.004. TRAINING.md has the WRN paper's 200 epochs, 60, 120, 160.
    "cifar-wrn": replace(
        _CIFAR,
        recipe="cifar-wrn",
        model="wrn_28_10",
        model_options=("drop_rate=0.3",),  # TRAINING.md: --drop 0.3
        gamma=0.2,  # TRAINING.md and the log
    ),
    # TRAINING.md: --train-batch 64 --wd 1e-4 (5e-4 "is harmful" there); the log has 150, 225.
    "cifar-densenet": replace(
        _CIFAR, recipe="cifar-densenet", model="densenet_bc_100_12", batch_size=64, weight_decay=1e-4
    ),
    # TRAINING.md: --wd 5e-4 --schedule 150 225 --gamma 0.1; the log agrees.
    "cifar-resnext": replace(_CIFAR, recipe="cifar-resnext", model="resnext29_8x64d"),
    # No code was published. The paper's text as remembered: batch 256, rate 0.1, drops at 50 and 75 %. Epochs, weight
    # decay and network are those of "ResNet-110" on CIFAR, our reading.
    "svhn": replace(
        _CIFAR,
        recipe="svhn",
        model="resnet164b",
        batch_size=256,
        weight_decay=1e-4,
        # Our reading: a mirrored digit is another sign, and the Wide ResNet authors' train_svhn.sh has no crop either.
        augment="none",
    ),
    "cifar-attention": _CIFAR_ATTENTION,
    "imagenet": _IMAGENET,
    # PyTorch's ImageNet example: a rate of 0.1 is too high for networks without batch norm, theirs is 0.01.
    "imagenet-vgg": replace(_IMAGENET, recipe="imagenet-vgg", model="vgg16", lr=0.01),
    "imagenet-attention": _IMAGENET_ATTENTION,
    "compcars": _COMPCARS,
    "celeba": _CELEBA,
    "moon": _MOON,
    # Kumar et al., ECCV 2008, rebuilt on CelebA's aligned pictures: nothing in it is trained by gradients.
    "facetracer": TrainConfig(
        recipe="facetracer", model="facetracer", image_size=(218, 178), resize="squash", epochs=1, augment="none"
    ),
    # Neither paper gives settings: ours, those of "default" with fewer epochs. LNets, and PANDA's network of the whole
    # picture, start from ImageNet (both papers).
    "panda": replace(_PARTS, recipe="panda", model="panda"),
    "lnets-anet": replace(_PARTS, recipe="lnets-anet", model="lnets-anet"),
    # --- modern: the same data, with what has since become usual ---
    "cifar-modern": _CIFAR_MODERN,
    # Without crop and mirror, as in "svhn".
    "svhn-modern": replace(_CIFAR_MODERN, recipe="svhn-modern", model="resnet164b", augment="trivial"),
    "imagenet-modern": _IMAGENET_MODERN,
    # A tenth of the rate, as "imagenet-vgg" has it; our reading.
    "imagenet-vgg-modern": replace(_IMAGENET_MODERN, recipe="imagenet-vgg-modern", model="vgg16", lr=0.05),
    # Fine-tuning with the rate, momentum and weight decay that Li et al. (arXiv 2002.11770, section 1) name as usual
    # for ResNets; batch, Nesterov and cosine of Kornblith et al. (arXiv 1805.08974); the rest as in imagenet-modern.
    "compcars-modern": replace(
        _COMPCARS,
        recipe="compcars-modern",
        image_size=None,  # the crops are square
        resize=None,
        batch_size=256,
        lr=0.01,
        nesterov=True,
        weight_decay=1e-4,
        decay_all=False,
        schedule="cosine",
        milestones=(),
        warmup_epochs=5,
        label_smoothing=0.1,
        ema=0.999,  # as in cifar-modern: there are 7,000 steps, not 750,000
        augment="trivial-augment",
    ),
    # As compcars-modern, but without random crops and operations, which take attributes away (hats, hair colour), and
    # without label smoothing, since most attributes are rare.
    "celeba-modern": replace(
        _CELEBA,
        recipe="celeba-modern",
        mechanism="residual",
        batch_size=64,  # the last stage runs 40 times an image: memory
        lr=0.01 * 64 / 256 / 40,  # compcars-modern's by the linear rule of Goyal et al., then for a sum of 40 losses
        nesterov=True,
        decay_all=False,
        schedule="cosine",
        milestones=(),
        warmup_epochs=0.5,  # the share of the run lies between that of cifar-modern and of compcars-modern
        ema=0.999,
        augment="flip",
        seed=0,
    ),
}


def recipe(name: str, **changes: Any) -> TrainConfig:
    """Return a recipe's settings with some changed: `recipe("cifar", data="torchvision:CIFAR100", seed=1)`."""
    if name not in RECIPES:
        raise UserError(f"Unknown recipe '{name}'; use one of {', '.join(RECIPES)}.{did_you_mean(name, RECIPES)}")
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    for change in changes:
        if change not in known:
            raise UserError(f"Unknown setting '{change}'.{did_you_mean(change, known)}")
    return replace(RECIPES[name], **changes)
