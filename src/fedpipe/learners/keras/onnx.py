"""Convert a Keras model to ONNX: equal models give equal bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fedpipe.errors import MissingExtraError
from fedpipe.frameworks import frameworks


def convert(model: Any, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a Keras model as ONNX bytes with a dynamic batch dimension.

    Args:
        model: the Keras model.
        opset: the ONNX operator set.
        metadata: written into the ONNX model.

    Raises:
        MissingExtraError: tf2onnx is not installed.
    """
    tensorflow, _ = frameworks()
    try:
        import tf2onnx
    except ImportError as error:
        raise MissingExtraError("tf2onnx", "keras") from error
    for name in ("tf2onnx", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    signature = [
        tensorflow.TensorSpec((None, *value.shape[1:]), value.dtype, name=value.name) for value in model.inputs
    ]
    many = len(signature) > 1

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def answer(*values: Any) -> Any:
        return model(list(values) if many else values[0], training=False)

    proto, _ = tf2onnx.convert.from_function(answer, input_signature=signature, opset=opset)
    _canonicalise(proto.graph)
    for name, value in sorted((metadata or {}).items()):
        proto.metadata_props.add(key=name, value=value)
    return bytes(proto.SerializeToString(deterministic=True))


def _canonicalise(graph: Any) -> None:
    """Rename nodes and values, which the converter numbers across the process: equal models give equal bytes."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    _rename(graph, names)
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = "batch"


def _rename(graph: Any, names: dict[str, str]) -> None:
    for position, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{position}", ""
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.setdefault(name, f"t{len(names)}") if name else ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for value in (*attribute.g.input, *attribute.g.output):
                    value.name = names.setdefault(value.name, f"t{len(names)}")
                _rename(attribute.g, names)
    constants = sorted(graph.initializer, key=lambda c: (len(names.get(c.name, "")), names.get(c.name, "")))
    kept = [c for c in constants if c.name in names]
    for constant in kept:
        constant.name = names[constant.name]
    copies = [type(c).FromString(c.SerializeToString()) for c in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    del graph.value_info[:]
    graph.doc_string, graph.name = "", "fedpipe"
