"""Settings, recipes and the reading of arguments."""

import dataclasses
import json
import subprocess
import sys

import pytest

from attention_branch.errors import UserError
from attention_branch.training import RECIPES, TrainConfig, parse_train_arguments, recipe
from attention_branch.training.config import check_resume, check_settings, read_model_options


def test_a_recipe_gives_the_defaults_and_options_override_them() -> None:
    config = parse_train_arguments(
        ["photos", "--model", "resnet50", "--recipe", "finetune", "--lr", "0.01", "--no-pretrained"]
    )
    expected = dataclasses.replace(RECIPES["finetune"], data="photos", model="resnet50", lr=0.01, pretrained=False)
    assert config == expected


def test_published_values_of_the_recipes() -> None:
    cifar, imagenet = RECIPES["cifar"], RECIPES["imagenet"]
    assert (cifar.epochs, cifar.lr, cifar.batch_size, cifar.milestones) == (300, 0.1, 128, (150, 225))
    assert (cifar.weight_decay, cifar.momentum, cifar.optimizer) == (5e-4, 0.9, "sgd")
    assert (imagenet.epochs, imagenet.lr, imagenet.batch_size, imagenet.milestones) == (90, 0.1, 256, (31, 61))
    assert all(settings.recipe == name for name, settings in RECIPES.items())


def test_data_is_required_unless_the_recipe_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_train_arguments(["--model", "resnet20"])
    assert stopped.value.code == 2
    assert "DATA" in capsys.readouterr().err
    assert parse_train_arguments(["--recipe", "digits"]).data == "digits:train=28000"


def test_help_shows_every_setting_with_its_doc(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train_arguments(["--help"])
    text = capsys.readouterr().out
    for item in dataclasses.fields(TrainConfig):
        shown = {"data": "DATA", "start": "--from"}.get(item.name, f"--{item.name.replace('_', '-')}")
        assert shown in text
    assert "Images per optimiser step" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--recipe", "cifra"], "Unknown recipe 'cifra'.*Did you mean 'cifar'"),
        (["--resume", "/nowhere/run"], "no run folder"),
        (["photos", "--recipe"], "recipe"),
    ],
)
def test_arguments_that_cannot_be_read(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_train_arguments(arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamv"}, "Unknown optimizer 'adamv'.*Did you mean 'adamw'"),
        ({"map_control": "shuffled", "baseline": True}, "baseline has no map"),
        ({"map_control": "constant", "mechanism": "none"}, "leave one of them out"),
        ({"map_form": "sum-log", "model": "interpretable:resnet14"}, "'interpretable:resnet14' has no branch"),
        ({"accumulate": 2, "model": "interpretable:resnet14"}, "accumulate would cut the batch"),
        ({"mechanism": "residuel"}, "Did you mean 'residual'"),
        ({"data": ""}, "No data named"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"schedule": "steps"}, "needs milestones"),
        ({"milestones": (3,)}, "milestones are for"),
        ({"nesterov": True}, "nesterov needs"),
        ({"warmup_epochs": 31.0}, "longer than"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"image_size": (224, 0)}, r"image_size is \(224, 0\)"),
        ({"resize": "stretch"}, "Unknown resize 'stretch'; use one of crop, squash"),
        ({"resume": "a", "out": "b"}, "its own folder"),
        ({"guided": "croup"}, "Unknown guided 'croup'.*Did you mean 'crop'"),
        ({"guided_share": 0.5}, "guided_share is 0.5, but nothing is guided"),
        ({"guided": "crop", "guided_share": 0.0}, "guided_share is 0.0; it must be above 0"),
        ({"guided": "crop", "guided_threshold": 1.0}, "guided_threshold is 1.0"),
        ({"guided": "drop", "baseline": True}, "guided is drop, but baseline has no map"),
        ({"guided": "drop", "map_control": "shuffled"}, "map_control shuffled has none of its own"),
        ({"guided": "drop", "guided_by": "ema"}, "no average of the weights; add --ema"),
        ({"guided": "cutmix", "mixup": 0.2, "cutmix": 1.0}, "guided cutmix and mixup would both mix the labels"),
        ({"guided": "cutmix", "cutmix": 1.0}, "guided cutmix and cutmix would both"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(dataclasses.replace(TrainConfig(data="photos"), **changes))


def test_recipe_refuses_an_unknown_setting() -> None:
    with pytest.raises(UserError, match="Did you mean 'epochs'"):
        recipe("cifar", epoch=3)


def test_resume_refuses_what_would_be_another_run() -> None:
    saved = json.loads(json.dumps(dataclasses.asdict(recipe("cifar", data="d"))))
    check_resume(recipe("cifar", data="d", resume="r", devices=4, workers=3, epochs=400), saved)
    with pytest.raises(UserError, match=r"with lr 0\.1 and cannot go on with 0\.2"):
        check_resume(recipe("cifar", data="d", resume="r", lr=0.2), saved)
    with pytest.raises(UserError, match="milestones"):
        check_resume(recipe("cifar", data="d", resume="r", milestones=(1, 2)), saved)
    older = {name: value for name, value in saved.items() if not name.startswith(("guided", "map_form"))}
    check_resume(recipe("cifar", data="d", resume="r"), older)
    with pytest.raises(UserError, match="with guided none and cannot go on with crop"):
        check_resume(recipe("cifar", data="d", resume="r", guided="crop"), older)
    cosine = json.loads(json.dumps(dataclasses.asdict(recipe("default", data="d"))))
    with pytest.raises(UserError, match="with epochs 30 and cannot go on with 40"):
        check_resume(recipe("default", data="d", resume="r", epochs=40), cosine)


def test_neither_the_package_nor_the_settings_import_lightning() -> None:
    code = (
        "import sys, attention_branch, attention_branch.training as t; t.recipe('cifar');"
        "sys.exit(any(m.split('.')[0] in ('lightning', 'pytorch_lightning') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_model_options_are_literals_or_strings():
    found = read_model_options(("drop_rate=0.2", "stem_stride=2", "act_layer=relu", "flag=True"))
    assert found == {"drop_rate": 0.2, "stem_stride": 2, "act_layer": "relu", "flag": True}
    with pytest.raises(UserError, match="NAME=VALUE"):
        read_model_options(("drop_rate",))
