"""The federation's bulletin board, which holds its weights, manifests and HEAD."""

from __future__ import annotations

from fedpipe.store.base import SECRET_DIR, SMALL, Blob, Entry, Reader, Store, is_safe
from fedpipe.store.local import LocalStore
from fedpipe.store.memory import MemoryStore
from fedpipe.store.places import file_uri, is_uri, path_of, suffix_of
from fedpipe.store.uri import check_folder, check_uri, chosen_uri, endpoint_of, open_store, with_endpoint

__all__ = [
    "SECRET_DIR", "SMALL", "Blob", "Entry", "LocalStore", "MemoryStore", "Reader", "Store", "check_folder", "check_uri",
    "chosen_uri", "endpoint_of", "file_uri", "is_safe", "is_uri", "open_store", "path_of", "suffix_of", "with_endpoint",
]  # fmt: skip
