"""Types are decoded by several threads at once, first thing in a process."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fedpipe import codec

_PROGRAM = Path(__file__).parent / "first_decoding.py"
_REPRODUCER = Path(__file__).parents[1] / "docs/decisions/0005-types-are-described-under-a-lock.md"


def test_every_struct_type_survives_its_first_decoding_in_threads():
    done = subprocess.run([sys.executable, str(_PROGRAM)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    names = done.stdout.split()
    assert len(names) > 60
    assert {"Federation", "Plan", "Record", "Board", "Enrolled", "Card", "Inputs", "Trial"} <= set(names)


def test_the_example_of_the_decision_shows_the_bug_of_msgspec():
    """When it no longer crashes, msgspec is mended, and the lock may go."""
    code = _REPRODUCER.read_text().split("```python\n")[1].split("```")[0]
    limits = (resource.RLIMIT_CORE, (0, 0))
    assert any(
        subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: resource.setrlimit(*limits)).returncode == -11
        for _ in range(200)  # threads race for it, and one of a busy machine may win
    )


class Point(msgspec.Struct):
    x: int
    inner: "Point | None" = None


def test_a_decoder_is_built_once():
    assert codec.decoder(Point) is codec.decoder(Point)
    assert codec.decoder(list[Point]) is codec.decoder(list[Point])


def test_values_become_types():
    assert codec.from_json(b'{"x": 1, "inner": {"x": 2}}', Point) == Point(1, Point(2))
    assert codec.from_json('[{"x": 1}]', list[Point]) == [Point(1)]
    assert codec.read_json(b'{"x": [1, null]}') == {"x": [1, None]}
    assert codec.converted({"x": 3}, Point) == Point(3)
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str` - at `\$\.x`"):
        codec.converted({"x": "3"}, Point)
    with pytest.raises(msgspec.DecodeError):
        codec.from_json(b"{", Point)


def test_a_forked_process_can_decode():
    child = os.fork()
    if not child:
        os._exit(0 if codec.from_json(b"[1]", list[int]) == [1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
