"""The fast path against the plain one: the same pictures, the same weights, the same after a stop."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attention_branch as ab
from attention_branch.data import make_loader, open_data
from attention_branch.data.loader import BatchPlan
from attention_branch.data.resident import ResidentImages, resident
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.training import TrainConfig, capture, recipe, streams, train
from attention_branch.training.building import make_model
from attention_branch.training.fast import FastTrainer

DATA = "digits:train=44,validation=12,test=10"
SIZE = Preprocessing(size=(32, 32), resize="squash")


def settings(**changes) -> TrainConfig:
    small = {"data": DATA, "model": "resnet14", "image_size": 32, "batch_size": 10, "epochs": 2, "maps": 0}
    return recipe("default", **small | {"accelerator": "cpu", "warmup_epochs": 0.5} | changes)


@pytest.fixture(scope="module")
def data():
    return open_data(DATA)


def trainer(config, data, **options):
    torch.manual_seed(config.seed)
    model = make_model(config, data)
    return FastTrainer(config, model, resident(data.train, model.preprocessing), **options)


def run(config, data, **options):
    made = trainer(config, data, **options)
    while not made.finished:
        made.advance()
    return made


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("augment", ["none", "flip", "pad-crop", "pad-crop-flip"])
def test_batches_are_the_plain_loaders(data, augment, on_device):
    loader = make_loader(data.train, SIZE, 10, train=True, augment=augment, seed=3, normalized=False)
    images = resident(data.train, SIZE)
    if on_device:  # what a GPU does, done by the CPU
        images.on_device = torch.from_numpy(images.pixels)
    plan = BatchPlan(len(data.train), 10, train=True, seed=3)
    for epoch in (0, 5):
        loader.set_epoch(epoch)
        plan.set_epoch(epoch)
        images.begin_epoch(plan, augment)
        wanted = list(loader)
        assert len(wanted) == len(plan) == 4
        for number, batch in enumerate(wanted):
            pictures, targets = images.batch(number)
            assert torch.equal(pictures, batch["images"])
            assert torch.equal(targets, batch["targets"])
            assert pictures.is_contiguous(memory_format=torch.channels_last)


CHANGES = [
    {},
    {"optimizer": "sgd", "lr": 0.05, "augment": "pad-crop-flip", "mechanism": "product", "decay_all": True},
    {"ema": 0.9, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "gradient_clip": 1.0},
    {"guided": "crop", "guided_by": "random", "guided_share": 0.5, "cutmix": 1.0},
    {"guided": "cutmix", "guided_by": "ema", "ema": 0.9, "guided_share": 0.5},
    {"baseline": True, "augment": "trivial-augment", "model_options": ("drop_rate=0.3",)},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_ends_with_the_weights_of_the_plain_path(tmp_path, data, changes):
    config = settings(out=str(tmp_path / "plain"), **changes)
    wanted = ab.load_model(train(config) / "last").state_dict()
    source = data.train if config.augment == "trivial-augment" else None
    torch.manual_seed(config.seed)
    model = make_model(config, data)
    made = FastTrainer(config, model, source or resident(data.train, model.preprocessing))
    while not made.finished:
        made.advance(3)
    found = made.evaluated.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("changes", [{}, {"guided": "drop", "guided_by": "ema", "guided_share": 0.5}])
def test_goes_on_after_a_stop_as_if_there_was_none(data, changes):
    config = settings(epochs=3, ema=0.9, label_smoothing=0.1, **changes)
    whole = run(config, data)
    first = trainer(config, data)
    first.advance()
    state = first.state()
    first.advance()  # a state is a copy, which the steps after it do not change
    second = trainer(config, data)
    second.restore(state)
    while not second.finished:
        second.advance(1)
    for name, value in second.evaluated.state_dict().items():
        assert torch.equal(value, whole.evaluated.state_dict()[name]), name


def test_figures_are_those_of_the_answers(data):
    """An epoch's sums and an evaluation against the answers taken by hand, one image at a time."""
    made = trainer(settings(lr=1e-12, warmup_epochs=0.0, batch_size=44, augment="none"), data)
    with torch.no_grad():
        given = made.model.preprocessing.normalize(torch.from_numpy(made.train_images.pixels).permute(0, 3, 1, 2))
        output = made.model(given[torch.from_numpy(made.plan.order())])
    labels = torch.from_numpy(data.train.targets)[torch.from_numpy(made.plan.order())]
    made.advance()
    figures = made.read_figures(made.epoch_figures())
    assert figures["train_error"] == pytest.approx((output.logits.argmax(1) != labels).double().mean().item())
    wanted = torch.nn.functional.cross_entropy(output.logits, labels)
    wanted = wanted + torch.nn.functional.cross_entropy(output.attention_logits, labels)
    assert figures["train_loss"] == pytest.approx(wanted.item(), rel=1e-4)

    test = resident(data.test, made.preprocessing)
    for order in (None, torch.arange(9, -1, -1)):
        found = made.evaluate(test, order)
        assert made.model.training  # as it was before
        made.model.eval()
        for number, sample in enumerate(data.test):
            with torch.no_grad():
                answer = made.model(made.preprocessing.tensor(sample.image)[None])
            assert bool(found.perception[number]) == (answer.logits.argmax().item() == sample.target)
            assert bool(found.attention[number]) == (answer.attention_logits.argmax().item() == sample.target)
        made.model.train()
    assert found.error() == pytest.approx(1 - found.perception.double().mean().item())


