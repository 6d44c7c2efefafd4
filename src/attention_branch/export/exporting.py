"""`abn export`: write the file, compare it with the network, and only then put it in its place."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attention_branch.errors import UserError
from attention_branch.explanations.outputs import eager, evaluating
from attention_branch.export.agreement import Answers, drift, in_batches, parity
from attention_branch.export.named_outputs import NamedOutputs, named_outputs
from attention_branch.export.pictures import Pictures, open_pictures, random_images
from attention_branch.export.precision import PRECISIONS, to_fp16, to_int8
from attention_branch.export.record import details_of, plain_text
from attention_branch.export.source import open_source, weights_sha256
from attention_branch.files import atomic_path, require_folder, write_json
from attention_branch.onnx_cut import ATTENTION, find_cut

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
_BATCHES = (1, 3)
"""Batch sizes of the check: neither is the example's, 2."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: where, how large, how long it took, the details in the file, and what is to be said."""

    path: Path
    bytes: int
    seconds: float
    details: dict[str, Any]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what a command line says of it."""
        checked = self.details["parity"]
        said = ", ".join(f"{kind} {value:.1e}" for kind, value in checked["largest_difference"].items())
        lines = [f"Same answers as the network on {checked['images']}: largest differences: {said}."]
        if "drift" in self.details:
            lines.append(_drift_line(self.details["drift"], self.details["precision"]))
        names = ", ".join(item["name"] for item in self.details["outputs"])
        return [
            *lines,
            *self.notes,
            f"{self.path}: {self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s; outputs {names}.",
        ]


def export(
    model: nn.Module | str | Path,
    path: str | Path | None = None,
    *,
    format: str = "onnx",
    precision: str = "32",
    attention_logits: bool = False,
    class_evidence: bool = False,
    data: str | None = None,
    images: int = 128,
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Write a network as one file with its answers, its map, its preprocessing and its class names.

    `model` is a run, a saved network, a hub name, "timm:NAME", or a module: one of ours, or a classifier of timm. The
    file takes `images` (N, 3, H, W), normalised float32, N of any size, and gives `logits` (N, K) and `attention`
    (N, T, h, w); on request the branch's own scores (`attention_logits`) and its scores per position
    (`class_evidence`, (N, K, h, w)). With several heads these are named `logits.HEAD`. A plain network whose scores are
    linear in the mean of its last features gives `cam` (N, K, h, w) in the map's place.
    `format` is "onnx" or "torch-export" (.pt2). `precision` is "32", and for ONNX "fp16" or "int8", whose distance from
    the network is measured on `images` images of `data` (by itself the run's own). The file must answer as the network
    does in float32, to 1e-4, or nothing is written (`UserError`); `data="random"` checks on noise.
    """
    began, tell = time.perf_counter(), say or (lambda _: None)
    _check(format, precision, images)
    _need_onnx(format)
    source = open_source(model)
    network = source.network
    target = _target(path, source.name, format)
    with torch.inference_mode(False), eager(), evaluating(network):
        example = torch.from_numpy(random_images(network.preprocessing, 2).compare).to(network.device)
        named = named_outputs(network, example, attention_logits=attention_logits, class_evidence=class_evidence)
        pictures, note = _pictures(source.run, data, network.preprocessing, precision, images, tell)
        details = details_of(network, named.outputs, weights_sha256(network), source.name)
        details["precision"] = precision
        tell(f"exporting {network.name} ...")
        with atomic_path(target) as temporary:
            writer = _write_onnx if format == "onnx" else _write_torch
            writer(named, example, pictures, details, precision, temporary, tell)
    size = target.stat().st_size
    notes = [said for said in (named.note, note) if said]
    if precision != "32":
        write_json(target.with_suffix(".json"), details)
        notes.append(f"The same figures are in {target.with_suffix('.json')}.")
    return Exported(target, size, time.perf_counter() - began, details, tuple(notes))


def _write_onnx(
    named: NamedOutputs,
    example: torch.Tensor,
    pictures: Pictures,
    details: dict[str, Any],
    precision: str,
    path: Path,
    tell: Callable[[str], None],
) -> None:
    import onnx

    from attention_branch.export.onnx_writing import describe, to_onnx

    model = to_onnx(named, example)
    tell("comparing with the network ...")
    details["parity"] = _parity(named, _session(model), pictures)
    details["map_size"] = _map_size(model)
    if precision != "32":
        tell(f"converting to {precision} ...")
        model = to_fp16(model) if precision == "fp16" else to_int8(model, _calibration(pictures))
        details["drift"] = _drift(named, _session(model), pictures)
        if precision == "int8":
            details["calibrated_on"] = pictures.calibrated_on
    logits = [output.name for output in named.outputs if output.kind == "logits"]
    cut = find_cut(model, logits) if details["is_abn"] else None
    details["cut"] = None if cut is None else vars(cut)
    if details["is_abn"] and cut is not None and cut.whole:
        named.note = (
            "The part behind the gate needs more than features and map, so for a given map the whole graph runs."
        )
    details["opset"] = model.opset_import[0].version
    describe(model, details, plain_text(details, _checked(details)))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _write_torch(
    named: NamedOutputs,
    example: torch.Tensor,
    pictures: Pictures,
    details: dict[str, Any],
    precision: str,
    path: Path,
    tell: Callable[[str], None],
) -> None:
    from attention_branch.export.torch_writing import FILE, opened, save, to_program

    program = to_program(named, example)
    tell("comparing with the network ...")
    details["parity"] = _parity(named, opened(program, named.outputs), pictures)
    save(program, path, {FILE: json.dumps(details, ensure_ascii=False, allow_nan=False)})


