"""Convert a Keras model to ONNX: equal models give equal bytes."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedpipe.errors import ExportError, MissingExtraError
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.onnx_canonical import canonicalise
from fedpipe.learners.keras.onnx_operators import ML_DOMAIN, ML_VERSION, handlers_of
from fedpipe.learners.user_code import described
from fedpipe.rounds.plan import Port

_REMEDY = "Replace it, or set `export: none` in the federation file to train without an ONNX model."
_WITHOUT_ONNX = {
    "StringToHashBucketFast": "hashes text", "StringToHashBucketStrong": "hashes text", "SparseCross": "hashes values",
    "StaticRegexReplace": "replaces parts of text", "RegexReplace": "replaces parts of text",
    "StringSplitV2": "splits text", "StringLower": "changes text", "StringUpper": "changes text",
    "AsString": "writes numbers as text", "EagerPyFunc": "calls Python", "PyFunc": "calls Python",
}  # fmt: skip
"""Operations of TensorFlow for which ONNX has no operator, and a description of each."""


def convert(
    model: Any, inputs: Sequence[Port], outputs: Sequence[Port], call: Callable[[Mapping[str, Any]], Sequence[Any]],
    opset: int, metadata: Mapping[str, str] | None = None,
) -> bytes:  # fmt: skip
    """Return a Keras model as ONNX bytes, with a dynamic batch dimension and the model's names.

    Args:
        model: the Keras model, for messages.
        inputs: of the model.
        outputs: of the model.
        call: computes the outputs from inputs by name.
        opset: the ONNX operator set.
        metadata: written into the ONNX model.

    Raises:
        MissingExtraError: tf2onnx is not installed.
        ExportError: a layer has no ONNX form; the message has its name.
    """
    try:
        import tf2onnx
    except ImportError as error:
        raise MissingExtraError("tf2onnx", "keras") from error
    for name in ("tf2onnx", "tensorflow"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        graph, tables, results = _graph_of(model, inputs, call)
        proto, _ = tf2onnx.convert.from_graph_def(
            graph, input_names=[f"input_{k}:0" for k in range(len(inputs))], output_names=results, opset=opset,
            custom_op_handlers=handlers_of(tables), extra_opset=[_ml_operators()],
        )  # fmt: skip
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the model cannot be converted to ONNX, because {described(error)}", where="model.py", remedy=_REMEDY
        ) from error
    _check_operators(proto, model)
    given = {f"input_{k}:0": port.name for k, port in enumerate(inputs)}
    canonicalise(proto.graph, given, [port.name for port in outputs])
    _drop_unused_opsets(proto)
    for name, value in sorted((metadata or {}).items()):
        proto.metadata_props.add(key=name, value=value)
    return bytes(proto.SerializeToString(deterministic=True))


def _ml_operators() -> Any:
    from onnx import helper

    return helper.make_opsetid(ML_DOMAIN, ML_VERSION)


@contextlib.contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Compute layers of mixed precision in float32, as their weights are: onnxruntime lacks many narrower operators."""
    mixed = [layer for layer in model._flatten_layers() if layer.dtype_policy.name.startswith("mixed_")]
    policies = [layer.dtype_policy for layer in mixed]
    try:
        for layer in mixed:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in zip(mixed, policies, strict=True):
            layer.dtype_policy = policy


def _graph_of(model: Any, inputs: Sequence[Port], call: Any) -> tuple[Any, dict[str, Any], list[str]]:
    """Return the traced graph with all variables and captured constants in it, its tables, and its results' names.

    A layer may hold plain tensors, such as the mean of an adapted Normalization. TensorFlow makes them
    inputs of the graph. Here they become constants.
    """
    tensorflow, _ = frameworks()
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [
        tensorflow.TensorSpec((None, *port.shape[1:]), port.dtype, name=f"input_{k}") for k, port in enumerate(inputs)
    ]

    def answer(*values: Any) -> Any:
        found = call({port.name: value for port, value in zip(inputs, values, strict=True)})
        return [tensorflow.identity(value, name=f"output_{k}") for k, value in enumerate(found)]

    with tensorflow.device("/cpu:0"), _in_float32(model):
        traced = tensorflow.function(answer, input_signature=signature, autograph=False).get_concrete_function()
        held = {inner.op.name: outer for outer, inner in traced.graph.captures}
        frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    graph, tables = frozen.graph.as_graph_def(), {}
    for node in graph.node:
        if node.op != "Placeholder" or (value := held.get(node.name)) is None:
            continue
        if value.dtype == tensorflow.resource:
            tables[node.name] = _table_of(value, graph, node.name)
        else:
            tensor = tensorflow.make_tensor_proto(value.numpy(), dtype=value.dtype)
            node.op, dtype = "Const", node.attr["dtype"]
            node.attr.clear()
            node.attr["dtype"].CopyFrom(dtype)
            node.attr["value"].tensor.CopyFrom(tensor)
    return graph, tables, [value.name for value in frozen.outputs]


def _table_of(handle: Any, graph: Any, name: str) -> tuple[Any, Any]:
    """Return the keys and values of a lookup table; text as `str`."""
    from tensorflow.python.ops import gen_lookup_ops

    sources = {node.name: node.input[0] for node in graph.node if node.op == "Identity"}

    def origin(place: str) -> str:
        return origin(sources[place]) if place in sources else place

    user = next(node for node in graph.node if node.op == "LookupTableFindV2" and origin(node.input[0]) == name)
    keys, values = user.attr["Tin"].type, user.attr["Tout"].type
    found = gen_lookup_ops.lookup_table_export_v2(handle, keys, values)
    return _decoded(found[0].numpy()), _decoded(found[1].numpy())


def _decoded(array: Any) -> Any:
    if array.dtype != object:
        return array
    found = array.copy()
    found[:] = [value.decode() for value in array]
    return found


def _check_operators(proto: Any, model: Any) -> None:
    """Check that all operators belong to ONNX. Raises ExportError with the name of the layer."""
    from onnx import defs

    def visit(graph: Any) -> None:
        for node in graph.node:
            if not defs.has(node.op_type, node.domain):
                layer = _layer_of(node.name, model)
                does = _WITHOUT_ONNX.get(node.op_type, f"uses {node.op_type}")
                subject = f"the layer {layer.name!r} ({type(layer).__name__})" if layer is not None else "the model"
                raise ExportError(f"{subject} {does}, for which ONNX has no operator", where="model.py", remedy=_REMEDY)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(proto.graph)


def _layer_of(path: str, model: Any) -> Any:
    """Return the innermost layer of an operation, whose path has the layers' names, numbered when they repeat."""
    layers = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    for part in reversed(path.split("/")):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in layers:
                return layers[name]
    return None


def _drop_unused_opsets(proto: Any) -> None:
    used = {node.domain for node in proto.graph.node}
    kept = sorted((o.domain, o.version) for o in proto.opset_import if not o.domain or o.domain in used)
    del proto.opset_import[:]
    for domain, version in kept:
        proto.opset_import.add(domain=domain, version=version)
