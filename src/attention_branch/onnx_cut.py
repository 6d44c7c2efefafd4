"""The part of an ONNX graph that answers from features and a given map; needs onnx, and no torch.

An exported file computes logits and map from images. Cut at the features g(x) and at the map M(x), what is left answers
for any map put in the place of the network's own, and nothing before the gate runs again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attention_branch.errors import UserError

IMAGES, ATTENTION, FEATURES = "images", "attention", "features"
"""Names of the input, of the map among the outputs, and of g(x), a value inside the graph."""

_THROUGH = {"Cast", "QuantizeLinear", "DequantizeLinear", "Identity"}
"""What a conversion puts between a value and its readers."""


@dataclass(frozen=True)
class Cut:
    """Where a graph is cut: the names of two values, and the element types (ONNX numbers) that they have.

    `features` is the input `images` itself where the gated part needs more than g(x): the whole graph then runs again.
    """

    features: str
    attention: str
    features_type: int
    attention_type: int

    @property
    def whole(self) -> bool:
        """Whether the whole graph runs for a given map."""
        return self.features == IMAGES


def reached(graph: Any, outputs: Sequence[str], stops: Sequence[str]) -> tuple[set[str], list[Any], set[str]]:
    """Walk from outputs back to `stops`: return the values met, the nodes in the graph's order, the inputs met."""
    makers = {name: node for node in graph.node for name in node.output}
    constants = {item.name for item in graph.initializer}
    seen: set[str] = set()
    used: set[int] = set()
    inputs: set[str] = set()
    ahead = list(outputs)
    while ahead:
        name = ahead.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        if name in stops or name in constants:
            continue
        node = makers.get(name)
        if node is None:
            inputs.add(name)
            continue
        used.add(id(node))
        ahead += node.input
    return seen, [node for node in graph.node if id(node) in used], inputs


def find_cut(model: Any, logits: Sequence[str]) -> Cut | None:
    """Find where a model with an output `attention` is cut; None where the logits do not depend on the map."""
    import onnx

    graph = model.graph
    types = {item.name: item.type.tensor_type.elem_type for item in _typed(onnx.shape_inference.infer_shapes(model))}
    values = {name for node in graph.node for name in node.output}
    for features in (*_copies(graph, FEATURES), IMAGES) if FEATURES in values else (IMAGES,):
        for attention in _copies(graph, ATTENTION):
            seen, _, inputs = reached(graph, logits, (features, attention))
            if attention in seen and not inputs - {features} and {features, attention} <= types.keys():
                return Cut(features, attention, types[features], types[attention])
    return None


def _typed(model: Any) -> Iterator[Any]:
    yield from model.graph.input
    yield from model.graph.output
    yield from model.graph.value_info


def _copies(graph: Any, name: str) -> list[str]:
    """Return a value and those that hold the same behind casts and quantisation, before it and after it."""
    makers = {output: node for node in graph.node for output in node.output}
    found = [name]
    before = makers.get(name)
    while before is not None and before.op_type in _THROUGH:
        found.append(before.input[0])
        before = makers.get(before.input[0])
    for known in found:
        for node in graph.node:
            if node.op_type in _THROUGH and node.input[0] == known and node.output[0] not in found:
                found.append(node.output[0])
    return found


def gated_part(model: Any, cut: Cut, logits: Sequence[str]) -> Any:
    """Return the model (features, attention) -> logits that a cut leaves, its inputs named so."""
    import onnx

    graph = model.graph
    seen, nodes, inputs = reached(graph, logits, (cut.features, cut.attention))
    if inputs - {cut.features}:
        raise UserError("The part behind the gate needs more than features and map; export the network again.")
    outputs = {item.name: item for item in graph.output}
    part = onnx.helper.make_graph(
        nodes,
        "gated",
        [
            onnx.helper.make_tensor_value_info(cut.features, cut.features_type, None),
            onnx.helper.make_tensor_value_info(cut.attention, cut.attention_type, None),
        ],
        [outputs[name] for name in logits],
        initializer=[item for item in graph.initializer if item.name in seen],
    )
    found = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    found.functions.extend(model.functions)
    return found


def count_from_map(model: Any, logits: Sequence[str]) -> None:
    """Let what the gated part asks of the images' number be asked of the map, which has as many rows; in place.

    Transformers read the batch's size off the images to widen class tokens; that alone would keep the graph from being
    cut. Changes nothing where it does not apply.
    """
    import onnx

    graph = model.graph
    _, nodes, inputs = reached(graph, logits, (FEATURES, ATTENTION))
    if not inputs:
        return
    counts = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Shape" and node.input[0] == IMAGES and _ends(node) == (0, 1)
    }
    own = "count_of_maps"
    fresh: dict[str, str] = dict.fromkeys(counts, own)
    # What is made of the count and of constants alone, and may be read before the gate too, is made a second time.
    copies = [onnx.helper.make_node("Shape", [ATTENTION], [own], start=0, end=1)]
    shared = {id(node) for node in reached(graph, [FEATURES, ATTENTION], ())[1]}
    for node in nodes:
        if not any(name in fresh for name in node.input):
            continue
        target = node
        if id(node) in shared:
            target = onnx.NodeProto()
            target.CopyFrom(node)
            target.name = f"{node.name}_of_maps"
            for place, name in enumerate(target.output):
                fresh[name] = target.output[place] = f"{name}_of_maps"
            copies.append(target)
        for place, name in enumerate(target.input):
            target.input[place] = fresh.get(name, name)
    graph.node.extend(copies)
    put_in_order(graph)


def _ends(node: Any) -> tuple[int, int | None]:
    ends = {item.name: item.i for item in node.attribute}
    return ends.get("start", 0), ends.get("end")


def put_in_order(graph: Any) -> None:
    """Sort a graph's nodes so that each comes after those that make its inputs, in place."""
    waiting = {name for node in graph.node for name in node.output}
    left, done = list(graph.node), []
    while left:
        later = []
        for node in left:
            if waiting.isdisjoint(node.input):
                done.append(node)
                waiting.difference_update(node.output)
            else:
                later.append(node)
        if len(later) == len(left):
            raise ValueError("The graph has a cycle.")
        left = later
    del graph.node[:]
    graph.node.extend(done)
