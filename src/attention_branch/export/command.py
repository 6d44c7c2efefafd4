"""`abn export`: its options. Heavy imports wait until they are needed."""

import json
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def export(
    run: Annotated[
        Positional[str],
        arg(metavar="RUN", help="A run, a saved network's folder, a hub name, or timm:NAME for a network of timm."),
    ],
    *,
    format: Annotated[
        Literal["onnx", "torch-export"], arg(help="onnx runs without Python's torch; torch-export is PyTorch's .pt2.")
    ] = "onnx",
    out: Annotated[
        str | None, arg(help="File to write. Left out: model.onnx or model.pt2 in the run, or NAME.onnx here.")
    ] = None,
    precision: Annotated[
        Literal["32", "fp16", "int8"],
        arg(help="Arithmetic of an ONNX file; for fp16 and int8 the drift of scores and map is measured and reported."),
    ] = "32",
    attention_logits: Annotated[bool, arg(help="Also answer with the attention branch's own scores.")] = False,
    class_evidence: Annotated[bool, arg(help="Also answer with the branch's scores per position, for every class.")] = (
        False
    ),
    data: Annotated[
        str | None,
        arg(help="Images to compare on (and to calibrate int8). Left out: the run's own; random: noise."),
    ] = None,
    images: Annotated[int, arg(help="Images that fp16 and int8 are measured on, and as many to calibrate int8.")] = 128,
    json_output: Annotated[bool, arg(name="json", help="Print the file's details as JSON and nothing else.")] = False,
) -> int:
    """Write a network as one file with logits, map, class names and preprocessing, compared with PyTorch first."""
    from attention_branch.export.exporting import export as write

    done = write(
        run,
        out,
        format=format,
        precision=precision,
        attention_logits=attention_logits,
        class_evidence=class_evidence,
        data=data,
        images=images,
        say=None if json_output else print,
    )
    if json_output:
        print(json.dumps({"file": str(done.path), "bytes": done.bytes, **done.details}, allow_nan=False))
        return 0
    for line in done.lines():
        print(line)
    return 0
