"""One class of tests that every system beside the plain Attention Branch Network passes, at its smallest size."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import attention_branch as ab


@dataclass(frozen=True)
class System:
    """A network by name: what builds it, the side of its images, and what it cannot do, with the reason."""

    name: str
    side: int = 64
    branch: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, int] | None = None
    learns: bool = True
    """Whether it is trained by gradients."""
    not_exported: str | None = None
    """Why its graph is not captured here."""

    def build(self) -> Any:
        """Return a network of three classes, or of the system's heads."""
        size: dict[str, Any] = {"heads": self.heads} if self.heads else {"num_classes": 3}
        create = ab.create_model if self.branch else ab.create_backbone
        return create(self.name, **size, **self.options)


SYSTEMS = {
    "vgg16_cam": System("vgg16_cam"),
    "seresnet": System("seresnet18"),
    "attention": System(
        "attention56_cifar", side=32, options={"width": 0.25}, not_exported="exported with a branch on top, below"
    ),
    "attention_abn": System("attention56_cifar", side=32, branch=True, options={"width": 0.25}),
    "seresnet_sum_log": System("seresnet18", branch=True, options={"map_form": "sum-log", "branch": "lite"}),
    "moon": System("moon:resnet20", side=32, heads={"glasses": 2, "smiling": 1}),
    "facetracer": System("facetracer", heads={"glasses": 2, "smiling": 1}, learns=False),
    "interpretable": System("interpretable:resnet14", side=32, options={"filter_weight": 10.0}),
    "interpretable_released": System("interpretable:resnet14", side=32, options={"variant": "released"}),
    "panda": System(
        "panda", heads={"glasses": 2, "smiling": 1}, learns=False,
        options={"part": 32, "channels": 8, "hidden": 8, "whole": "resnet14", "whole_options": {"stem_stride": 2}},
    ),
    "panda, localiser": System(
        "panda", heads={"glasses": 2, "smiling": 1}, learns=False,
        options={"parts": "localiser", "part": 32, "channels": 8, "whole": "resnet14", "lnet": "resnet14"},
        not_exported="its parts are exported above, its localiser below",
    ),
    "lnets-anet": System("lnets-anet", heads={"glasses": 2, "smiling": 1}, learns=False),
}  # fmt: skip


def answers(output):
    """Return a network's scores as one tensor (N, sum of K)."""
    scores = getattr(output, "logits", output)
    return torch.cat(list(scores.values()), dim=1) if isinstance(scores, dict) else scores


@pytest.fixture(scope="class", params=SYSTEMS)
def case(request):
    """A system, its network with settled batch statistics in eval mode, and images for it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    system = SYSTEMS[request.param]
    model = system.build().train()
    images = torch.randn(2, 3, system.side, system.side)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # running statistics become those of the one batch
    with torch.no_grad():
        model(images)
    return system, model.eval(), images


class TestSystem:
    def test_answers_with_a_score_a_class(self, case):
        system, model, images = case
        with torch.no_grad():
            scores = answers(model(images))
        assert scores.shape == (2, sum(system.heads.values()) if system.heads else 3)
        assert scores.isfinite().all()

    def test_an_answer_does_not_depend_on_the_batch(self, case):
        _, model, images = case
        with torch.no_grad():
            assert torch.allclose(answers(model(images[:1])), answers(model(images))[:1], rtol=1e-4, atol=1e-4)

    def test_every_weight_learns(self, case):
        system, model, images = case
        if not system.learns:
            assert not any(parameter.requires_grad for parameter in model.parameters())
            return
        model.train()
        output = model(images)
        loss = answers(output).square().sum()
        if isinstance(output, ab.ABNOutput):
            loss = loss + answers(output.attention_logits).square().sum()
        loss.backward()
        still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        model.zero_grad(set_to_none=True)
        model.eval()
        assert still == []

    def test_saved_and_loaded_it_answers_bit_for_bit(self, case, tmp_path):
        _, model, images = case
        model.save_pretrained(tmp_path / "saved")
        loaded = ab.load_model(tmp_path / "saved")
        with torch.no_grad():
            assert torch.equal(answers(model(images)), answers(loaded(images)))

    def test_exported_it_answers_the_same(self, case):
        system, model, images = case
        if system.not_exported:
            pytest.skip(system.not_exported)
        with torch.no_grad():
            exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
            shipped = exported.module()
            for pictures in (images, torch.cat([images, images[:1]])):
                assert torch.allclose(answers(shipped(pictures)), answers(model(pictures)), rtol=1e-4, atol=1e-4)

    def test_refuses_what_is_no_batch_of_pictures(self, case):
        _, model, images = case
        for wrong in (images[:, :1], images[0], images[..., None]):
            with pytest.raises(ab.UserError, match="shape"):
                model(wrong)
