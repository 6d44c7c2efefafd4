"""Saving a network and loading it again: safetensors + config.json, never a pickle."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from huggingface_hub import ModelHubMixin
from safetensors import SafetensorError
from torch import nn

from attention_branch.errors import UserError
from attention_branch.files import atomic_folder, sha256, write_json
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.models.tensor_files import save_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1


@dataclass
class ModelConfig:
    """All that is needed to build a network again, beside its weights."""

    name: str
    """Backbone: a timm name or one of the 32-pixel families."""
    num_classes: int | None = None
    """Number of classes of a single task."""
    heads: dict[str, int] | None = None
    """Number of classes by head, for several tasks; 1 means one sigmoid logit."""
    mechanism: str | None = None
    """'residual', 'product', 'none'; None for a plain backbone."""
    branch: str | None = None
    """'paper' or 'lite'; None for a plain backbone."""
    map_kernel: int = 3
    """Kernel of the convolution that makes the map."""
    map_form: str = "sigmoid"
    """'sigmoid', or 'sum-log': the map is the sum over classes of log(1 + A), without a bound."""
    map_control: str = "own"
    """'own'; 'constant' or 'shuffled' for a network built as a control."""
    perception: str = "separate"
    """With several heads, 'separate' runs the perception branch once a head, 'shared' once for all."""
    image_size: tuple[int, int] | None = None
    """Image size the backbone was built for, where it was chosen."""
    fixed_size: tuple[int, int] | None = None
    """The only image size the backbone takes, if there is just one."""
    smallest_side: int = 1
    """Fewest pixels a side at which the map still has 2x2 positions."""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the backbone."""
    class_names: list[str] | dict[str, list[str]] | None = None
    """Names of the classes, by head if there are several."""
    preprocessing: Preprocessing | None = None
    """How a picture becomes the network's input; the backbone's own unless set."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Rebuild from config.json's values; keys of other software versions are refused by name."""
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"config.json holds '{unknown[0]}', which this version does not know; update the package.")
        values = dict(values)
        for key in ("image_size", "fixed_size"):
            values[key] = tuple(values[key]) if values.get(key) else None
        if values.get("preprocessing"):
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        return cls(**values)