def test_several_heads():
    random = np.random.default_rng(0)
    pixels, targets = random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), random.integers(0, 2, (20, 3))
    model = ab.create_model("resnet14", heads={"a": 2, "b": 1, "c": 2})
    images = ResidentImages(pixels, targets)
    still = {"batch_size": 20, "lr": 1e-12, "warmup_epochs": 0.0, "augment": "none"}
    made = FastTrainer(settings(**still), model, images)
    with torch.no_grad():  # all pictures are one batch, so that their order changes nothing
        answer = model.train()(made.preprocessing.normalize(images.taken(torch.arange(20))))
    wrong = [answer.logits[head].argmax(1) != images.targets[:, column] for head, column in (("a", 0), ("c", 2))]
    wrong.append((answer.logits["b"][:, 0] > 0) != images.targets[:, 1].bool())
    made.advance()
    figures = made.read_figures(made.epoch_figures())
    assert figures["train_error"] == pytest.approx(torch.stack(wrong).double().mean().item())
    found = made.evaluate(images)
    assert found.perception.shape == found.attention.shape == (20, 3)
    model.eval()
    with torch.no_grad():
        answer = model(made.preprocessing.normalize(images.taken(torch.arange(20))))
    assert torch.equal(found.perception[:, 1], (answer.logits["b"][:, 0] > 0) == images.targets[:, 1].bool())


def test_a_loss_that_is_not_finite_is_said(data):
    made = trainer(settings(lr=1e30, optimizer="sgd", warmup_epochs=0.0), data)
    made.advance()
    made.advance()
    with pytest.raises(UserError, match="not finite in epoch 2"):
        made.read_figures(made.epoch_figures())


def test_what_it_does_not_do_is_said(data):
    with pytest.raises(UserError, match="leave accumulate out"):
        trainer(settings(accumulate=2), data)
    with pytest.raises(UserError, match="works on single pictures"):
        trainer(settings(augment="trivial-augment"), data).advance()
    images = ResidentImages(np.zeros((4, 32, 32, 3), dtype=np.uint8), np.array([0, 1, -1, 1]))
    with pytest.raises(UserError, match="needs every label"):
        FastTrainer(settings(), ab.create_backbone("resnet14", num_classes=2), images)
    with pytest.raises(UserError, match="runs on cpu, so that its steps cannot be a CUDA graph"):
        trainer(settings(), data, graph=True)
    with pytest.raises(UserError, match="mixes batches, so that its steps cannot be a CUDA graph"):
        trainer(settings(mixup=0.2), data, graph=True)
    with pytest.raises(UserError, match="maps that another pass makes, so that its steps cannot be a CUDA graph"):
        trainer(settings(guided="crop"), data, graph=True)
    with pytest.raises(UserError, match="The run is on meta and its pictures on cpu"):
        trainer(settings(), data, device="meta")


class Waiting(TorchDispatchMode):
    """Counts the operations for which a GPU's host waits: values read, and tensors made from numbers of the host."""

    NAMES = ("aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.is_nonzero", "aten.item")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(self.NAMES):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


WAITING = [
    {"optimizer": "sgd"},
    {"optimizer": "adamw"},
    {"guided": "crop", "guided_by": "random"},
    {"guided": "drop"},
    {"guided": "cutmix", "guided_by": "ema"},
]


@pytest.mark.parametrize("changes", WAITING)
def test_no_step_waits_for_the_device(data, changes):
    made = trainer(settings(augment="pad-crop-flip", ema=0.9, label_smoothing=0.1, **changes), data)
    made.train_images.on_device = torch.from_numpy(made.train_images.pixels)  # what a GPU does, done by the CPU
    made.advance(1)
    with Waiting() as waiting:
        made.advance(2)
    assert waiting.found == []
    for call in (lambda: made.epoch_figures().sum().item(), lambda: torch.zeros(3).new_tensor([1.0, 2.0])):
        with Waiting() as waiting:  # two that do wait are counted
            call()
        assert waiting.found
    SIZE.normalize(torch.zeros(1, 3, 4, 4))
    with Waiting() as waiting:  # mean and deviation are there since the first batch
        SIZE.normalize(torch.zeros(1, 3, 4, 4))
    assert waiting.found == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_capture_leaves_everything_as_it_was(data, optimizer, monkeypatch):
    """The graph's part is played by the step itself: not run while it is recorded, run when it is replayed."""
    config = settings(optimizer=optimizer, lr=0.01, epochs=2)
    wanted, made = run(config, data), trainer(config, data)
    real, still, recording = made._learn, [], []

    class Recording:
        def __init__(self, graph, **options):
            self.graph = graph

        def __enter__(self):
            recording.append(True)

        def __exit__(self, *raised):
            recording.clear()

    class Graph:
        def replay(self):
            real(still[0])

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    runs = []

    def learn(mixed):
        if recording:
            still.append(mixed)
        else:
            runs.append(mixed)
            real(mixed)

    made._learn = learn
    step = None

    def first_or_replayed(mixed):
        nonlocal step
        step = step or capture.captured_step(learn, mixed, made.model, made.optimizer, made._sums, None)
        step(mixed)

    made._captured, made.graph = first_or_replayed, True
    while not made.finished:
        made.advance(3)
    assert (len(runs), len(still)) == (capture.WARM_UP_STEPS, 1)
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, wanted.model.state_dict()[name]), name
    assert torch.equal(made.epoch_figures(), wanted.epoch_figures())


def test_the_host_runs_ahead_of_the_device_by_a_few_steps_only(monkeypatch):
    done = []

    class Event:
        def __init__(self, blocking):
            self.step = None

        def record(self, stream):
            self.step = stream.queued

        def synchronize(self):
            done.append(self.step)

    class Stream:
        def __init__(self, device):
            self.queued = 0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    lane = streams.RunStream(torch.device("cuda"))
    for step in range(40):
        lane.stream.queued = step
        lane.pace()
        assert done == list(range(step + 1 - streams.STEPS_AHEAD))
