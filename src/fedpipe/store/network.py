"""Reaches servers as the environment says: through proxies, and with the certificates of other authorities."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.util import create_urllib3_context

from fedpipe.errors import InputError
from fedpipe.store.bodies import MOST_ANSWER, TooLongError, fetch
from fedpipe.store.concealment import environ

CLIENT_CERTIFICATE = "FEDPIPE_CLIENT_CERTIFICATE"
"""Environment variable: a PEM file with a certificate and its key, for servers that ask clients for one."""
BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables with certificates to trust; all that are set count, and without any those of the system."""


_REFUSED = re.compile("CERTIFICATE_REQUIRED|BAD_CERTIFICATE")
"""Alerts of TLS by which a server refuses a client's certificate."""
_near: set[str] = set()
"""Addresses (`host:port`) on this machine that are behind no proxy, such as those of forwarded ports."""


class RouteError(urllib3.exceptions.HTTPError):
    """A proxy or a certificate prevents a request.

    Args:
        what: the fault, as subject and verb.
        remedy: as an imperative.
        lasting: another try cannot help.
    """

    def __init__(self, what: str, remedy: str, *, lasting: bool) -> None:
        super().__init__(what)
        self.remedy, self.lasting = remedy, lasting


class Proxy(NamedTuple):
    """Holds a proxy's URL without its user, and the value of the header that authenticates to it."""

    url: str
    variable: str
    authorization: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"

    @property
    def headers(self) -> dict[str, str]:
        """Returns the headers of a request to the proxy itself."""
        return {"proxy-authorization": self.authorization} if self.authorization else {}


def find_proxy(url: str) -> Proxy | None:
    """Returns the proxy for a URL, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; lower case wins.

    Raises:
        InputError: the variable does not hold the URL of an HTTP proxy.
    """
    parts = urlsplit(url)
    if parts.netloc in _near:
        return None
    kind = next((kind for kind in (parts.scheme, "all") if _named(kind)), None)
    if kind is None or is_exempt(parts.hostname or "", parts.port, _named("no")):
        return None
    return parse_proxy(_named(kind), f"{kind.upper()}_PROXY")


def _named(kind: str) -> str:
    """Returns what the environment says, before each request: so not by urllib, which reads all of its variables."""
    return os.environ.get(f"{kind}_proxy", os.environ.get(f"{kind.upper()}_PROXY", ""))


@contextlib.contextmanager
def without_proxy(address: str) -> Iterator[None]:
    """Sends the requests to an address (`host:port`) directly in the meantime, whatever the environment says."""
    _near.add(address)
    try:
        yield
    finally:
        _near.discard(address)


def parse_proxy(value: str, variable: str) -> Proxy:
    """Splits a proxy's URL, whose user and password may be percent-encoded. Raises InputError without the URL.

    >>> parse_proxy("http://user:secret@proxy:3128", "HTTP_PROXY")
    Proxy('http://proxy:3128')
    """
    parts = urlsplit(value if "://" in value else f"http://{value}")
    if parts.scheme not in ("http", "https"):
        what = f"{variable} names a proxy of the kind {parts.scheme!r}, which is not supported"
        raise InputError(what, remedy="Use an http:// or https:// proxy.")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path.strip("/"):
        remedy = "Write http://[USER:PASSWORD@]HOST:PORT; encode '/', '#', '?' and '@' in the password, as in %2F."
        raise InputError(f"{variable} is not the URL of a proxy", remedy=remedy)
    host = f"[{host}]" if ":" in host else host
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    encoded = f"Basic {base64.b64encode(user.encode()).decode()}" if parts.username else ""
    return Proxy(f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 80)}", variable, encoded)


def is_exempt(host: str, port: int | None, listed: str) -> bool:
    """Returns whether NO_PROXY lists a host: by name, parent domain, address, network, or with a port.

    >>> is_exempt("minio.data.svc", 9000, "localhost,.svc"), is_exempt("10.1.2.3", None, "10.0.0.0/8")
    (True, True)
    >>> is_exempt("minio.example.org", 9000, "example.com,minio.example.org:9001")
    False
    """
    return any(_covers(entry.lower(), host.lower(), port) for entry in re.split(r"[\s,]+", listed) if entry)


