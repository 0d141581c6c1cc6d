"""Bearer tokens of an OpenID Connect issuer, beside the keys of `balancer keys`.

A token is a signed JSON Web Token. Its signature must be of one of the issuer's public keys, and its claims
must name the issuer, this service as audience, a subject, an end, and a tenant. What it allows is in the
claims `scope`, `scp` and `roles`, by the names of `balancer.serving.storage.keys.SCOPES`. A token can't be
revoked here: it works until its end.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jwt

from balancer.serving.http.issuer_keys import ALGORITHMS, IssuerKeys
from balancer.serving.http.logs import LOGGER
from balancer.serving.storage.keys import SCOPES, TENANT, Key

LOG = logging.getLogger(LOGGER)
LEEWAY = 30
"""Seconds by which the clocks of issuer and service may differ."""
LONGEST = 16_384
"""Most characters of a token."""
SCOPE_CLAIMS = ("scope", "scp", "roles")
PREFIX = "balancer:"
"""A scope may be written with it, where the issuer names scopes of many services."""
_LONGEST_ID = 100
WRONG = "the token is wrong or has expired; get another one from its issuer"
"""The error for a token that is not accepted."""


class _Missing(NamedTuple):
    """A claim that a token with a valid signature lacks."""

    claim: str


class TokenVerifier:
    """Checks tokens.

    Args:
        issuer: The claim `iss`, exactly.
        audience: What the claim `aud` must be or contain.
        jwks: URL or file of the public keys.
        tenant_claim: Name of the claim with the tenant.
    """

    def __init__(self, issuer: str, audience: str, jwks: str, tenant_claim: str = "tenant") -> None:
        self._issuer, self._audience, self._tenant_claim = issuer, audience, tenant_claim
        self.keys = IssuerKeys(jwks)

    @property
    def refusal(self) -> str | None:
        """Why all tokens are refused now, whether they are right or wrong; None while they can be checked."""
        if self.available:
            return None
        return "tokens can't be checked, because the keys of the issuer can't be fetched; keys of balancer keys create work"

    @property
    def available(self) -> bool:
        """Whether the keys of the issuer are here."""
        return self.keys.usable

    def verify(self, token: str) -> Key | None:
        """Return what a token allows, as a key; None for a token that is not accepted. The log says why."""
        found = self.key_or_refusal(token)
        return found if isinstance(found, Key) else None

    def key_or_refusal(self, token: str) -> Key | str:
        """Return what a token allows, or the error for its sender.

        The error names a claim that is missing from a token with the issuer's signature, and says nothing
        else about a token. The log says more.
        """
        found = self._checked(token)
        if isinstance(found, Key):
            return found
        reason = f"it has no claim {found.claim}" if isinstance(found, _Missing) else found
        LOG.info("a token was refused", extra={"fields": {"reason": reason}})
        if isinstance(found, _Missing):
            return f"the token has no claim {found.claim!r}; have its issuer add it"
        return WRONG

    def _checked(self, token: str) -> Key | str | _Missing:
        """The key, or in a few words why there is none."""
        if len(token) > LONGEST or not token.isascii() or token.count(".") != 2:
            return "it is no token of an issuer"
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in ALGORITHMS:
                return "its algorithm is not accepted"
            key = self.keys.find(header.get("kid"), algorithm)
            if key is None:
                return "its key is not among those of the issuer" if self.available else "the keys of the issuer are not available"
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.MissingRequiredClaimError as error:
            return _Missing(str(error.claim))
        except jwt.PyJWTError as error:
            return type(error).__name__  # its text may quote the token
        except (ValueError, TypeError, OverflowError, RecursionError):  # odd values where the library expects numbers or texts
            return "it can't be read"
        tenant = claims.get(self._tenant_claim)
        if tenant is None:
            return _Missing(self._tenant_claim)
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            return f"its claim {self._tenant_claim} names no tenant"
        if not isinstance(claims["sub"], str) or not claims["sub"]:
            return "it names no subject"
        return Key(_identifier(claims["sub"]), tenant, "", granted(claims))


def granted(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the scopes from the claims of a token: texts separated by spaces, or lists.

    Other names are ignored.
    """
    named: set[str] = set()
    for claim in SCOPE_CLAIMS:
        value = claims.get(claim)
        listed = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
        named |= {each.removeprefix(PREFIX) for each in listed if isinstance(each, str)}
    return tuple(scope for scope in SCOPES if scope in named)


def _identifier(subject: str) -> str:
    """The subject as it is stored with decisions; a long or unprintable one is replaced by its digest."""
    name = f"oidc:{subject}"
    return name if len(name) <= _LONGEST_ID and name.isprintable() else f"oidc:{hashlib.sha256(subject.encode()).hexdigest()}"
