"""Tests requests of one version: alone, in threads, or in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

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
    pool = more.pop("pool", None) or ThreadPoolExecutor(2)
    return Runner(loaded, pool, batching=batching or Batching(), seconds=seconds, **more)


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
    pool = ThreadPoolExecutor(1)
    patient, next_ = runner(slow(), pool=pool, seconds=0.3), runner(slow(), pool=pool, seconds=60)

    async def main() -> Any:
        with pytest.raises(RequestError, match=r"did not answer within 0\.3 s") as refused:
            await patient.run({"times": np.int64([10**7])})
        assert refused.value.status == 504
        return await next_.run({"times": np.int64([1])})

    assert asyncio.run(main())["y"].shape == (1,)


def test_an_input_that_the_model_refuses() -> None:
    (found,) = together(runner().run({"x": X[:, :3]}))
    assert isinstance(found, RequestError)
    assert "the model fails on this input" in str(found)


class TestQuickModels:
    """Their small requests are answered in the thread of the requests."""

    @pytest.fixture(autouse=True)
    def _loaded_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run of microseconds may take a while where many tests run."""
        monkeypatch.setattr("fedpipe.serving.runner._QUICK", 0.02)

    async def warm(self, one: Runner, feed: dict[str, np.ndarray]) -> None:
        """A slow moment of the machine delays the time at which a model counts as quick."""
        for _ in range(1000):
            if one._is_quick(feed):
                return
            await one.run(feed)
        raise AssertionError("the model never was quick")

    def test_no_other_thread_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedpipe.serving.runner._AT_MOST", 60.0)
        rows: list[int] = []
        pool = ThreadPoolExecutor(1)
        quick = runner(pool=pool, on_run=rows.append)

        async def main() -> Any:
            await self.warm(quick, {"x": X})
            pool.shutdown()
            rows.clear()
            found = await quick.run({"x": X})
            with pytest.raises(RequestError, match="cannot schedule"):
                await quick.run({"x": np.zeros((2000, 4), np.float32)})  # 32 kB
            return found

        np.testing.assert_array_equal(asyncio.run(main())["p"], EXPECTED)
        assert rows == [7, 2000]

    def test_whole_numbers_may_count_loops(self) -> None:
        pool = ThreadPoolExecutor(1)
        looping, feed = runner(slow(), pool=pool), {"times": np.int64([0])}

        async def main() -> None:
            for _ in range(20):
                await looping.run(feed)
            pool.shutdown()
            with pytest.raises(RequestError, match="cannot schedule"):
                await looping.run(feed)

        asyncio.run(main())

    @pytest.mark.parametrize(("times", "seconds"), [(1000, 600.0), (10**7, 0.5)])
    def test_one_that_turns_slow_does_not_block_the_others(self, times: int, seconds: float) -> None:
        """It begins again in a thread of its own, with its whole time limit; afterwards the model is not quick."""
        turning, feed = runner(slow(TensorProto.FLOAT), seconds=seconds), {"times": np.float32([0])}
        gaps: list[float] = []

        async def beat() -> None:
            loop = asyncio.get_running_loop()
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                gaps.append(loop.time() - before)

        async def main() -> Any:
            await self.warm(turning, feed)
            heart = asyncio.create_task(beat())
            try:
                return await turning.run({"times": np.float32([times])})
            finally:
                heart.cancel()
                assert not turning._is_quick(feed)

        if times == 1000:
            assert asyncio.run(main())["y"].shape == (1,)
        else:
            with pytest.raises(RequestError, match=r"did not answer within 0\.5 s"):
                asyncio.run(main())
        assert len(gaps) > 2  # the others continued while it ran

    def test_an_input_that_the_model_refuses(self) -> None:
        quick = runner()

        async def main() -> None:
            await self.warm(quick, {"x": X})
            with pytest.raises(RequestError, match="the model fails on this input"):
                await quick.run({"x": X[:, :3]})
            assert quick._is_quick({"x": X})

        asyncio.run(main())

    def test_an_answer_with_too_many_bytes(self) -> None:
        quick = runner(most=50)

        async def main() -> None:
            await self.warm(quick, {"x": X[:2]})
            with pytest.raises(RequestError, match="more than 50 bytes") as refused:
                await quick.run({"x": X})
            assert refused.value.status == 413

        asyncio.run(main())