class SavedModel(nn.Module, ModelHubMixin):
    """What every network of this package can do besides answering: save, load, push to the hub, name its classes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.loaded_from: Path | None = None

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.config.name

    @property
    def num_classes(self) -> int | None:
        """Number of classes of a single task, None with several heads."""
        return self.config.num_classes

    @property
    def heads(self) -> dict[str, int] | None:
        """Number of classes by head, None for a single task."""
        return self.config.heads

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the network's input; saved with the weights."""
        assert self.config.preprocessing is not None
        return self.config.preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self.config.preprocessing = value

    @property
    def class_names(self) -> list[str] | dict[str, list[str]] | None:
        """Names of the classes (by head with several); saved with the weights."""
        return self.config.class_names

    @class_names.setter
    def class_names(self, value: Any) -> None:
        self.config.class_names = check_class_names(value, self.config)

    def save_pretrained(self, save_directory: str | Path, *, push_to_hub: bool = False, **hub: Any) -> None:
        """Write model.safetensors and config.json into a folder, whole or not at all.

        With `push_to_hub=True` the folder goes to the Hugging Face hub too (`repo_id=`, `token=`, ... as there).
        """
        folder = Path(save_directory)
        # Networks may share tensors between modules; clones make every name stand for itself.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()}
        existing = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if existing <= {WEIGHTS, CONFIG}:
            with atomic_folder(folder) as temporary:
                self._write(tensors, temporary)
        else:
            # Somebody's folder: leave what else is in it.
            with atomic_folder(folder / ".saving") as temporary:
                self._write(tensors, temporary)
            for name in (WEIGHTS, CONFIG):
                (folder / ".saving" / name).replace(folder / name)
            shutil.rmtree(folder / ".saving")
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        run: str | Path | None = None,
        picture: str | Path | Sequence[str | Path] | None = None,
        license: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a network of attention-branch",
        **upload: Any,
    ) -> str:
        """Upload weights, config and a model card to the Hugging Face hub (user/name); returns the commit's address.

        The card says what the network is, how to load it, its classes and limits, and the figures that `abn evaluate`
        wrote into `run` with these weights (None: the run that the network was loaded from); without any it says so.
        `picture` is image files to explain on the card, or "strip" for the run's last strip of maps, which shows images
        of its data; none by itself, because images may be private. `license` is a name such as "apache-2.0". Further
        options (`create_pr`, ...) go to `HfApi.upload_folder`. Raises `UserError` where the hub refuses.
        """
        from attention_branch.export.hub import push

        return push(
            self,  # type: ignore[arg-type]
            repo_id,
            run=run,
            picture=picture,
            license=license,
            private=private,
            token=token,
            commit_message=commit_message,
            **upload,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_pretrained(save_directory)

    def _write(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
        values = {"format": FORMAT, "library": "attention-branch", **self.config.to_dict()}
        values["weights_sha256"] = sha256(folder / WEIGHTS)
        write_json(folder / CONFIG, values)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> "SavedModel":
        return load_model(model_id)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **_: Any) -> "SavedModel":
        """Load from a folder or the hub; the same as `load_model`."""
        return load_model(pretrained_model_name_or_path)


def check_class_names(value: Any, config: ModelConfig) -> list[str] | dict[str, list[str]] | None:
    """Return class names as plain lists; raise `UserError` if their number is not the number of classes."""
    if value is None:
        return None
    if config.heads is None:
        names = [str(item) for item in value]
        if len(names) != config.num_classes:
            raise UserError(f"{len(names)} class names for {config.num_classes} classes; give one name a class.")
        return names
    if not isinstance(value, dict) or set(value) != set(config.heads):
        raise UserError(f"Class names must be given for exactly these heads: {', '.join(config.heads)}.")
    for head, size in config.heads.items():
        if len(value[head]) != max(2, size):
            raise UserError(f"Head '{head}' has {max(2, size)} classes, but {len(value[head])} class names.")
    return {head: [str(item) for item in value[head]] for head in config.heads}


def model_folder(source: str | Path) -> Path:
    """Return the local folder that holds a saved network: a saved one, a run's `model` folder, or a hub download."""
    folder = Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    if folder.is_file():
        raise UserError(
            f"'{source}' is a file; give the folder with {WEIGHTS} and {CONFIG}. Pickled checkpoints (.pt, .pth, "
            ".ckpt) are not loaded, since they can run a stranger's code (load_official reads the ABN authors')."
        )
    if folder.is_dir():
        raise UserError(f"'{source}' holds no saved network ({WEIGHTS} and {CONFIG}, or a run's model folder).")
    name = str(source)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        try:
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG]))
        except Exception as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise UserError(f"'{name}' is no folder here and the hub gave no network: {reason}") from problem
    raise UserError(f"There is no folder '{source}'; give a run, a saved network or a hub name (user/name).")


def load_model(source: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """Load a network saved by `save_pretrained` in eval mode, from a folder, a run's folder or the hub (user/name).

    Raises `UserError` for a damaged file, weights of another shape, or anything that is not safetensors.
    """
    from attention_branch.models.registry import build

    folder = model_folder(source)
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError(f"'{folder / CONFIG}' is damaged ({problem}); save the network again.") from problem
    if values.pop("library", None) != "attention-branch":
        raise UserError(f"'{folder}' was not saved by this package; build a network with create_model instead.")
    if values.pop("format", None) != FORMAT:
        raise UserError(f"'{folder}' was saved by a newer version of this package; update it.")
    digest = values.pop("weights_sha256", None)
    try:
        if sha256(folder / WEIGHTS) != digest:
            raise UserError(f"'{folder / WEIGHTS}' does not belong to its {CONFIG} or is damaged; save it again.")
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except SafetensorError as problem:
        raise UserError(f"'{folder / WEIGHTS}' is damaged ({problem}); save the network again.") from problem
    model = build(ModelConfig.from_dict(values), weights_follow=True)
    load_weights(model, tensors, folder / WEIGHTS)
    # The run above a network's own folder: there lies what was measured.
    model.loaded_from = Path(source) if Path(source).is_dir() else None
    return model.to(device).eval()


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], source: str | Path) -> None:
    """Copy tensors into a model; raise `UserError` that names the first one that does not fit."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise UserError(f"'{source}' lacks '{name}'; it belongs to another network.")
        if tensors[name].shape != value.shape:
            raise UserError(
                f"'{source}' does not fit: '{name}' is {tuple(tensors[name].shape)} there and {tuple(value.shape)} "
                "here."
            )
    extra = sorted(set(tensors) - set(own))
    if extra:
        raise UserError(f"'{source}' holds '{extra[0]}', which this network does not have.")
    model.load_state_dict(tensors)
