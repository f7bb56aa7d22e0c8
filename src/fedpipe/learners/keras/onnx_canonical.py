"""Write an ONNX graph in canonical form: the names and the order that a converter chooses do not matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def canonicalise(graph: Any, inputs: Mapping[str, str], outputs: list[str]) -> None:
    """Give a graph's inputs and outputs these names, and order and number everything else by its use.

    Args:
        graph: a GraphProto, which is changed.
        inputs: the new name of each input, in the wanted order.
        outputs: the new names of the outputs; an output of the same name as an input gets an underscore.
    """
    _bypass_identities(graph, {})
    _sort(graph)
    given = {value.name: value for value in graph.input}
    names, found = {**inputs}, {value.name: f"{new}_" if new in inputs.values() else new
                                for value, new in zip(graph.output, outputs, strict=True)}  # fmt: skip
    names |= found
    taken = set(names.values())
    _replace(graph.input, [given[name] for name in inputs if name in given])
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
    _rename(graph, names, taken)
    for value in (*graph.input, *graph.output):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_param:
                dimension.dim_param = f"{value.name}_{axis}" if axis else "batch"


def _replace(field: Any, values: list[Any]) -> None:
    copies = [type(v).FromString(v.SerializeToString()) for v in values]
    del field[:]
    field.extend(copies)


def _subgraphs(node: Any) -> Iterator[Any]:
    return (attribute.g for attribute in node.attribute if attribute.HasField("g"))


def _bypass_identities(graph: Any, outer: Mapping[str, str]) -> None:
    """Remove nodes that only give a value another name, except where an output needs one."""
    aliases = dict(outer)

    def source(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    kept = []
    for node in graph.node:
        if (node.op_type, node.domain) == ("Identity", ""):
            aliases[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    made: set[str] = set()
    for node in kept:
        made.update(node.output)
        for index, name in enumerate(node.input):
            node.input[index] = source(name)
        for inner in _subgraphs(node):
            _bypass_identities(inner, aliases)
    copy = next((node for node in graph.node if (node.op_type, node.domain) == ("Identity", "")), None)
    for value in graph.output:
        name = source(value.name)
        if name in made:
            made.remove(name)  # a second output of the same value needs a copy
            value.name = name
            continue
        node = type(copy or kept[0])(op_type="Identity", input=[name], output=[f"{name}/copy_{len(kept)}"])
        value.name = node.output[0]
        kept.append(node)
    _replace(graph.node, kept)


def _sort(graph: Any) -> list[str]:
    """Sort nodes by the first use of their results, from the outputs on. Return the names from outside the graph."""
    makers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    needs = [[*node.input, *(name for inner in _subgraphs(node) for name in _sort(inner))] for node in graph.node]
    own = {value.name for value in graph.input} | {value.name for value in graph.initializer}
    order: list[int] = []
    done: set[int] = set()
    outside: dict[str, None] = {}
    stack = [(name, False) for name in reversed([value.name for value in graph.output])]
    while stack:
        name, ready = stack.pop()
        position = makers.get(name)
        if position is None:
            if name and name not in own:
                outside[name] = None
        elif ready:
            if position not in done:
                done.add(position)
                order.append(position)
        elif position not in done:
            stack.append((name, True))
            stack += [(need, False) for need in reversed(needs[position])]
    _replace(graph.node, [graph.node[position] for position in order])
    return list(outside)


def _rename(graph: Any, names: dict[str, str], taken: set[str]) -> None:
    def renamed(name: str) -> str:
        if name not in names:
            number = len(names)
            while f"t{number}" in taken:
                number += 1
            taken.add(f"t{number}")
            names[name] = f"t{number}"
        return names[name]

    for position, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{position}", ""
        if not node.domain:
            node.ClearField("domain")
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = renamed(name) if name else ""
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        _replace(node.attribute, attributes)
        for inner in _subgraphs(node):
            for value in (*inner.input, *inner.output):
                value.name = renamed(value.name)
                for dimension in value.type.tensor_type.shape.dim:
                    if dimension.dim_param:
                        dimension.ClearField("dim_param")
            _rename(inner, names, taken)
    kept = [constant for constant in graph.initializer if constant.name in names]
    for constant in kept:
        constant.name = names[constant.name]
    _replace(graph.initializer, sorted(kept, key=lambda constant: (len(constant.name), constant.name)))
    del graph.value_info[:]
    graph.doc_string, graph.name = "", "fedpipe"
