"""Coarser arithmetic for an ONNX model: 16-bit floats, or 8-bit whole numbers with calibrated ranges."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from attention_branch.onnx_cut import IMAGES, put_in_order

PRECISIONS = ("32", "fp16", "int8")


def to_fp16(model: Any) -> Any:
    """Return a model that computes in 16-bit floats; images come in and answers go out as float32, as before."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        # It says of every weight that is too small for 16 bits that it becomes the smallest one.
        warnings.simplefilter("ignore")
        found = convert_float_to_float16(copy, keep_io_types=True)
    # It puts its casts at the end.
    put_in_order(found.graph)
    return found


def to_int8(model: Any, images: np.ndarray, batch_size: int = 8) -> Any:
    """Return a model whose convolutions and matrix products are computed in 8 bits (QDQ), calibrated on images.

    Ranges are the least and largest values met. Weights have a range a channel and 7 bits, because the 8-bit products
    of processors without VNNI overflow otherwise. All else, the map's sigmoid and the gate, stays float32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), batch_size))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            return None if start is None else {IMAGES: images[start : start + batch_size]}

    before = logging.root.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.root.setLevel(logging.ERROR)
        try:
            plain, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            # Shapes alone: its optimiser would rename the values that a reader cuts at.
            quant_pre_process(model, str(plain), skip_optimization=True, skip_symbolic_shape=True)
            quantize_static(
                str(plain),
                str(made),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(made)
        finally:
            logging.root.setLevel(before)
