"""The public keys of an OpenID Connect issuer: fetched, cached, and fetched again when they change.

What is special: nobody can make the service fetch often. A token with an unknown key leads to at most one
fetch in `RETRY` seconds, by one thread, while the others go on with the keys that are there. An issuer that
can't be reached leaves the cached keys valid for `STALE` seconds.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from balancer.serving.http.logs import LOGGER

LOG = logging.getLogger(LOGGER)
REFRESH = 600.0
"""Seconds after which the keys are fetched again. A key that the issuer has withdrawn then stops working."""
RETRY = 10.0
"""Least seconds between two fetches."""
STALE = 86_400.0
"""Seconds for which keys are used that can't be fetched again."""
TIMEOUT = 5.0
"""Seconds that a fetch may take in all."""
_LARGEST = 1_000_000
_LEAST_RSA_BITS = 2048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_BY_KIND: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = tuple(name for names in _BY_KIND.values() for name in names)
"""Algorithms with a public key; a secret that both sides share is never accepted."""
_PUBLIC = ("kty", "crv", "n", "e", "x", "y")


class IssuerKeys:
    """The keys of a JWKS document.

    Args:
        source: An https URL (http on this machine), or a file.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: tuple[Mapping[str, Any], ...] = ()
        self._fetched = self._tried = -float("inf")
        self._fetching, self._first = threading.Lock(), threading.Event()

    @property
    def place(self) -> str:
        """Where the keys come from, for the log: the host of a URL, or the file."""
        return urlsplit(self._source).hostname or self._source if is_url(self._source) else self._source

    @property
    def usable(self) -> bool:
        """Whether there are keys that are not too old."""
        return bool(self._keys) and time.monotonic() - self._fetched < STALE

    def begin(self) -> None:
        """Fetch the keys in a thread, so that the log says at the start whether they are there."""
        threading.Thread(target=self.refresh, daemon=True).start()

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key of a token; the keys are fetched if they are old or have no such key.

        Args:
            kid: Name of the key in the header of the token; None chooses the only key of the algorithm.
            algorithm: Algorithm in the header of the token.
        """
        if self.usable and time.monotonic() - max(self._fetched + REFRESH, self._tried + RETRY) > 0:
            self.begin()  # no request waits for it
        found = self._chosen(kid, algorithm)
        if found is None and self.refresh():
            found = self._chosen(kid, algorithm)
        return found

    def refresh(self) -> bool:
        """Fetch the keys, unless this was tried less than `RETRY` seconds ago or another thread is at it.

        Only the very first fetch is waited for. Failures are logged.

        Returns:
            Whether there may be other keys now.
        """
        if not self._fetching.acquire(blocking=False):
            return not self._first.is_set() and self._first.wait(TIMEOUT + 1)
        try:
            if time.monotonic() - self._tried < RETRY:
                return False
            self._tried = time.monotonic()
            content, why = self._read()
            keys = () if content is None else usable_keys(content)
            if not keys:
                fields = {"source": self.place, "reason": why or "it holds no usable public key"}
                state = "the cached ones stay in use" if self.usable else "tokens are refused until then, keys of balancer keys create work"
                LOG.warning(f"the keys of the issuer can't be fetched; {state}", extra={"fields": fields})
                return False
            self._keys, self._fetched = keys, time.monotonic()
            return True
        finally:
            self._first.set()
            self._fetching.release()

    def _chosen(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if not self.usable:
            return None
        fitting = [key for key in self._keys if algorithm in key["algorithms"] and kid in (None, key["kid"])]
        return fitting[0]["made"][algorithm] if len(fitting) == 1 else None

    def _read(self) -> tuple[Any, str]:
        """The content of the document, or None and why it can't be read."""
        try:
            content = _fetched(self._source) if is_url(self._source) else Path(self._source).read_bytes()
            return json.loads(content), ""
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # the type says enough; the text may quote an address
            return None, type(error).__name__ if not isinstance(error, httpx.HTTPStatusError) else f"status {error.response.status_code}"
        except (ValueError, RecursionError):  # whatever is wrong with it, it is not this document
            return None, "it is not JSON"


def is_url(source: str) -> bool:
    """Whether the keys are at a URL, and not in a file."""
    return source.startswith(("https://", "http://"))


def usable_keys(content: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the public keys of a JWKS document that can check signatures.

    Shared secrets, keys for encryption, RSA keys of less than 2,048 bits and damaged keys are left out.

    Returns:
        For each key its `kid`, its `algorithms`, and a `PyJWK` for each of them in `made`.
    """
    listed = content.get("keys") if isinstance(content, Mapping) else None
    found = []
    for raw in listed if isinstance(listed, list) else ():
        if not isinstance(raw, Mapping) or raw.get("use", "sig") != "sig":
            continue
        kind = raw.get("kty"), raw.get("crv") if raw.get("kty") != "RSA" else None
        allowed = _BY_KIND.get(kind, ()) if all(isinstance(each, str | None) for each in kind) else ()
        names = tuple(name for name in allowed if raw.get("alg") in (None, name))
        with suppress(jwt.PyJWTError, ValueError, TypeError):  # a damaged key is as good as none; the others count
            public = {name: raw[name] for name in _PUBLIC if name in raw}
            made = {name: jwt.PyJWK(public, name) for name in names}
            if made and all(getattr(key.key, "key_size", _LEAST_RSA_BITS) >= _LEAST_RSA_BITS for key in made.values() if kind[0] == "RSA"):
                found.append({"kid": raw.get("kid"), "algorithms": names, "made": made})
    return tuple(found)


def _fetched(url: str) -> bytes:
    """The answer of a server.

    Raises:
        httpx.HTTPError: It can't be reached, or did not answer completely in time with status 200.
    """
    deadline, parts, size = time.monotonic() + TIMEOUT, [], 0
    with httpx.Client(timeout=TIMEOUT) as client, client.stream("GET", url, headers={"Accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise httpx.HTTPStatusError("", request=answer.request, response=answer)
        for part in answer.iter_bytes():
            size += len(part)
            if size > _LARGEST or time.monotonic() > deadline:
                raise httpx.ReadTimeout("too large or too slow", request=answer.request)
            parts.append(part)
    return b"".join(parts)
