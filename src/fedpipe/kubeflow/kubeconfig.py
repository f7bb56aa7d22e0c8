"""Reads a kubeconfig: its address, its user, who may log in by a plugin, and the namespace of a context."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from fedpipe.errors import ClusterError, one_line
from fedpipe.kubeflow.where import Where
from fedpipe.suggestion import suggestion


def load_kubeconfig(settings: Any, where: Where) -> str | None:
    """Fills in the client's settings from the kubeconfig; returns its path, None for the default one.

    Args:
        settings: the configuration of a client of Kubernetes or KFP.
        where: its context.

    Raises:
        ClusterError: it lacks the context that was asked for, is malformed, or its user cannot log in.
        ConfigException: there is none.
    """
    from kubernetes import config
    from kubernetes.config import kube_config

    path = os.environ.get("KUBECONFIG") or None  # the client itself reads the variable only once
    used = path or os.path.expanduser(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)  # noqa: PTH111  (may be a list)
    unusable: tuple[type[Exception], ...] = (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError)
    try:
        with _logged_errors() as errors:
            config.load_kube_config(path, context=where.context or None, client_configuration=settings)
    except (config.ConfigException, *unusable) as error:
        if where.context and isinstance(error, config.ConfigException):
            raise _wrong_context(error, where.context, path) from error
        if os.path.exists(used) or (  # noqa: PTH110  (also in a folder that cannot be read)
            path and "KUBERNETES_SERVICE_HOST" not in os.environ
        ):  # a pod needs none
            what = f"the kubeconfig cannot be used: {_reason(error)}"
            raise ClusterError(what, where=used, remedy="Check KUBECONFIG." if path else "Check this file.") from error
        raise
    except Exception as error:  # each provider of identities has errors of its own
        raise _no_login(_reason(error), used) from error
    if errors and not (settings.api_key or settings.cert_file):
        raise _no_login(" ".join(errors[0].split())[:300], used)
    return path


def _reason(error: Exception) -> str:
    """Returns the reason of an error without the user's entry, tokens and all, which the client writes into paths.

    >>> _reason(ValueError("Expected key a in file/{'name': 'u', 'user': {'id-token': 'secret'}}/user/config"))
    'Expected key a in file/user/config'
    """
    return one_line(re.sub(r"/?\{.*\}", "", str(error), flags=re.DOTALL), 300)


def _no_login(why: str, used: str) -> ClusterError:
    """Returns the error of a user of a kubeconfig whose plugin or provider gives no token."""
    remedy = "Install the plugin that it names, such as that of EKS, GKE or AKS, and log in with it."
    return ClusterError(f"the user of the kubeconfig cannot log in: {why}", where=used, remedy=remedy)


def namespace_of(path: str | None, context: str) -> str:
    """Returns the namespace of a context, by default of the current one; empty without one. Raises ConfigException.

    Args:
        path: the kubeconfig; None for the default one.
        context: its name; empty for the current one.
    """
    from kubernetes.config import kube_config

    content = kube_config.KubeConfigMerger(path or kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
    chosen = kube_config.KubeConfigLoader(content, active_context=context or None).current_context
    return str(chosen["context"].get("namespace", ""))


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collects what is logged meanwhile, which is all that the client says about a plugin that failed."""
    logged: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    disabled, handlers = logging.root.manager.disable, logging.root.handlers
    logging.disable(logging.WARNING)
    logging.root.handlers = [Collecting()]
    try:
        yield logged
    finally:
        logging.root.handlers = handlers
        logging.disable(disabled)


def _wrong_context(error: Exception, context: str, path: str | None) -> ClusterError:
    """Returns the error of a context that the kubeconfig lacks, with the closest name or all names."""
    from kubernetes import config

    names: list[str] = []
    with contextlib.suppress(config.ConfigException):
        names = [str(one["name"]) for one in config.list_kube_config_contexts(path)[0]]
    if not names or context in names:
        remedy = "Check --context and KUBECONFIG."
        return ClusterError(_reason(error), where=path or "kubeconfig", remedy=remedy)
    what = f"the kubeconfig has no context {context!r}"
    return ClusterError(what, where="--context", remedy=suggestion(context, names, listed="Choose one of"))
