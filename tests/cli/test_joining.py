"""The commands by which sites join, as users type them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result
from tests.commands.test_joining import write_file


def test_says_what_is_next(fedpipe: Callable[..., Result], tmp_path: Path) -> None:
    write_file(Path(), str(tmp_path / "store"))
    done = fedpipe("invite", "b", "--expires", "12h")
    assert done.code == 0
    assert re.search(r"wrote b\.invitation\.yaml: secret, works once, until \d{4}-", done.out)
    assert "next, at the site: fedpipe site join b.invitation.yaml" in done.out
    assert done.out.endswith("and here: fedpipe enroll --requests\n")
    other = write_file(tmp_path / "office", str(tmp_path / "store"))
    assert fedpipe("invite", "c", "-f", other, "-o", "c.yaml").out.endswith(f"enroll --requests -f {other}\n")
    assert fedpipe("invite", "c", "--withdraw").code == 0
    assert "note: b is a pod of the pipeline now; in the federation file, write {name: b, at: site}" in done.err
    assert fedpipe("enroll", "--requests").out.split()[-3:] == ["no", "request", "yet"]

    Path("hospital").mkdir()
    waits = fedpipe("site", "join", "b.invitation.yaml", "-c", "hospital/site.yaml", "--wait", "0")
    assert waits.code == 2
    assert "there is no answer yet: it waits for the administrator of tiny" in waits.err
    assert "Run the same command again to continue." in waits.err
    listed = fedpipe("enroll", "--requests")
    assert re.search(r"b +joins +[0-9a-f-]{26} .* fits its", listed.out)
    (row,) = json.loads(fedpipe("enroll", "--requests", "--json").out)
    assert (row["learner"], row["kind"], row["why"]) == ("b", "join", "")
    assert row["key"] in listed.out

    assert f"b (joins, key {row['key']}) is accepted" in fedpipe("enroll", "--requests", "--accept", "b").out
    done = fedpipe("site", "join", "b.invitation.yaml", "-c", "hospital/site.yaml")
    assert done.code == 0, done.err
    assert f"b has joined tiny; its key is {row['key']}" in done.out
    assert "wrote hospital/site.yaml" in done.out
    assert "enrolment: enrolled" in fedpipe("site", "status", "-c", "hospital/site.yaml").out
    assert "there are no requests" in fedpipe("enroll", "--requests").out
    assert "b has no invitation" not in fedpipe("invite", "b", "--withdraw").out


def test_a_key_of_a_site_that_is_made_here_is_remarked(fedpipe: Callable[..., Result], tmp_path: Path) -> None:
    path = write_file(Path(), str(tmp_path / "store"))
    path.write_text(path.read_text().replace("- name: b\n", "- {name: b, at: site}\n"))
    for command in ("enroll", "rotate"):
        done = fedpipe(command, "b")
        assert done.code == 0, done.err
        assert "this machine has the private key of a site: carry it there, and delete it here" in done.out
        assert "by `fedpipe invite` or `fedpipe site rotate`, the site makes the key itself" in done.out
        assert "private key of a site" not in fedpipe(command, "a").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("invite bb", "there is no learner 'bb'. Did you mean 'b'?"),
        ("invite b --expires soon", "--expires: 'soon' is not an age. Write minutes, hours, days or weeks"),
        ("invite b --expires 30d", "--expires: an invitation lives for at most 7 days"),
        ("enroll b --requests", "specify a learner or --requests"),
        ("enroll --requests --accept b --refuse c", "--accept and --refuse exclude each other"),
        ("enroll --requests --why x", "--why is the reason of a refusal. Use it with --refuse SITE."),
        (
            "enroll --requests --watch --access-key k --secret-key-file federation.yaml",
            "keys of the store are for one site",
        ),
        ("enroll --requests", "there is no key of the administrator"),
        ("site join absent.yaml", "absent.yaml: cannot be read: No such file or directory. Name the file"),
        ("site join federation.yaml", "federation.yaml: is not an invitation, because"),
        ("site rotate", "site.yaml: cannot be read"),
    ],
)
def test_mistakes(arguments: str, message: str, fedpipe: Callable[..., Result], tmp_path: Path) -> None:
    write_file(Path(), str(tmp_path / "store"))
    done = fedpipe(*arguments.split())
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_name_that_has_not_asked(fedpipe: Callable[..., Result], tmp_path: Path) -> None:
    write_file(Path(), str(tmp_path / "store"))
    fedpipe("invite", "b")
    done = fedpipe("enroll", "--requests", "--accept", "b")
    assert done.code == 2
    assert "'b' has not asked to join. There are no open requests." in done.err
