"""From a network with named outputs to an ONNX model: any batch size, stable names, what the file says of itself."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.export.named_outputs import NamedOutputs
from attention_branch.onnx_cut import FEATURES, IMAGES, count_from_map

OPSET = 18
"""The operators' version: PyTorch writes this one natively, and runtimes have known it since 2023."""

_LARGEST = 2_000_000_000
METADATA_KEY = "attention_branch"


def to_onnx(network: NamedOutputs, images: Tensor) -> Any:
    """Return the ONNX model of a network (eval mode) for batches of any size; `images` (2, 3, H, W) are an example.

    Input `images`, outputs as the network names them. g(x) of a network with a branch is the value `features` inside
    the graph and no output, so it costs nothing. Raises `UserError` for what PyTorch cannot export, and above 2 GB.
    """
    weights = {value.data_ptr(): value.nbytes for value in network.state_dict().values()}
    if sum(weights.values()) > _LARGEST:
        raise UserError(
            f"{network.network.name} has {sum(weights.values()) / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB "
            "at most; use --format torch-export."
        )
    names = [output.name for output in network.outputs]
    inner = [FEATURES] if network.network.is_abn else []
    with network.listening(), torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                input_names=[IMAGES],
                output_names=[*names, *inner],
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as problem:  # Tracing runs all of a backbone's code, and meets any exception there is.
            raise UserError(
                f"PyTorch cannot export {network.network.name} to ONNX ({_reason(problem)}); try --format "
                "torch-export, or another backbone."
            ) from problem
    assert program is not None
    model = program.model_proto
    given = [item.name for item in model.graph.output]
    if given != [*names, *inner]:
        raise UserError(f"The outputs of {network.network.name} came out as {', '.join(given)}; it cannot be exported.")
    for _ in inner:
        # Its type stays known, for the reader that cuts the graph here.
        model.graph.value_info.append(model.graph.output.pop())
    if inner:
        count_from_map(model, [output.name for output in network.outputs if output.kind == "logits"])
    for node in model.graph.node:
        # Names of the machine's files and lines of code; no reader needs them.
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name = "attention-branch"
    return model


def describe(model: Any, details: dict[str, Any], plain: dict[str, str]) -> None:
    """Write into a model what it is: all details as one JSON text, and the main ones as text for people."""
    del model.metadata_props[:]
    for key, text in {METADATA_KEY: json.dumps(details, ensure_ascii=False, allow_nan=False), **plain}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own reports of its progress to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _reason(problem: Exception) -> str:
    while problem.__cause__ is not None and isinstance(problem.__cause__, Exception):
        problem = problem.__cause__
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:200]
