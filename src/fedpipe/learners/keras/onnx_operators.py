"""Operations of TensorFlow for which tf2onnx has no ONNX form, written with standard operators of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedpipe.weights import Array

Handler = Callable[..., None]
ML_DOMAIN, ML_VERSION = "ai.onnx.ml", 2


def handlers_of(tables: Mapping[str, tuple[Array, Array]]) -> dict[str, tuple[Handler, list[Any]]]:
    """Return tf2onnx's custom handlers by operation.

    Args:
        tables: keys and values of lookup tables, by the name of the graph's input that holds the table.
    """

    def look_up(context: Any, node: Any, name: str, arguments: Any) -> None:
        _look_up(context, node, *tables[_source(node.inputs[0]).name])

    return {
        "Bucketize": (_bucketize, []),
        "DenseBincount": (_count, []),
        "Equal": (_equal, []),
        "NotEqual": (_equal, []),
        "Erfc": (_erfc, []),
        "LookupTableFindV2": (look_up, []),
    }


def _source(node: Any) -> Any:
    while node.type == "Identity":
        node = node.inputs[0]
    return node


def _bucketize(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Count the boundaries that a value has reached, which is the number of its bin."""
    from onnx import TensorProto

    values, output = node.input[0], node.output[0]
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    kind = context.get_dtype(values)
    bounds = np.array(node.get_attr("boundaries").floats, np.float32)
    context.remove_node(node.name)
    if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        values = context.make_node("Cast", [values], attr={"to": TensorProto.DOUBLE}).output[0]
        kind = TensorProto.DOUBLE
    bounds = bounds.astype(np.float32 if kind == TensorProto.FLOAT else np.float64)
    axis = context.make_const(f"{name}_axis", np.array([-1], np.int64)).output[0]
    column = context.make_node("Unsqueeze", [values, axis]).output[0]
    reached = context.make_node(
        "GreaterOrEqual", [column, context.make_const(f"{name}_boundaries", bounds).output[0]]
    ).output[0]
    ones = context.make_node("Cast", [reached], attr={"to": dtype}).output[0]
    context.make_node(
        "ReduceSum", [ones, axis], attr={"keepdims": 0}, outputs=[output], shapes=[shape], dtypes=[dtype], name=name
    )


def _count(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Count the values of each row, or mark those that occur, as the modes `count` and `multi_hot` of Keras do."""
    from onnx import TensorProto
    from tf2onnx.utils import map_onnx_to_numpy_type

    values, size, weights = node.input
    output, rank = node.output[0], context.get_rank(node.input[0])
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    binary, weighted = node.get_attr_value("binary_output", False), 0 not in (context.get_shape(weights) or [])
    context.remove_node(name)
    hot = np.array([0, 1], map_onnx_to_numpy_type(dtype))
    row = context.make_node("Cast", [values], attr={"to": TensorProto.INT64}).output[0]
    depth = context.make_node("Cast", [size], attr={"to": TensorProto.INT64}).output[0]
    marks = context.make_node("OneHot", [row, depth, context.make_const(f"{name}_hot", hot).output[0]]).output[0]
    if weighted:
        last = context.make_const(f"{name}_last", np.array([-1], np.int64)).output[0]
        column = context.make_node("Unsqueeze", [weights, last]).output[0]
        marks = context.make_node("Mul", [marks, column]).output[0]
    axis = context.make_const(f"{name}_axis", np.array([max(0, (rank or 2) - 1)], np.int64)).output[0]
    total = {"shapes": [shape], "dtypes": [dtype], "outputs": [output], "name": name}
    if not binary:
        context.make_node("ReduceSum", [marks, axis], attr={"keepdims": 0}, **total)
        return
    sums = context.make_node("ReduceSum", [marks, axis], attr={"keepdims": 0}).output[0]
    some = context.make_node("Cast", [sums], attr={"to": TensorProto.BOOL}).output[0]
    context.make_node("Cast", [some], attr={"to": dtype}, **total)


def _equal(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Compare text with a constant by a LabelEncoder; numbers as tf2onnx does."""
    from onnx import TensorProto

    if context.get_dtype(node.input[0]) != TensorProto.STRING:
        from tf2onnx.onnx_opset.logical import Equal

        Equal.version_11(context, node)
        return
    constants = [_source(side) for side in node.inputs]
    place = next(
        (k for k, side in enumerate(constants) if side.is_const() and np.size(side.get_tensor_value()) == 1), None
    )
    if place is None:
        raise ValueError("ONNX compares text with a single constant only")
    text = np.asarray(constants[place].get_tensor_value(as_list=False)).reshape(-1)[0]
    given, output = node.input[1 - place], node.output[0]
    equal, shape = node.type == "Equal", context.get_shape(node.input[1 - place])
    context.remove_node(name)
    attributes = {
        "keys_strings": [text.encode() if isinstance(text, str) else bytes(text)],
        "values_int64s": [int(equal)], "default_int64": int(not equal),
    }  # fmt: skip
    code = context.make_node(
        "LabelEncoder", [given], attr=attributes, domain=ML_DOMAIN, shapes=[shape], dtypes=[TensorProto.INT64]
    ).output[0]
    context.make_node(
        "Cast",
        [code],
        attr={"to": TensorProto.BOOL},
        outputs=[output],
        shapes=[shape],
        dtypes=[TensorProto.BOOL],
        name=name,
    )


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Compute 1 - erf(x), which the activation gelu uses."""
    values, output = node.input[0], node.output[0]
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    context.remove_node(node.name)
    from tf2onnx.utils import map_onnx_to_numpy_type

    one = context.make_const(f"{name}_one", np.array(1, map_onnx_to_numpy_type(dtype))).output[0]
    erf = context.make_node("Erf", [values], shapes=[shape], dtypes=[dtype]).output[0]
    context.make_node("Sub", [one, erf], outputs=[output], shapes=[shape], dtypes=[dtype], name=name)


def _look_up(context: Any, node: Any, keys: Array, values: Array) -> None:
    """Look keys up by a LabelEncoder; the default is a constant input of the operation."""
    given = node.input[1]
    output, name = node.output[0], node.name
    shape, dtype = context.get_shape(given), context.get_dtype(output)
    missing = _source(node.inputs[2]).get_tensor_value(as_list=False)
    attributes = {
        f"keys_{_kind(keys)}s": _items(keys),
        f"values_{_kind(values)}s": _items(values),
        f"default_{_kind(values)}": _items(np.asarray(missing, values.dtype).reshape(1))[0],
    }
    context.remove_node(name)
    context.make_node(
        "LabelEncoder", [given], attr=attributes, outputs=[output], shapes=[shape], dtypes=[dtype], name=name,
        domain=ML_DOMAIN,
    )  # fmt: skip


def _kind(array: Array) -> str:
    return "string" if array.dtype.kind == "O" else "int64" if array.dtype.kind in "iu" else "float"


def _items(array: Array) -> list[Any]:
    return [v.encode() if isinstance(v, str) else v for v in array.tolist()]
