"""Large tables: what reading one takes, and where it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedpipe.data import claims
from fedpipe.data.sheets import read_sheet
from fedpipe.data.texts import Texts
from fedpipe.errors import DataError

READ = """
import resource, sys
from pathlib import Path
import pyarrow
from fedpipe.data.tables import read_table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = read_table(Path(sys.argv[1]), "auto", "y")
print(len(table.y), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_reading_a_csv_file_takes_about_three_times_its_bytes(tmp_path: Path) -> None:
    random, path, count = np.random.default_rng(0), tmp_path / "d.csv", 200_000
    numbers = np.round(random.normal(70, 10, (count, 6)), 4)
    with path.open("w") as file:
        file.write("a,b,c,d,e,f,sex,admitted,y\n")
        for k, row in enumerate(numbers.tolist()):
            file.write(f"{','.join(map(str, row))},{'mf'[k % 2]},20{10 + k % 15}-0{1 + k % 9}-11,{'ab'[k % 2]}\n")
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    rows, taken = map(int, done.stdout.split())
    assert rows == count
    assert taken < 3.5 * path.stat().st_size


def test_a_table_of_many_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "free_memory", lambda: 2**33)
    path = tmp_path / "d.csv"
    path.write_text("a,y\n1,2\n")
    os.truncate(path, 5 * 2**30)  # a hole, which takes no space
    with pytest.raises(DataError, match=r"needs 15\.0 GiB of memory, but 8\.0 GiB are free"):
        read_sheet(path)


def test_texts_are_a_sequence_over_blocks() -> None:
    cells = [f"ä{k}" * (k % 3) for k in range(25)]
    column = Texts()
    for begin in range(0, 25, 10):
        column.extend(cells[begin : begin + 10])
    assert len(column) == 25
    assert list(column) == cells
    assert [column[k] for k in range(-25, 25)] == cells + cells
    assert column[3:12] == cells[3:12]
    assert cells[4] in column
    with pytest.raises(IndexError):
        column[25]


def test_a_separator_is_found_although_a_quoted_cell_ends_the_sample(tmp_path: Path) -> None:
    lines = [f"{k};x" for k in range(48)] + ['50;"two', 'lines"', "51;y"]
    (tmp_path / "d.csv").write_text("\n".join(["a;b", *lines]))
    sheet = read_sheet(tmp_path / "d.csv")
    assert sheet.names == ("a", "b")
    assert list(sheet.cells("b"))[-2:] == ["two\nlines", "y"]
    assert list(sheet.lines or ())[-2:] == [50, 52]


def test_a_row_of_another_length_is_named_in_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a,b\n" + "1,2\n" * 150_000 + "1,2,3\n")
    with pytest.raises(DataError, match=r"row 150001 \(line 150002\) has 3 cells, not 2 as the header has"):
        read_sheet(path)
