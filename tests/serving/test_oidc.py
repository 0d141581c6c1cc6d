"""Tokens of an issuer beside keys: which are refused, the issuer's keys, tenants and scopes over HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient

from balancer.cli import main
from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.http import issuer_keys
from balancer.serving.http.app import create_app
from balancer.serving.http.issuer_keys import IssuerKeys, usable_keys
from balancer.serving.http.oidc import LONGEST, TokenVerifier
from balancer.serving.storage import keys
from balancer.serving.storage.keys import Key
from tests.serving.tools import opened

ISSUER, AUDIENCE = "https://login.bank.example", "balancer"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()


def jwk(private: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    public = private.public_key()
    kind: Any = jwt.algorithms.RSAAlgorithm if isinstance(private, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    kind = jwt.algorithms.OKPAlgorithm if isinstance(private, ed25519.Ed25519PrivateKey) else kind
    made: dict[str, Any] = json.loads(kind.to_jwk(public))
    made.pop("key_ops", None)
    return made | ({} if kid is None else {"kid": kid}) | more


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 300, "iat": now, "tenant": "bank", "scope": "score openid"}
    return {name: value for name, value in (given | changes).items() if value is not None}


def token(content: dict[str, Any] | None = None, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one") -> str:
    return jwt.encode(claims() if content is None else content, key, algorithm, headers={} if kid is None else {"kid": kid})


class Issuer:
    """A server with a JWKS document."""

    def __init__(self) -> None:
        self.document: Any = {"keys": [jwk(RSA, "one"), jwk(CURVE, "two"), jwk(EDWARDS, "three")]}
        self.asked, self.status, self.wait = 0, 200, 0.0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                time.sleep(issuer.wait)
                content = issuer.document if isinstance(issuer.document, bytes) else json.dumps(issuer.document).encode()
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    if issuer.thread.is_alive():
        issuer.stop()


@pytest.fixture
def verifier(issuer: Issuer) -> TokenVerifier:
    return TokenVerifier(ISSUER, AUDIENCE, issuer.url)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "one"), (RSA, "PS512", "one"), (CURVE, "ES256", "two"), (EDWARDS, "EdDSA", "three"), (CURVE, "ES256", None)],
)
def test_a_token_of_the_issuer_is_a_key(verifier: TokenVerifier, key: Any, algorithm: str, kid: str | None) -> None:
    assert verifier.verify(token(key=key, algorithm=algorithm, kid=kid)) == Key("oidc:alice", "bank", "", ("score",))


def forged(algorithm: str, secret: bytes | None) -> str:
    """A token that is signed with a shared secret, or not at all."""

    def part(content: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")

    signed = part({"alg": algorithm, "kid": "one", "typ": "JWT"}) + b"." + part(claims())
    signature = b"" if secret is None else base64.urlsafe_b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).rstrip(b"=")
    return (signed + b"." + signature).decode()


PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
NOW = int(time.time())


@pytest.mark.parametrize(
    "made",
    [
        lambda: token(key=OTHER),
        lambda: token()[:-8] + "AAAAAAAA",
        lambda: forged("none", None),
        lambda: forged("None", None),
        lambda: forged("HS256", PEM),
        lambda: forged("HS256", json.dumps(jwk(RSA, "one")).encode()),
        lambda: forged("RS256", PEM),
        lambda: token(claims(exp=NOW - 120)),
        lambda: token(claims(exp=None)),
        lambda: token(claims(exp="soon")),
        lambda: token(claims(exp=float("inf"))),
        lambda: token(claims(nbf=NOW + 900)),
        lambda: token(claims(aud="other")),
        lambda: token(claims(aud=None)),
        lambda: token(claims(aud=["other", AUDIENCE + "2"])),
        lambda: token(claims(iss=ISSUER + "/")),
        lambda: token(claims(iss=None)),
        lambda: token(claims(sub=None)),
        lambda: token(claims(sub="")),
        lambda: token(claims(tenant=None)),
        lambda: token(claims(tenant="")),
        lambda: token(claims(tenant=["bank"])),
        lambda: token(claims(tenant="a b")),
        lambda: token(claims(tenant="bank\x00")),
        lambda: token(claims(tenant=True)),
        lambda: token(kid="unknown"),
        lambda: token(key=CURVE, algorithm="ES256", kid="one"),
        lambda: token(kid="two"),
        lambda: jwt.encode(claims(), RSA, "RS256", headers={"kid": "one", "crit": ["x"], "x": 1}),
        lambda: "a.b.c",
        lambda: "..",
        lambda: "é.é.é",
        lambda: token(claims(more="x" * LONGEST)),
        lambda: token() + ".x",
        lambda: base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.e30",
    ],
)
def test_a_wrong_token_is_refused_and_raises_nothing(verifier: TokenVerifier, made: Callable[[], str]) -> None:
    assert verifier.verify(made()) is None
    assert verifier.verify(token()) is not None


def test_clocks_may_differ_a_little_and_an_audience_may_be_one_of_many(verifier: TokenVerifier) -> None:
    assert verifier.verify(token(claims(exp=int(time.time()) - 10, nbf=int(time.time()) + 10, aud=["other", AUDIENCE]))) is not None


@pytest.mark.parametrize(
    ("given", "scopes"),
    [
        ({"scope": "openid score admin"}, ("score", "admin")),
        ({"scope": None, "scp": ["balancer:operator", "x"]}, ("operator",)),
        ({"scope": None, "roles": ["sessions", 7, "score"]}, ("score", "sessions")),
        ({"scope": "score", "roles": "admin"}, ("score", "admin")),
        ({"scope": "everything"}, ()),
        ({"scope": 7}, ()),
    ],
)
def test_scopes_come_from_three_claims(verifier: TokenVerifier, given: dict[str, Any], scopes: tuple[str, ...]) -> None:
    found = verifier.verify(token(claims(**given)))
    assert found is not None and found.scopes == scopes


def test_the_claim_of_the_tenant_has_a_name_and_a_long_subject_a_digest(issuer: Issuer) -> None:
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url, "https://bank.example/unit")
    found = verifier.verify(token(claims(sub="s" * 500) | {"https://bank.example/unit": "east", "tenant": "west"}))
    assert found is not None and found.tenant == "east"
    assert found.id == f"oidc:{hashlib.sha256(b's' * 500).hexdigest()}"
    other = verifier.verify(token(claims(sub="a\x00b") | {"https://bank.example/unit": "east"}))
    assert other is not None and "\x00" not in other.id


def test_new_keys_are_fetched_but_not_often(issuer: Issuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verifier.verify(token()) is not None
    issuer.document = {"keys": [jwk(RSA, "one"), jwk(OTHER, "new")]}
    for number in range(20):
        assert verifier.verify(token(kid=f"unknown-{number}")) is None
    assert verifier.verify(token(key=OTHER, kid="new")) is None  # not yet
    assert issuer.asked == 1
    monkeypatch.setattr(issuer_keys, "RETRY", 0.0)
    assert verifier.verify(token(key=OTHER, kid="new")) is not None
    assert issuer.asked == 2
    # A key that was withdrawn stops working after the next fetch, which no request waits for.
    issuer.document = {"keys": [jwk(OTHER, "new")]}
    monkeypatch.setattr(issuer_keys, "REFRESH", 0.0)
    verifier.verify(token())
    for _ in range(500):
        if verifier.verify(token()) is None:
            break
        time.sleep(0.01)
    assert verifier.verify(token()) is None


def test_an_issuer_that_is_away_leaves_the_cached_keys_for_a_day(
    issuer: Issuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert verifier.verify(token()) is not None
    monkeypatch.setattr(issuer_keys, "RETRY", 0.0)
    for document, status in ((b"{", 200), ({"keys": []}, 200), ({"keys": [jwk(OTHER, "one")]}, 500), (b" " * 1_100_000, 200)):
        issuer.document, issuer.status = document, status
        assert verifier.verify(token(kid="unknown")) is None
        assert verifier.verify(token()) is not None
    issuer.stop()
    assert verifier.verify(token(kid="unknown")) is None
    assert verifier.verify(token()) is not None
    assert verifier.available
    lines = [record for record in caplog.records if "can't be fetched; the cached ones stay in use" in record.getMessage()]
    reasons = [record.fields["reason"] for record in lines]  # type: ignore[attr-defined]
    assert reasons[-5:] == ["it is not JSON", "it holds no usable public key", "status 500", "ReadTimeout", "ConnectError"]
    monkeypatch.setattr(issuer_keys, "STALE", 0.0)
    assert verifier.verify(token()) is None
    assert "can't be fetched" in (verifier.refusal or "")
    assert "eyJ" not in caplog.text


def test_a_slow_issuer_holds_one_request_and_not_for_long(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer_keys, "TIMEOUT", 0.3)
    issuer.wait = 2.0
    found = IssuerKeys(issuer.url)
    began = time.monotonic()
    threads = [threading.Thread(target=found.find, args=("one", "RS256")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 1.8
    assert issuer.asked == 1
    began = time.monotonic()
    assert found.find("one", "RS256") is None
    assert time.monotonic() - began < 0.2


def test_only_public_keys_for_signatures_are_used() -> None:
    small = jwk(rsa.generate_private_key(65537, 1024), "small")
    content = {
        "keys": [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
            jwk(RSA, "encryption", use="enc"),
            jwk(RSA, "named", alg="PS256", use="sig"),
            jwk(RSA, "wrong", alg="HS256"),
            small,
            {"kty": "RSA", "n": 7, "kid": "damaged"},
            {"kty": ["RSA"]},
            "text",
        ]
    }
    assert [(key["kid"], key["algorithms"]) for key in usable_keys(content)] == [("named", ("PS256",))]
    assert usable_keys([]) == usable_keys({"keys": "x"}) == usable_keys(None) == ()


def config_of(database: str, jwks: str) -> ServeConfig:
    return ServeConfig(database=database, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks=jwks)


def test_tokens_and_keys_work_side_by_side(tmp_path: Path) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [jwk(RSA, "one")]}))
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    own = keys.create(database, "bank", ("sessions",))[1]
    with TestClient(create_app(config_of(database.shown, str(jwks)))) as client:

        def asked(bearer: str | None) -> Any:
            return client.get("/v1/sessions", headers={} if bearer is None else {"Authorization": f"Bearer {bearer}"})

        assert asked(None).status_code == 401
        allowed = token(claims(scope="sessions"))
        client.post("/v1/sessions", json={"classes": {"a": 9, "b": 1}, "epochs": 2}, headers={"Authorization": f"Bearer {allowed}"})
        assert len(asked(allowed).json()["sessions"]) == len(asked(own).json()["sessions"]) == 1
        assert asked(token(claims(scope="sessions", tenant="other"))).json()["sessions"] == []
        refused = asked(token())
        assert refused.status_code == 403 and "it has score" in refused.json()["error"]
        assert asked(token(claims(scope=""))).json()["error"].endswith("it has none")
        wrong = asked(token(key=OTHER))
        assert wrong.status_code == 401 and "get another one from its issuer" in wrong.json()["error"]
        for claim in ("tenant", "sub", "aud", "iss", "exp"):
            lacks = asked(token(claims(scope="sessions", **{claim: None})))
            assert (lacks.status_code, lacks.json()["error"]) == (401, f"the token has no claim {claim!r}; have its issuer add it")
            forged = asked(token(claims(scope="sessions", **{claim: None}), key=OTHER))
            assert forged.json() == wrong.json()  # nothing is said about a token of somebody else
    database.close()


def test_without_the_keys_of_the_issuer_keys_work_and_tokens_may_be_sent_again(issuer: Issuer, tmp_path: Path) -> None:
    issuer.status = 404
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    with TestClient(create_app(config_of(database.shown, issuer.url))) as client:
        answer = client.get("/v1/sessions", headers={"Authorization": f"Bearer {token()}"})
        assert answer.status_code == 503 and "keys of balancer keys create work" in answer.json()["error"]
        assert client.get("/v1/sessions").status_code == 401  # loopback without any key, but not open
        own = keys.create(database, "bank", ("sessions",))[1]
        assert client.get("/v1/sessions", headers={"Authorization": f"Bearer {own}"}).status_code == 200
    database.close()


def test_keys_do_not_wait_for_a_slow_issuer(issuer: Issuer, tmp_path: Path) -> None:
    issuer.wait = 3.0
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    own = keys.create(database, "bank", ("sessions",))[1]
    with TestClient(create_app(config_of(database.shown, issuer.url))) as client:
        tokens = [threading.Thread(target=client.get, args=("/v1/sessions",), kwargs={"headers": bearer(token())}) for _ in range(6)]
        for thread in tokens:
            thread.start()
        time.sleep(0.1)
        began = time.monotonic()
        assert client.get("/v1/sessions", headers=bearer(own)).status_code == 200
        assert time.monotonic() - began < 1.5
        for thread in tokens:
            thread.join()
    database.close()


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"oidc_issuer": ISSUER}, "--oidc-audience is missing"),
        ({"oidc_jwks": "https://x/jwks"}, "--oidc-issuer is missing"),
        ({"oidc_issuer": ISSUER, "oidc_audience": "a", "oidc_jwks": "http://login.bank.example/jwks"}, "is not encrypted"),
        ({"oidc_issuer": ISSUER, "oidc_audience": "a", "oidc_jwks": "nowhere.json"}, "neither an https URL nor a file"),
        ({"oidc_issuer": ISSUER, "oidc_audience": "a", "oidc_jwks": "https://x", "oidc_tenant_claim": ""}, "--oidc-tenant-claim is empty"),
    ],
)
def test_flags_of_an_issuer_belong_together(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        ServeConfig(**given)


def test_the_flags_are_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--oidc-issuer", ISSUER]) == 2
    assert "--oidc-audience is missing" in capsys.readouterr().err


def test_a_key_that_expires_soon_is_said_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    soon, later = (keys.create(database, "t", ("sessions",), expires=time.time() + days * 86_400)[1] for days in (5, 90))
    with TestClient(create_app(ServeConfig(database=database.shown))) as client:
        for key in (soon, soon, later):
            assert client.get("/v1/sessions", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    lines = [record for record in caplog.records if "a key expires soon" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].fields["key"] == keys.TOKEN.fullmatch(soon)[1]  # type: ignore[attr-defined,index]
    database.close()