def _covers(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except (ValueError, TypeError):
        pass  # one of them is a name
    found = re.fullmatch(r"(.*?)(?::(\d+))?", entry)
    name, own = (found[1], found[2]) if found and "::" not in entry else (entry, None)
    name = name.strip("[]").removeprefix("*").removeprefix(".")
    return (own is None or int(own) == port) and (host == name or host.endswith(f".{name}"))


def named_bundles(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the files and folders of certificates that the environment names, by the first variable that does."""
    found: dict[str, str] = {}
    for name in BUNDLES:
        if environ.get(name):
            found.setdefault(environ[name], name)
    return {name: path for path, name in found.items()}


def trusted() -> ssl.SSLContext:
    """Returns a context that trusts the certificates of the environment, or those of the system without any.

    Raises:
        InputError: a bundle does not exist, or is not PEM.
    """
    context = create_urllib3_context()
    bundles = named_bundles()
    if not bundles:
        context.load_default_certs()
    for name, path in bundles.items():
        _trust(context, name, path)
    if certificate := environ.get(CLIENT_CERTIFICATE):
        _present(context, certificate)
    return context


def check_certificate(path: str) -> None:
    """Check that a file holds a certificate of a client, and its key. Raises InputError."""
    _present(create_urllib3_context(), path)


def _present(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_cert_chain(path)
    except (ssl.SSLError, OSError) as error:
        why = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it does not hold both"
        raise InputError(
            f"the client's certificate and key cannot be read: {why}", where=path,
            remedy=f"Set {CLIENT_CERTIFICATE} to a PEM file with the certificate and its key.",
        ) from error  # fmt: skip


def trust(path: str) -> None:
    """Check that a file holds certificates to trust. Raises InputError."""
    _trust(create_urllib3_context(), "ca", path)


def _trust(context: ssl.SSLContext, name: str, path: str) -> None:
    remedy = f"Set {name} to a file of certificates in PEM form, or unset it."
    if name == "SSL_CERT_DIR" or Path(path).is_dir():
        folders = [folder for folder in path.split(os.pathsep) if Path(folder).is_dir()]
        if not folders:
            raise InputError(f"the folder that {name} names does not exist", where=path, remedy=remedy)
        for folder in folders:
            context.load_verify_locations(capath=folder)
        return
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise InputError(f"the file that {name} names is not PEM", where=path, remedy=remedy) from error
    except OSError as error:
        what = f"the file that {name} names cannot be read: {error.strerror}"
        raise InputError(what, where=path, remedy=remedy) from error


class Address(NamedTuple):
    """Holds a service's URL without credentials, and the header that has them."""

    url: str
    authorization: str = ""

    def __repr__(self) -> str:
        return f"Address({self.url!r})"


def read_address(text: str) -> Address | None:
    """Splits the URL of a service from the user and password in it; None for anything but http:// and https://.

    >>> read_address("https://user:secret@mlflow.example:5000/")
    Address('https://mlflow.example:5000')
    >>> read_address("sqlite:///mlflow.db")
    """
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or not host or parts.query or parts.fragment:
        return None
    user, at, netloc = parts.netloc.rpartition("@")
    url = f"{parts.scheme.lower()}://{netloc}{parts.path.rstrip('/')}"
    if not at:
        return Address(url)
    name, _, password = user.partition(":")
    return Address(url, basic(unquote(name), unquote(password)))


def basic(user: str, password: str) -> str:
    """Returns the header of a user and a password."""
    return str(urllib3.util.make_headers(basic_auth=f"{user}:{password}")["authorization"])


class Pool(urllib3.PoolManager):
    """Sends each request directly, or through the proxy that the environment names for its host.

    Args:
        direct: never use a proxy, as for the metadata service of a machine.
        most: bytes of an answer that is read at once. No answer is decoded.
        settings: of `urllib3.PoolManager`.

    A request raises RouteError where a proxy or a certificate prevents it, and InputError for a mistake in the
    environment.
    """

    def __init__(self, *, direct: bool = False, most: int = MOST_ANSWER, **settings: Any) -> None:
        super().__init__(**settings)
        self._direct, self._most, self._settings = direct, most, settings
        self._managers: dict[Proxy, urllib3.ProxyManager] = {}
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def urlopen(self, method: str, url: str, redirect: bool = True, **more: Any) -> Any:  # type: ignore[override]
        proxy = None if self._direct else find_proxy(url)
        try:
            if url.lower().startswith("https:"):
                self._secure()
            if proxy is None:
                return fetch(super().urlopen, method, url, redirect, most=self._most, **more)
            response = fetch(self._manager(proxy).urlopen, method, url, redirect, most=self._most, **more)
        except (
            urllib3.exceptions.ProxyError, urllib3.exceptions.SSLError, urllib3.exceptions.MaxRetryError,
            urllib3.exceptions.ProtocolError,
        ) as error:  # fmt: skip
            raise explained(error, urlsplit(url).hostname or url, proxy) from error
        except TooLongError as error:
            raise RouteError(f"{error}", "Check the URL, and what runs there.", lasting=True) from error
        if proxy and response.status == 407:
            response.close()
            raise _asks_for_password(proxy)
        return response

    def _secure(self) -> None:
        """Makes the context of TLS once, when it is needed first."""
        with self._lock:
            if self._context is None:
                self._context = self.connection_pool_kw["ssl_context"] = trusted()

    def _manager(self, proxy: Proxy) -> urllib3.ProxyManager:
        if proxy.url.startswith("https:"):
            self._secure()
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = urllib3.ProxyManager(
                    proxy.url, proxy_headers=proxy.headers, proxy_ssl_context=self._context, **self._settings
                )
            manager = self._managers[proxy]
            if self._context is not None:
                manager.connection_pool_kw["ssl_context"] = self._context
            return manager


def explained(error: Exception, host: str, proxy: Proxy | None = None) -> Exception:
    """Returns a RouteError for the error of a proxy or of a certificate, and any other one as it is."""
    inner = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    if isinstance(inner, urllib3.exceptions.ProxyError) and proxy is not None:
        return _of_proxy(inner.original_error, proxy)
    if isinstance(inner, urllib3.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(inner):
        return _of_certificate(inner, host)
    if isinstance(error, urllib3.exceptions.HTTPError) and _REFUSED.search(str(inner)):
        what = f"{host} asks for a certificate of this client, and does not accept {_presented()}"
        return RouteError(what, f"Set {CLIENT_CERTIFICATE} to a PEM file with it and its key.", lasting=True)
    return error


def _of_proxy(error: Exception, proxy: Proxy) -> RouteError:
    status = re.search(r"Tunnel connection failed: (\d+)", str(error))
    if status and status[1] == "407":
        return _asks_for_password(proxy)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return _of_certificate(error, f"the proxy {proxy.url}")
    remedy = f"Check {proxy.variable}, or list the host in NO_PROXY."
    if status:
        what = f"the proxy {proxy.url} refuses to connect (HTTP {status[1]})"
        return RouteError(what, remedy, lasting=status[1].startswith("4"))
    return RouteError(f"the proxy {proxy.url} does not answer: {reason_of(error)}", remedy, lasting=False)


def _asks_for_password(proxy: Proxy) -> RouteError:
    what = f"the proxy {proxy.url} refuses its user and password (HTTP 407)"
    if not proxy.authorization:
        what = f"the proxy {proxy.url} asks for a user and a password (HTTP 407)"
    return RouteError(what, f"Write USER:PASSWORD@ before the host in {proxy.variable}.", lasting=True)


def _of_certificate(error: Exception, host: str) -> RouteError:
    found = re.search(r"certificate verify failed: (.*?)\.?(?: \(_ssl|$)", str(error))
    why = found[1] if found else "it cannot be verified"
    remedy = "Check the server's certificate."
    if "issuer" in why or "self" in why:
        remedy = f"Set SSL_CERT_FILE to the certificate of its authority. Now trusted: {_trusted_now()}."
    return RouteError(f"the certificate of {host} is not valid: {why}", remedy, lasting=True)


def _presented() -> str:
    return environ.get(CLIENT_CERTIFICATE) or "a request without one"


def _trusted_now() -> str:
    return " and ".join(f"{name}={path}" for name, path in named_bundles().items()) or "the system's authorities"


def via(url: str) -> str:
    """Returns the proxy on the way to a URL, for messages; empty without one."""
    proxy = find_proxy(url)
    return f" through the proxy {proxy.url}" if proxy else ""


def reason_of(error: BaseException) -> str:
    """Returns why a connection failed, in a few words."""
    if isinstance(error, RouteError):
        return str(error)
    text = str(error.reason) if isinstance(error, urllib3.exceptions.MaxRetryError) else str(error)
    return text.split(": ", 1)[-1][:200]


def remedy_of(error: BaseException, default: str) -> str:
    """Returns the remedy of a fault on the way, or the default for any other."""
    return error.remedy if isinstance(error, RouteError) else default
