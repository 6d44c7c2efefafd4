"""The fast path on a GPU: captured steps are the steps, nothing waits, nothing is read too early, runs do not mix."""

import pytest
import torch

from attention_branch.data import open_data
from attention_branch.data.resident import resident
from attention_branch.training import TrainConfig, recipe
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

DATA = "digits:train=44,validation=12,test=10"
CHANGES = [
    {"optimizer": "sgd", "lr": 0.01, "augment": "pad-crop-flip", "model_options": ("drop_rate=0.3",)},
    {"ema": 0.9, "label_smoothing": 0.1, "gradient_clip": 1.0},
    {"precision": "bf16", "baseline": True},
]


@pytest.fixture(scope="module")
def data():
    return open_data(DATA)


@pytest.fixture(autouse=True)
def exact():
    """The same kernels each time, without TF32, so that two ways to one result give one result."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def settings(**changes) -> TrainConfig:
    small = {"data": DATA, "model": "resnet14", "image_size": 32, "batch_size": 10, "epochs": 3, "maps": 0}
    return recipe("default", **small | {"warmup_epochs": 0.5} | changes)


def trainer(config, data, **options):
    torch.manual_seed(config.seed)
    model = make_model(config, data)
    return FastTrainer(config, model, resident(data.train, model.preprocessing, "cuda"), "cuda", **options)


def weights(made):
    return {name: value.cpu() for name, value in made.evaluated.state_dict().items()}


def run(made):
    while not made.finished:
        made.advance(3)
    return weights(made)


def assert_same(found, wanted, **tolerance):
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("changes", CHANGES)
def test_captured_steps_are_the_steps(data, changes):
    config = settings(**changes)
    wanted, found = run(trainer(config, data, graph=False)), run(trainer(config, data, graph=True))
    assert_same(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", CHANGES)
def test_nothing_waits_for_the_device(data, changes):
    made = trainer(settings(**changes), data)
    images = resident(data.test, made.preprocessing, "cuda")
    made.advance()
    made.evaluate(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.advance()
        sums, answers = made.epoch_figures(), made.evaluate(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Taken without waiting, they are what is found when everything has ended.
    torch.cuda.synchronize()
    assert made.read_figures(sums) == made.read_figures(made.epoch_figures())
    made.model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=made.config.precision == "bf16"):
        given = made.preprocessing.normalize(images.taken(torch.arange(len(images), device="cuda")))
        output = made.evaluated.eval()(given)
    scores = output if isinstance(output, torch.Tensor) else output.logits
    wrong = (scores.argmax(1).cpu() != torch.from_numpy(data.test.targets)).double().mean().item()
    assert answers.error() == pytest.approx(wrong, abs=0.11)  # one of ten may be so near that another kernel turns it


def test_results_are_read_when_they_are_there(data):
    seen = []
    for wait in (lambda: None, torch.cuda.synchronize):
        made = trainer(settings(), data)
        images, seen_now = resident(data.train, made.preprocessing, "cuda"), []
        while not made.finished:
            made.advance()
            wait()
            sums, answers = made.epoch_figures(), made.evaluate(images)
            wait()
            seen_now.append((made.read_figures(sums), answers.error(), answers.loss.item(), made.state()["model"]))
        seen.append(seen_now)
    for one, other in zip(*seen, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4)
        assert one[1:3] == pytest.approx(other[1:3], rel=1e-4)
        assert_same(one[3], other[3], rtol=1e-3, atol=1e-4)


def test_runs_that_share_the_device_are_the_same_as_alone(data):
    configs = [settings(seed=seed) for seed in range(3)]
    alone = [run(trainer(config, data)) for config in configs]
    together = [trainer(config, data) for config in configs]
    while not all(made.finished for made in together):
        for made in together:
            if not made.finished:
                made.advance(2)
    for made, wanted in zip(together, alone, strict=True):
        assert_same(weights(made), wanted, rtol=1e-3, atol=1e-4)


def test_goes_on_after_a_stop(data):
    config = settings(ema=0.9)
    wanted, first, second = run(trainer(config, data)), trainer(config, data), trainer(config, data)
    first.advance()
    second.advance()  # a graph that is there is not used for another state
    second.advance()
    second.restore(first.state())
    assert_same(run(second), wanted, rtol=1e-3, atol=1e-4)
