"""Refuses credentials inside URIs: a URI is written to pipeline files, records and logs, which many may read.

Every URI of a user passes `check_no_credentials`: those of the federation file, of options, of run-time parameters and
of the environment. Its error never repeats the URI. `fedpipe.errors` hides what a foreign error may repeat.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from fedpipe.errors import InputError

_AUTHORITY = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*):|^)(?P<slashes>[/\\]{1,2})(?![/\\])(?P<rest>[^?#\s]*)"
)
_BARE = re.compile(r"[^/\\?#@:\s]*:(?![/\\])[^?#@\s]*@")
_NAMES = re.compile(
    r"secret|passw|pwd$|^pass$|token|signature|credential|api.?key|access.?key|^sig$|^auth$|^user(name)?$"
)
"""Names of parameters that carry credentials, in lower case; such as those of presigned URLs."""
_DEPTH = 4
"""Most URIs inside URIs, such as an endpoint in a store's URI."""
REMEDY = "Remove it, and pass it by the environment or a Secret (docs/store.md). Change it if others may have seen it."


def check_no_credentials(uri: str, where: str) -> str:
    """Returns the URI, or the place without a scheme, if it contains no credentials.

    Args:
        uri: as it was typed. A path is a place too: `user:password@host` may be a URI without its scheme.
        where: the key, the option or the variable that has it.

    Raises:
        InputError: it contains a user's name, a password, or a parameter for credentials. The error does not show it.

    >>> check_no_credentials("s3://bucket/prefix?endpoint=https://host:9000", "store")
    's3://bucket/prefix?endpoint=https://host:9000'
    """
    if found := credentials_in(uri, bare=True):
        raise InputError(f"the URI contains {found}", where=where, remedy=REMEDY)
    return uri


def credentials_in(text: str, *, bare: bool = False, depth: int = _DEPTH) -> str:
    """Returns the kind of credentials that a text contains as a URI; empty without.

    Args:
        text: a URI, or a text with one.
        bare: whether `user:password@host` without a scheme counts too.
        depth: how many URIs inside URIs are followed.
    """
    if bare and _BARE.match(text):
        return "a user name or password"
    if any(
        _has_userinfo(found["scheme"] or "", found["slashes"], found["rest"]) for found in _AUTHORITY.finditer(text)
    ):
        return "a user name or password"
    fragment = text.partition("#")[2]
    if fragment and depth and (found := credentials_in(fragment, bare=bare, depth=depth - 1)):
        return found
    base, mark, query = text.partition("?")
    if not mark or ("://" not in base and not bare):
        return ""
    for name, value in parse_qsl(query.partition("#")[0], keep_blank_values=True):
        if _NAMES.search(name.lower()):
            return "a parameter for credentials"
        if depth and (found := credentials_in(value, bare=bare, depth=depth - 1)):
            return found
    return ""


def _has_userinfo(scheme: str, slashes: str, rest: str) -> bool:
    """Returns whether the text after the slashes begins with a user's name or password.

    A password may contain `/`, as keys of AWS do, which ends the authority too early for `urlsplit`.
    """
    if not scheme and len(slashes) < 2:
        return False  # a path
    authority = re.split(r"[/\\]", rest, maxsplit=1)[0]
    if scheme.lower() in ("s3", "gs", "memory"):
        authority = unquote(authority)  # buckets have no escapes
    if scheme.lower() == "file":
        return len(slashes) == 2 and ":" in authority and "@" in authority
    if "@" in authority:
        return True
    if ":" in authority and scheme.lower() in ("s3", "gs", "memory"):
        return True  # buckets have no port
    host, colon, port = authority.rpartition(":")
    is_address = host.startswith("[") or authority.startswith("[")
    decoded = unquote(port)
    return bool(colon) and not is_address and not decoded.isdigit() and ("@" in rest or "@" in decoded)
