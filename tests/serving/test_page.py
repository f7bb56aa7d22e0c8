"""Tests the page at `/` in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait

from fedpipe.registry.card import Card, Spread
from fedpipe.store import LocalStore
from tests.served import Served, onnx_model, patients, publish, serving

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("page")]


def nearest(images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    """Returns a model that finds the image most similar to its input: softmax(x . images / temperature)."""
    flat = images.reshape(len(images), -1)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node("Sub", ["z", "norm"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8, 1])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", len(images)])],
        [
            numpy_helper.from_array(np.ascontiguousarray(flat.T), "w"),
            numpy_helper.from_array((flat**2).sum(axis=1) / 2, "norm"),
        ],
    )
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    spread = Spread(minimum=0, maximum=1, mean=0.3, deviation=0.4)
    return onnx_model(graph, Card(classes=names, spread=spread))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Starts a server of ten digits, with one broken version."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("page")
    digits = (load_digits().images[:10] / 16).astype(np.float32)
    for number, image in enumerate(digits):
        Image.fromarray((image * 255).astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST).save(
            folder / f"{number}.png"
        )
    models = LocalStore(folder / "store").below("models")
    publish(models, "digits", 1, nearest(digits))
    publish(models, "digits", 2, b"<b>broken</b>")
    publish(models, "patients", 1, patients())
    (folder / "token").write_text("s3cret")
    with serving(folder, "--store", f"file://{folder}/store", "--token-file", str(folder / "token")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    """Starts Debian's Chromium, without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        yield driver


def waited(browser: WebDriver, element: str, text: str) -> str:
    """Waits until an element contains a text, and returns its whole text."""
    WebDriverWait(browser, 30).until(lambda b: text in b.find_element(By.ID, element).text)
    return browser.find_element(By.ID, element).text


@pytest.fixture
def page(server: Served, browser: WebDriver) -> WebDriver:
    """Opens the page and enters the token."""
    browser.get_log("browser")  # of pages before
    browser.get(server.url)
    waited(browser, "state", "a valid bearer token is required")
    browser.find_element(By.ID, "token").send_keys("s3cret")
    browser.find_element(By.ID, "enter").click()
    waited(browser, "models", "digits")
    return browser


def test_a_person_tries_a_digit(server: Served, page: WebDriver) -> None:
    row = waited(page, "models", "digits")
    assert "version 1 (the latest version)" in row
    assert "image: FP32 [n, 8, 8, 1]" in row
    assert "version 2: " in row
    for number, name in ((3, "three"), (7, "seven")):
        page.find_element(By.ID, "file").send_keys(str(server.folder / f"{number}.png"))
        assert waited(page, "answer", name).startswith(name)
    assert waited(page, "bars", "seven").startswith("seven")
    messages = [line["message"] for line in page.get_log("browser") if "401" not in line["message"]]
    assert messages == []  # the page's content security policy refused nothing


def test_numbers_and_mistakes(page: WebDriver) -> None:
    row = page.find_element(By.ID, "row")
    mistakes = {"1, 2": "These are 2 numbers, but the model takes 64.", "x " * 64: "Not all of these are numbers."}
    for text, message in mistakes.items():
        row.clear()
        row.send_keys(text)
        page.find_element(By.ID, "ask").click()
        waited(page, "error", message)
    row.clear()
    row.send_keys("0 " * 64)
    page.find_element(By.ID, "ask").click()
    waited(page, "answer", "(version 1,")


def test_a_person_tries_a_row_of_a_table(page: WebDriver) -> None:
    Select(page.find_element(By.ID, "model")).select_by_value("patients")
    fields = page.find_element(By.ID, "fields")
    assert fields.is_displayed()
    assert not page.find_element(By.ID, "row").is_displayed()
    for name, value in (("age", "49"), ("seen", "01-01-1970")):
        fields.find_element(By.NAME, name).send_keys(value)
    Select(fields.find_element(By.NAME, "smoker")).select_by_value("yes")
    Select(fields.find_element(By.NAME, "sex")).select_by_visible_text("m")
    page.find_element(By.ID, "ask").click()
    assert waited(page, "answer", "ill").startswith("ill, 99.3 %")
    Select(fields.find_element(By.NAME, "sex")).select_by_visible_text("missing")
    page.find_element(By.ID, "ask").click()
    assert waited(page, "answer", "ill, 73.1 %")
    fields.find_element(By.NAME, "age").clear()
    page.find_element(By.ID, "ask").click()
    waited(page, "error", "column 'age', row 1: the cell is empty")
    Select(page.find_element(By.ID, "model")).select_by_value("digits")
    assert not fields.is_displayed()
