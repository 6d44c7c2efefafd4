"""A network that was exported to ONNX, answering with onnxruntime: no torch, and threads may share it."""

import copy
import json
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from attention_branch.errors import UserError
from attention_branch.explanations.resizing import resized
from attention_branch.files import sha256
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.onnx_cut import IMAGES, Cut, gated_part

FORMAT = 1
_NUMBERS = {1: np.float32, 10: np.float16, 11: np.float64}


class OnnxModel:
    """An ONNX file of `abn export`: it prepares pictures, answers, and answers again for a given map.

    `outputs` are the names of what `run` returns; `details` is all that the file says of itself.
    """

    def __init__(self, model: Any, details: dict[str, Any], digest: str, threads: int | None = None) -> None:
        """Take an ONNX model in memory with its details; see `load`."""
        self.details, self.sha256 = details, digest
        self.name: str = details["backbone"]
        self.is_abn: bool = details["is_abn"]
        self.mechanism: str | None = details["mechanism"]
        self.heads: dict[str, int] | None = details["heads"]
        self.num_classes: int | None = details["num_classes"]
        self.class_names: list[str] | dict[str, list[str]] | None = details["class_names"]
        self.preprocessing = Preprocessing.from_dict(details["preprocessing"])
        bounds = details["map_range"]
        self.map_range: tuple[float, float] | None = (bounds[0], bounds[1]) if bounds else None
        self.outputs: list[str] = [item["name"] for item in details["outputs"]]
        self.cut = Cut(**details["cut"]) if details["cut"] else None
        self._logits = self.named("logits")
        self._threads = threads
        self._lock = threading.Lock()
        self._gated: Any = None
        self._model = model
        if self.cut is not None and not self.cut.whole:
            # An output more, and only for those who ask: its nodes run anyway.
            import onnx

            model.graph.output.append(
                onnx.helper.make_tensor_value_info(self.cut.features, self.cut.features_type, None)
            )
        self._session = _session(model, threads)

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None) -> Self:
        """Open a file; `threads` processors answer a call (None: all).

        Raises `UserError` for a file that is missing, no ONNX, damaged, or not written by `abn export`, and where onnx
        or onnxruntime is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with `abn export RUN`.")
        try:
            import onnx
            import onnxruntime  # noqa: F401
        except ImportError as problem:
            raise UserError(f"Reading '{path}' needs {problem.name}; pip install onnx onnxruntime.") from problem
        try:
            model = onnx.load_model(path, load_external_data=False)
            onnx.checker.check_model(model)
        except Exception as problem:  # protobuf and onnx raise kinds of their own for hostile bytes.
            raise UserError(f"'{path}' is no ONNX file, or it is damaged; export the network again.") from problem
        details = read_details({item.key: item.value for item in model.metadata_props}, path)
        names = [item.name for item in model.graph.output]
        if any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer):
            raise UserError(f"'{path}' keeps weights in another file, which `abn export` never does; export it again.")
        try:
            said = [item["name"] for item in details["outputs"]]
            (given,) = model.graph.input
            shape = [3, *Preprocessing.from_dict(details["preprocessing"]).size]
            taken = [dimension.dim_value for dimension in given.type.tensor_type.shape.dim[1:]]
            if given.name != IMAGES or taken != shape or names != said:
                raise UserError(f"'{path}' has other inputs or outputs than it says; export the network again.")
            return cls(model, details, sha256(path), threads)
        except UserError:
            raise
        except Exception as problem:  # onnxruntime's own exceptions share no base class.
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise UserError(f"onnxruntime cannot run '{path}' ({reason[:200]}); export the network again.") from problem

    def with_threads(self, threads: int) -> Self:
        """Return the same network with a session of its own that answers on so many processors."""
        twin = copy.copy(self)
        twin._threads, twin._lock, twin._gated = threads, threading.Lock(), None
        twin._session = _session(self._model, threads)
        return twin

    def named(self, kind: str) -> dict[str | None, str]:
        """Return the names of the outputs of a kind ("logits", "cam", ...), by head (None for a single task)."""
        return {item["head"]: item["name"] for item in self.details["outputs"] if item["kind"] == kind}

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output by name for normalised images (N, 3, H, W) float32."""
        return dict(zip(self.outputs, self._call(self.outputs, images), strict=True))

    def run_with_features(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return every output and the features g(x) of one pass, for `answer` to begin from."""
        cut = self._needed_cut()
        if cut.whole:
            return self.run(images), images
        *found, features = self._call([*self.outputs, cut.features], images)
        return dict(zip(self.outputs, found, strict=True)), features

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features g(x) of normalised images.

        Where the gated part needs more than g(x) they are the images themselves, and `answer` runs the whole graph.
        """
        cut = self._needed_cut()
        return images if cut.whole else self._call([cut.features], images)[0]

    @property
    def answers_given_maps(self) -> bool:
        """Whether the answer depends on the map, so that one can be given in the place of the network's own."""
        return self.cut is not None

    def answer(self, features: np.ndarray, attention: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
        """Return the logits (N, K), or by head, of features for a given map; only the part behind the gate runs.

        `attention` is (N, h, w), (N, 1, h, w) or (N, T, h, w) in [0, 1], of any size: it is resized to the features'
        grid as the network does. N may be 1 for all images. Raises `UserError` where the network has no such answer.
        """
        cut = self._needed_cut()
        maps = np.asarray(attention)
        maps = maps[:, None] if maps.ndim == 3 else maps
        count, heads = len(features), len(self.heads or [None])
        if maps.ndim != 4 or maps.shape[0] not in (1, count) or maps.shape[1] not in (1, heads) or 0 in maps.shape:
            raise UserError(
                f"A given map must have the shape (N, h, w), (N, 1, h, w) or (N, {heads}, h, w) with N = {count} or 1; "
                f"this one has {np.asarray(attention).shape}."
            )
        maps = np.broadcast_to(resized(maps.astype(np.float32), *self.map_size), (count, heads, *self.map_size))
        with self._lock:
            if self._gated is None:
                self._gated = _session(gated_part(self._model, cut, list(self._logits.values())), self._threads)
        given = {
            cut.features: features.astype(_NUMBERS[cut.features_type], copy=False),
            cut.attention: np.ascontiguousarray(maps, dtype=_NUMBERS[cut.attention_type]),
        }
        found = self._gated.run(list(self._logits.values()), given)
        return found[0] if self.heads is None else dict(zip(self.heads, found, strict=True))

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map; (0, 0) without one."""
        return tuple(self.details["map_size"] or (0, 0))

    def _needed_cut(self) -> Cut:
        if self.cut is None:
            why = f"its map is not applied (mechanism '{self.mechanism}')" if self.is_abn else "it has none of its own"
            raise UserError(f"{self.name} does not answer with a given map: {why}.")
        return self.cut

    def _call(self, names: list[str], images: np.ndarray) -> list[np.ndarray]:
        height, width = self.preprocessing.size
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise UserError(f"Images must have the shape (N, 3, {height}, {width}); these have {images.shape}.")
        return self._session.run(names, {IMAGES: np.ascontiguousarray(images, dtype=np.float32)})


def read_details(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    """Return what `abn export` wrote into a file; `UserError` for a file of another origin or a newer format."""
    try:
        details = json.loads(metadata["attention_branch"])
        library, number = details["library"], details["format"]
    except (KeyError, ValueError, TypeError):
        library, number, details = None, None, {}
    if library != "attention-branch":
        raise UserError(f"'{path}' was not written by `abn export`, so nothing says how to prepare pictures for it.")
    if number != FORMAT:
        raise UserError(f"'{path}' was written by another version of this package (format {number}); export it again.")
    missing = _EXPECTED - details.keys()
    if missing:
        raise UserError(f"'{path}' does not say its {min(missing)}; export the network again.")
    return details


_EXPECTED = {
    "backbone", "is_abn", "mechanism", "heads", "num_classes", "class_names", "preprocessing", "map_range", "outputs",
    "cut", "map_size", "weights_sha256", "versions",
}  # fmt: skip


def _session(model: Any, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait in a loop would take the cores from the other session of the same file, and from other programs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