def _map_size(model: Any) -> list[int] | None:
    """Return the map's height and width, where there is one."""
    for output in model.graph.output:
        if output.name == ATTENTION:
            return [dimension.dim_value for dimension in output.type.tensor_type.shape.dim[2:]]
    return None


def _session(model: Any) -> Callable[[np.ndarray], Answers]:
    """Return what a model in memory answers with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def _network_answers(named: NamedOutputs) -> Callable[[np.ndarray], Answers]:
    device = named.network.device
    names = [output.name for output in named.outputs]

    def answer(images: np.ndarray) -> Answers:
        with torch.no_grad(), named.listening():
            found = named(torch.from_numpy(images).to(device))
        return {name: value.float().cpu().numpy() for name, value in zip(names, found[: len(names)], strict=True)}

    return answer


def _parity(named: NamedOutputs, theirs: Callable[[np.ndarray], Answers], pictures: Pictures) -> dict[str, Any]:
    answer = _network_answers(named)
    images = pictures.compare
    ends = np.cumsum(_BATCHES)
    batches = [images[np.arange(end - size, end) % len(images)] for size, end in zip(_BATCHES, ends, strict=True)]
    found = parity([answer(batch) for batch in batches], [theirs(batch) for batch in batches], named.outputs)
    what = pictures.what if len(images) == ends[-1] else f"the first {ends[-1]} of {pictures.what}"
    return {"largest_difference": found, "batch_sizes": list(_BATCHES), "images": what, "real": pictures.real}


def _drift(named: NamedOutputs, theirs: Callable[[np.ndarray], Answers], pictures: Pictures) -> dict[str, Any]:
    images = pictures.compare
    found = drift(in_batches(_network_answers(named), images), in_batches(theirs, images), named.outputs)
    return {"n": len(images), "images": pictures.what, **found}


def _calibration(pictures: Pictures) -> np.ndarray:
    if pictures.calibrate is None:
        raise UserError("int8 needs images to calibrate on beside those it is compared on; give more with --data.")
    return pictures.calibrate


def _pictures(
    run: Path | None, data: str | None, preprocessing: Any, precision: str, count: int, tell: Callable[[str], None]
) -> tuple[Pictures, str]:
    """Return the images to compare on, and a sentence where they are not those one would expect."""
    few = sum(_BATCHES)
    if data == "random":
        if precision != "32":
            raise UserError(f"{precision} is compared with the network on real images; name them with --data.")
        return random_images(preprocessing, few), ""
    tell("opening the data ...")
    try:
        return open_pictures(run, data, preprocessing, few if precision == "32" else count), ""
    except (UserError, OSError) as problem:
        if data is not None:
            raise
        if precision != "32":
            raise UserError(
                f"{precision} is compared with the network on real images, and those of the run cannot be opened "
                f"({problem}); name the data with --data."
            ) from problem
        return random_images(preprocessing, few), f"Compared on noise, because no images could be opened: {problem}"


def _check(format: str, precision: str, images: int) -> None:
    if format not in FORMATS:
        raise UserError(f"Unknown format '{format}'; use one of {', '.join(FORMATS)}.")
    if precision not in PRECISIONS:
        raise UserError(f"Unknown precision '{precision}'; use one of {', '.join(PRECISIONS)}.")
    if precision != "32" and format != "onnx":
        raise UserError(f"precision {precision} is for ONNX files; leave it out, or use format 'onnx'.")
    if images < 1:
        raise UserError(f"images is {images}; give a number of images, 1 or more.")


def _need_onnx(format: str) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        if find_spec(name) is None:
            raise UserError(
                f"Writing ONNX files needs {name}, which is not installed; pip install '.[onnx]' in the folder of "
                "attention-branch."
            )


def _target(path: str | Path | None, name: str, format: str) -> Path:
    """Return the file to write; by itself it is named after the run and stands in it, or here."""
    ending = FORMATS[format]
    if path is None:
        if Path(name).is_dir():
            path = Path(name) / f"model{ending}"
        else:
            path = Path(name.rpartition("/")[2].rpartition(":")[2] + ending)
    path = Path(path)
    if path.suffix != ending:
        raise UserError(f"'{path}' does not end in {ending}, as a file of the format '{format}' does; name it so.")
    require_folder(path.parent)
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; name a file to write.")
    return path


def _checked(details: dict[str, Any]) -> str:
    """Say in one line how the file compares with the network."""
    if "drift" in details:
        return _drift_line(details["drift"], details["precision"])
    found = ", ".join(f"{kind} {value:.1e}" for kind, value in details["parity"]["largest_difference"].items())
    return f"largest difference from the network: {found}; {details['parity']['images']}"


def _drift_line(drift: dict[str, Any], precision: str) -> str:
    logits, maps = drift["logits"], drift.get("map")
    said = (
        f"{precision} against the float network on {drift['images']}: logits differ by {logits['largest']:.2g} at most "
        f"({logits['mean']:.2g} on average), {100 * drift['equal_predictions']:.1f} % equal predictions"
    )
    if maps:
        ranks = maps["spearman"]
        said += f"; map: largest difference {maps['largest_difference']:.2g}"
        said += f", Spearman {ranks['mean']:.3f} (least {ranks['least']:.3f})" if ranks else ", no spread to rank"
        overlap = maps["top_overlap"]
        said += f", IoU of the top fifth {overlap['mean']:.3f} (least {overlap['least']:.3f})"
    return said + "."
