"""Tests requests of one version: alone, in threads, or in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fedpipe.registry.prediction import open_model
from fedpipe.registry.publication import ModelVersion
from fedpipe.serving.runner import Batching, Runner
from fedpipe.serving.runtime import Loaded, try_model
from fedpipe.serving.tensors import RequestError
from tests.served import X, slow, softmax

EXPECTED = open_model(softmax()).run({"x": X})[0]


def runner(data: bytes = softmax(), *, batching: Batching | None = None, seconds: float = 30, **more: Any) -> Runner:
    model = open_model(data)
    loaded = Loaded(ModelVersion("m", 1), model, try_model(model))
    return Runner(loaded, ThreadPoolExecutor(2), batching=batching or Batching(), seconds=seconds, **more)


def together(*requests: Coroutine[Any, Any, Any]) -> list[Any]:
    async def main() -> list[Any]:
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(main())


def test_the_answer_is_onnxruntimes() -> None:
    (found,) = together(runner().run({"x": X}))
    np.testing.assert_array_equal(found["p"], EXPECTED)


def test_requests_that_wait_for_each_other_are_one_run() -> None:
    rows: list[int] = []
    batched = runner(batching=Batching(100, 0.05), on_run=rows.append)
    found = together(*(batched.run({"x": X[k : k + 1]}) for k in range(7)))
    np.testing.assert_allclose(np.concatenate([one["p"] for one in found]), EXPECTED, rtol=1e-6)
    assert rows == [7]


def test_a_full_batch_does_not_wait() -> None:
    rows: list[int] = []
    batched = runner(batching=Batching(3, 3600), on_run=rows.append)
    found = together(*(batched.run({"x": X[k : k + 1]}) for k in range(6)))
    assert rows == [3, 3]
    np.testing.assert_allclose(np.concatenate([one["p"] for one in found]), EXPECTED[:6], rtol=1e-6)


def test_a_request_that_no_longer_fits_begins_the_next_batch() -> None:
    rows: list[int] = []
    batched = runner(batching=Batching(4, 0.02), on_run=rows.append)
    found = together(batched.run({"x": X[:3]}), batched.run({"x": X[3:5]}), batched.run({"x": X}))
    assert sorted(rows) == [2, 3, 7]
    for one, expected in zip(found, (EXPECTED[:3], EXPECTED[3:5], EXPECTED), strict=True):
        np.testing.assert_allclose(one["p"], expected, rtol=1e-6)


def test_a_run_that_takes_too_long_is_ended_and_its_thread_is_free_again() -> None:
    patient = runner(slow(), seconds=0.3)

    async def main() -> tuple[Any, Any]:
        with pytest.raises(RequestError, match=r"did not answer within 0\.3 s") as refused:
            await patient.run({"times": np.int64([10**7])})
        assert refused.value.status == 504
        await asyncio.sleep(0.3)
        started = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(patient.run({"times": np.int64([1])}) for _ in range(2)))
        return found, asyncio.get_running_loop().time() - started

    found, seconds = asyncio.run(main())
    assert all(one["y"].shape == (1,) for one in found)
    assert seconds < 5


def test_an_input_that_the_model_refuses() -> None:
    (found,) = together(runner().run({"x": X[:, :3]}))
    assert isinstance(found, RequestError)
    assert "the model fails on this input" in str(found)
