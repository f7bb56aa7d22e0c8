"""Tests requests of tensors: those that fit a model are parsed, all others are refused in one sentence."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedpipe.registry.card import Card
from fedpipe.registry.prediction import TensorSpec
from fedpipe.serving.memory import SMALL, Memory
from fedpipe.serving.protocol import Request, answer, parse, size_of_answer
from fedpipe.serving.tensors import DATATYPES, DTYPES, RequestError, Room, to_bytes

SPEC = TensorSpec("x", np.dtype(np.float32), (None, 2))
OUT = [TensorSpec("y", np.dtype(np.float32), (None, 1)), TensorSpec("z", np.dtype(np.int64), (None,))]


def tensor(**changes: Any) -> dict[str, Any]:
    given = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5], **changes}
    return {key: value for key, value in given.items() if value is not None}


def body(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def test_flat_and_nested_data_in_row_major_order() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        request = parse(body(tensor(shape=[2, 2], data=data)), None, [SPEC], OUT)
        np.testing.assert_array_equal(request.feed["x"], np.float32([[1, 2], [3, 4]]))


def test_binary_data_follow_the_json_in_the_order_of_the_inputs() -> None:
    specs = [SPEC, TensorSpec("b", np.dtype(np.bool_), (2,))]
    head = body(
        tensor(data=None, parameters={"binary_data_size": 8}),
        {"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
    )
    found = parse(head + np.float32([3, 4]).tobytes() + b"\x01\x00", str(len(head)), specs, OUT).feed
    np.testing.assert_array_equal(found["x"], [[3, 4]])
    np.testing.assert_array_equal(found["b"], [True, False])


def test_requested_outputs() -> None:
    assert parse(body(tensor()), None, [SPEC], OUT).outputs == {"y": False, "z": False}
    assert parse(body(tensor(), outputs=[{"name": "z"}]), None, [SPEC], OUT).outputs == {"z": False}
    binary = {"binary_data_output": True}
    assert parse(body(tensor(), parameters=binary), None, [SPEC], OUT).outputs == {"y": True, "z": True}
    wanted = [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}]
    assert parse(body(tensor(), outputs=wanted, parameters=binary), None, [SPEC], OUT).outputs == {
        "y": False,
        "z": True,
    }


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"name": "w"}, 400, "there is no input 'w'; the model takes 'x'"),
        ({"datatype": "FP64"}, 400, "input 'x' has datatype 'FP64', but the model takes FP32"),
        ({"datatype": "BYTES"}, 400, "has datatype 'BYTES', but the model takes FP32"),
        ({"shape": [2]}, 400, r"input 'x' has shape \[2\], but the model takes \[-1, 2\]"),
        ({"shape": [1, 3]}, 400, r"has shape \[1, 3\], but the model takes \[-1, 2\]"),
        ({"shape": [0, 2], "data": []}, 400, "-1 for one or more"),
        ({"shape": [-1, 2]}, 400, "the request is not valid"),
        ({"shape": [1.5, 2]}, 400, "the request is not valid"),
        ({"shape": [2**39, 2]}, 413, "has 1099511627776 values, but at most"),
        ({"data": [1.0]}, 400, r"the data of input 'x' has 1 values, but its shape is \[1, 2\]"),
        ({"data": [[1.0], [2.0]]}, 400, r"has shape \[2, 1\], but its shape is \[1, 2\]"),
        ({"data": [[1.0, 2.0], [3.0]], "shape": [2, 2]}, 400, "its rows differ in length"),
        ({"data": [[[1.0, 2.0]]]}, 400, "is neither flat nor nested like its shape"),
        ({"data": ["1", "2"]}, 400, "is not FP32: Expected `float`, got `str`"),
        ({"data": [None, 1]}, 400, "is not FP32"),
        ({"data": "text"}, 400, "is neither flat nor nested"),
        ({"data": None}, 400, "input 'x' has no data"),
        ({"data": [1e39, 0]}, 400, "NaN or infinity, or a value too large for its datatype"),
        ({"parameters": {"binary_data_size": 8}}, 400, "has both JSON and binary data"),
        ({"parameters": {"shared_memory_region": "r"}}, 400, "shared memory is not supported"),
    ],
)  # fmt: skip
def test_an_input_that_does_not_fit_the_model(changes: dict[str, Any], status: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        parse(body(tensor(**changes)), None, [SPEC], OUT)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("size", "available", "message"),
    [
        (4, 8, "binary_data_size of input 'x' is 4, but its shape needs 8"),
        (10**12, 8, "its shape needs 8"),
        (-8, 8, "its shape needs 8"),
        (True, 8, "its shape needs 8"),
        ("8", 8, "its shape needs 8"),
        (8, 7, "input 'x' needs 8 bytes of binary data, but 7 are left"),
        (8, 9, "1 bytes follow the last binary tensor"),
    ],
)
def test_wrong_binary_lengths(size: Any, available: int, message: str) -> None:
    head = body(tensor(data=None, parameters={"binary_data_size": size}))
    with pytest.raises(RequestError, match=message):
        parse(head + bytes(available), str(len(head)), [SPEC], OUT)


@pytest.mark.parametrize("length", ["-1", "1e3", "", "٣", "9" * 30, "1000000"])
def test_wrong_header_lengths(length: str) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        parse(body(tensor()), length, [SPEC], OUT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "the request is not valid"),
        (b"\xff\xfe", "the request is not valid"),
        (b"[" * 100_000, "the request is not valid"),
        (b'{"inputs": ' + b"[" * 100_000, "the request is not valid"),
        (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": ' + b"[" * 100_000, "is not valid"),
        (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1]}]}', "is not valid"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', "input 'x' is missing"),
        (body(tensor(), tensor()), "input 'x' is given twice"),
        (body(tensor(), outputs=[{"name": "w"}]), "there is no output 'w'; the model returns 'y', 'z'"),
        (body(tensor(), outputs=[{"name": "y"}, {"name": "y"}]), "output 'y' is requested twice"),
        (
            body(tensor(), outputs=[{"name": "y", "parameters": {"classification": 1}}]),
            "classification is not supported",
        ),
    ],
)
def test_invalid_requests(given: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse(given, None, [SPEC], OUT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_unless_the_card_allows_it(value: float) -> None:
    head = body(tensor(data=None, parameters={"binary_data_size": 8}))
    data = head + np.float32([1, value]).tobytes()
    with pytest.raises(RequestError, match="contains NaN or infinity"):
        parse(data, str(len(head)), [SPEC], OUT)
    allowed = parse(data, str(len(head)), [SPEC], OUT, card=Card(finite=False))
    np.testing.assert_array_equal(allowed.feed["x"], np.float32([[1, value]]))


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT8", [128]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("INT64", [1.5]),
        ("INT64", [True]),
        ("BOOL", [1]),
        ("FP16", [1e6]),
    ],
)
def test_values_that_a_datatype_cannot_hold(datatype: str, data: list[Any]) -> None:
    spec = TensorSpec("x", DTYPES[datatype], (None,))
    with pytest.raises(RequestError, match=r"is not |too large for its datatype"):
        parse(body(tensor(shape=[1], datatype=datatype, data=data)), None, [spec], OUT)


def test_a_byte_that_is_not_a_boolean() -> None:
    spec = TensorSpec("x", np.dtype(np.bool_), (1,))
    head = body(tensor(shape=[1], datatype="BOOL", data=None, parameters={"binary_data_size": 1}))
    with pytest.raises(RequestError, match="neither 0 nor 1"):
        parse(head + b"\x02", str(len(head)), [spec], OUT)


@given(
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda name: arrays.arrays(
            DTYPES[name],
            arrays.array_shapes(max_dims=4, max_side=4),
            elements=(
                st.text(max_size=5)
                if name == "BYTES"
                else {"allow_nan": False, "allow_infinity": False}
                if DTYPES[name].kind == "f"
                else None
            ),
        )
    ),
    st.booleans(),
    st.booleans(),
)
def test_tensors_come_back_to_the_last_bit(array: Any, binary_in: bool, binary_out: bool) -> None:
    """Answers a request with its own array, and parses the answer as a request."""
    spec = TensorSpec("x", array.dtype, (None,) * array.ndim)
    request = Request({"x": array}, {"x": binary_out}, "7")
    made = answer("m", 3, request, {"x": array})
    head = msgspec.json.decode(b"".join(made.pieces)[: made.header_length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "3", "7")
    found = parse(
        body(head["outputs"][0]) if made.header_length is None else _with_binary(head, made),
        _length(head, made),
        [spec],
        [],
    ).feed["x"]
    assert to_bytes(found) == to_bytes(array)
    assert found.shape == array.shape
    nested = {"name": "x", "shape": array.shape, "datatype": DATATYPES[array.dtype], "data": array.tolist()}
    if not binary_in:
        assert to_bytes(parse(body(nested), None, [spec], []).feed["x"]) == to_bytes(array)


WORDS = TensorSpec("x", np.dtype(object), (None, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\1\0\0\0a\0\0\0\0", None),
        (b"\2\0\0\0\xc3\xbc\1\0\0\0b", None),
        (b"\1\0\0\0a\0\0", "needs 2 strings, but has only 7 bytes|end after 1 of 2 strings"),
        (b"\1\0\0\0a\0\0\0", "the binary data of input 'x' end after 1 of 2 strings"),
        (b"\5\0\0\0a\0\0\0\0", "string 1 of input 'x' has 0 bytes|string 0|bytes follow|end after"),
        (b"\xff\xff\xff\xff\0\0\0\0", "string 0 of input 'x' has 4294967295 bytes, but 4 are left"),
        (b"\1\0\0\0\xff\0\0\0\0", "string 0 of input 'x' is not UTF-8"),
        (b"\1\0\0\0a\0\0\0\0!", "1 bytes follow the last string of input 'x'"),
        (b"", "input 'x' needs 2 strings, but has only 0 bytes"),
    ],
)
def test_strings_in_binary_data(data: bytes, message: str | None) -> None:
    head = body(tensor(datatype="BYTES", data=None, parameters={"binary_data_size": len(data)}))
    if message is None:
        found = parse(head + data, str(len(head)), [WORDS], OUT).feed["x"]
        assert found.tolist() in ([["a", ""]], [["ü", "b"]])
    else:
        with pytest.raises(RequestError, match=message):
            parse(head + data, str(len(head)), [WORDS], OUT)


@pytest.mark.parametrize("size", [-1, True, "8", 1.5])
def test_a_size_of_strings_that_is_not_a_number(size: Any) -> None:
    head = body(tensor(datatype="BYTES", data=None, parameters={"binary_data_size": size}))
    with pytest.raises(RequestError, match="not a number of bytes"):
        parse(head + bytes(8), str(len(head)), [WORDS], OUT)


def test_more_strings_than_fit_into_memory() -> None:
    with pytest.raises(RequestError, match="has 8388608 strings, but at most 4194304 are allowed") as refused:
        parse(body(tensor(shape=[2**22, 2], datatype="BYTES", data=["a"])), None, [WORDS], OUT)
    assert refused.value.status == 413


def test_strings_in_json() -> None:
    found = parse(body(tensor(shape=[1, 2], datatype="BYTES", data=["a", "ü"])), None, [WORDS], OUT).feed["x"]
    assert found.tolist() == [["a", "ü"]]
    for data, message in (([1, 2], "Expected `str`"), (["a"], "has 1 values"), ("ab", "neither flat")):
        with pytest.raises(RequestError, match=message):
            parse(body(tensor(datatype="BYTES", data=data)), None, [WORDS], OUT)
    with pytest.raises(RequestError, match="has datatype 'FP32', but the model takes BYTES"):
        parse(body(tensor()), None, [WORDS], OUT)


@given(st.binary(max_size=40), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_any_bytes_as_strings_are_read_or_refused(data: bytes, shape: list[int]) -> None:
    spec = TensorSpec("x", np.dtype(object), (None,) * len(shape))
    head = body(tensor(shape=shape, datatype="BYTES", data=None, parameters={"binary_data_size": len(data)}))
    assert status_of(head + data, str(len(head)), [spec]) in (200, 400)


def _with_binary(head: Any, made: Any) -> bytes:
    return body(head["outputs"][0]) + b"".join(made.pieces)[made.header_length :]


def _length(head: Any, made: Any) -> str | None:
    return None if made.header_length is None else str(len(body(head["outputs"][0])))


@given(st.binary(max_size=200), st.none() | st.text(max_size=6))
def test_any_bytes_are_read_or_refused(data: bytes, length: str | None) -> None:
    assert status_of(data, length, [SPEC]) in (200, 400, 413)


VALID = body(tensor(), {"name": "b", "shape": [1], "datatype": "INT8", "data": [3]}, outputs=[{"name": "y"}], id="i")
TWO = [SPEC, TensorSpec("b", np.dtype(np.int8), (1,))]


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=0, max_size=3)), max_size=4))
def test_a_request_with_bytes_changed_is_read_or_refused(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(VALID)
    for position, piece in changes:
        data[position : position + 1] = piece
    assert status_of(bytes(data), None, TWO) in (200, 400, 413)


def status_of(data: bytes, length: str | None, specs: list[TensorSpec]) -> int:
    """Returns 200 for a valid request, and otherwise the status of the refusal."""
    try:
        parse(data, length, specs, OUT)
    except RequestError as error:
        return error.status
    return 200


LONG = 20_000


class TestLongTexts:
    """Numbers in a long text are read in chunks, after a look at its brackets and commas."""

    @pytest.mark.parametrize("shape", [[LONG], [LONG, 1], [1, LONG], [LONG // 4, 4], [10, LONG // 40, 2, 2]])
    @pytest.mark.parametrize("flat", [True, False])
    @pytest.mark.parametrize("indent", [None, 1])
    def test_they_are_read(self, shape: list[int], flat: bool, indent: int | None) -> None:
        array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        data = json.dumps((array.ravel() if flat else array).tolist(), indent=indent)
        spec = TensorSpec("x", np.dtype(np.float32), (None,) * len(shape))
        head = body(tensor(shape=shape, data=[])).replace(b'"data": []', b'"data": ' + data.encode())
        np.testing.assert_array_equal(parse(head, None, [spec], OUT).feed["x"], array)

    @pytest.mark.parametrize("name", ["INT8", "INT64", "UINT64", "BOOL", "FP64"])
    def test_datatypes(self, name: str) -> None:
        array = (np.arange(2 * LONG) % 2).astype(DTYPES[name])
        spec = TensorSpec("x", DTYPES[name], (None,))
        found = parse(body(tensor(shape=[2 * LONG], datatype=name, data=array.tolist())), None, [spec], OUT).feed["x"]
        np.testing.assert_array_equal(found, array)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[" + "[]," * 30_000 + "[]]", "neither flat|do not make the shape|too few"),
            ("[" + "1," * 40_000 + "[1]]", "do not make the shape"),
            ("[" + "[1]," * 30_000 + "[1]]", "neither flat nor nested"),
            ("[" + "1," * LONG * 2 + "1]", "do not make the shape"),
            ("[" + "1234," * (LONG - 2) + "1234]", "do not make the shape"),
            ("[" + "1234," * (LONG - 1) + "null]", "is not FP32"),
            ("[" + "1234," * (LONG - 1) + "true]", "is not FP32"),
            ("[" + "1234," * (LONG - 1) + '"1"]', "is not FP32"),
            ("[" + "1234," * (LONG - 1) + "1e39]", "too large for its datatype"),
            ("[" + " " * 2**24 + "1]", "too many|too few"),
            ("1" * 100_000, "neither flat"),
            ('"' + "1" * 100_000 + '"', "neither flat"),
            ('{"a":"' + "b" * 70_000 + '"}', "neither flat"),
        ],
    )
    def test_they_are_refused(self, text: str, message: str) -> None:
        spec = TensorSpec("x", np.dtype(np.float32), (None,))
        head = body(tensor(shape=[LONG], data=[])).replace(b'"data": []', b'"data": ' + text.encode())
        with pytest.raises(RequestError, match=message):
            parse(head, None, [spec], OUT)

    def test_more_values_than_the_text_can_hold(self) -> None:
        reserved: list[int] = []
        with pytest.raises(RequestError, match="too few for its shape"):
            parse(body(tensor(shape=[2**20, 2], data=[1, 2])), None, [SPEC], OUT, room=Room(reserve=reserved.append))
        assert not reserved

    def test_parameters_take_no_memory(self) -> None:
        head = body(tensor(parameters={"other": [{}] * 100_000}, data=[1, 2]), parameters={"p": [[]] * 100_000})
        tracemalloc.start()
        try:
            parse(head, None, [SPEC], OUT)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(("datatype", "spec"), [("BYTES", WORDS), ("FP32", SPEC)])
    def test_memory_is_reserved_before_the_values_are_read(self, datatype: str, spec: TensorSpec) -> None:
        def refuse(size: int) -> None:
            raise RequestError(503, f"{size} bytes")

        data = ["a", "b"] if datatype == "BYTES" else [1, 2]
        with pytest.raises(RequestError, match="bytes"):
            parse(body(tensor(datatype=datatype, data=data)), None, [spec], OUT, room=Room(reserve=refuse))

    @pytest.mark.parametrize("kind", [bool, int])
    def test_too_many_values_for_json(self, kind: Any) -> None:
        request = Request({}, {"y": False, "z": True}, "")
        outputs = {"y": np.zeros(2**20, kind), "z": np.zeros(2**22, kind)}
        assert size_of_answer(request, outputs) > 2**22
        outputs["y"] = np.zeros(2**20 + 1, kind)
        with pytest.raises(RequestError, match="1048577 values, but at most 1048576 are sent as JSON"):
            size_of_answer(request, outputs)


class TestMemory:
    def test_large_requests_share_it_and_small_ones_always_fit(self) -> None:
        memory = Memory(10 * SMALL)
        first, second, third, again = (memory.share() for _ in range(4))
        first.grow(8 * SMALL)
        second.grow(2 * SMALL)
        with pytest.raises(RequestError, match="other requests use the memory"):
            second.grow(1)
        third.grow(SMALL)
        with pytest.raises(RequestError) as refused:
            third.grow(1)
        assert refused.value.status == 503
        for share in (first, second, third):
            share.release()
        again.grow(10 * SMALL)
