"""The flags of ``balancer serve``; a worker process gets them as JSON in its environment."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from balancer.data.spec import parse_duration
from balancer.dependencies import require
from balancer.errors import InputError
from balancer.options.checks import check_whole
from balancer.options.database import DatabaseOptions
from balancer.options.flags import Flag


@dataclass(frozen=True, kw_only=True)
class ServeConfig(DatabaseOptions):
    """Serve sampling sessions over HTTP, and with --run scores of transactions.

    docs/service.md describes requests and answers, docs/operations.md settings and operation.
    """

    run: Annotated[
        Path | None, Flag("Run folder of the model to score with; without it only sampling sessions are served.", metavar="RUN")
    ] = None
    models: Annotated[Path | None, Flag("Folder of run folders from which POST /v1/models may load another model.", metavar="FOLDER")] = (
        None
    )
    host: Annotated[str, "Address to listen on; an address that other machines can reach needs an API key."] = "127.0.0.1"
    port: Annotated[int, "Port to listen on."] = 8000
    no_migrate: Annotated[bool, "Leave the tables of the database as they are; balancer service migrate creates and upgrades them."] = False
    workers: Annotated[int, "Number of worker processes; one that dies is replaced."] = 1
    precision: Annotated[
        Literal["auto", "full", "quantized"],
        "auto: the network whose layers have the planned precision, where the run has one; full: all layers in float32; quantized: refuses a run without a plan.",
    ] = "auto"
    max_body: Annotated[int, "Largest size of a request in bytes."] = 4_000_000
    max_rows: Annotated[int, "Largest number of transactions or labels in a request."] = 1_000
    rate: Annotated[float, "Requests per second that each worker accepts from an API key; 0 means no limit."] = 500.0
    timeout: Annotated[float, "Seconds for a request to arrive, and for its answer; half of them for it to begin."] = 30.0
    max_concurrent: Annotated[int, "Most requests that each worker runs at once; one key may have three quarters of them."] = 512
    max_held: Annotated[
        int | None, Flag("Most bytes of large bodies that each worker holds at once; more of them wait.", default="four times --max-body")
    ] = None
    max_connections: Annotated[
        int | None, Flag("Most connections to each worker.", default="what the limit of open files allows, at most 10,000")
    ] = None
    max_connections_per_address: Annotated[
        int | None, Flag("Most connections from one address to each worker.", default="half of --max-connections")
    ] = None
    header_timeout: Annotated[float, "Seconds for the headers of a request to arrive."] = 10.0
    idle_timeout: Annotated[float, "Seconds after which a connection without a request is closed."] = 30.0
    clock_tolerance: Annotated[
        str, Flag("How far the time of a transaction may be ahead of the service's clock: 10min, 1h, or seconds.", metavar="TIME")
    ] = "1h"
    memory: Annotated[
        int, Flag("Megabytes of entities, merchants and states that each worker remembers, beside the model.", metavar="MB")
    ] = 512
    decline_above: Annotated[
        float | None,
        Flag("Calibrated score from which the action for a transaction is decline; without it, alarms are only reviewed.", metavar="SCORE"),
    ] = None
    tls_certificate: Annotated[Path | None, Flag("Certificate chain (PEM) for HTTPS; needs --tls-key.", metavar="FILE")] = None
    tls_key: Annotated[Path | None, Flag("Private key of the certificate (PEM).", metavar="FILE")] = None
    oidc_issuer: Annotated[
        str, Flag("Accept tokens of this OpenID Connect issuer besides API keys: the claim iss. Needs balancer[oidc].", metavar="URL")
    ] = ""
    oidc_audience: Annotated[str, Flag("Name of this service in the claim aud of a token.", metavar="NAME")] = ""
    oidc_jwks: Annotated[str, Flag("Public keys of the issuer (JWKS): an https URL, or a file.", metavar="URL")] = ""
    oidc_tenant_claim: Annotated[str, Flag("Claim of a token that names its tenant.", metavar="NAME")] = "tenant"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "workers", "max_body", "max_rows", "max_concurrent", "memory")
        check_whole(self, "max_held", "max_connections", "max_connections_per_address")
        if self.max_connections is not None and (self.max_connections_per_address or 0) > self.max_connections:
            raise InputError(
                f"--max-connections-per-address is {self.max_connections_per_address}, more than the {self.max_connections} of "
                "--max-connections: give at most that"
            )
        check_whole(self, "port", most=65_535)
        if not self.rate >= 0:
            raise InputError(f"--rate is {self.rate}: give a number of requests per second, or 0 for no limit")
        limits = {"--timeout": self.timeout, "--header-timeout": self.header_timeout, "--idle-timeout": self.idle_timeout}
        for flag, seconds in limits.items():
            if not 0 < seconds < 1e6:
                raise InputError(f"{flag} is {seconds}: give a number of seconds above 0")
        parse_duration(self.clock_tolerance, "--clock-tolerance")
        if self.decline_above is not None and not 0 <= self.decline_above <= 1:
            raise InputError(f"--decline-above is {self.decline_above}: give a calibrated score from 0 to 1")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InputError("give --tls-certificate and --tls-key together, or neither")
        self._check_oidc()
        for flag, path in (("--tls-certificate", self.tls_certificate), ("--tls-key", self.tls_key), ("--models", self.models)):
            if path is not None and not path.exists():
                raise InputError(f"{flag} {path} does not exist")

    def _check_oidc(self) -> None:
        """Check the flags of the issuer of tokens.

        Raises:
            InputError: One is missing, or the keys would come over a connection that anybody can change.
        """
        given = {"--oidc-issuer": self.oidc_issuer, "--oidc-audience": self.oidc_audience, "--oidc-jwks": self.oidc_jwks}
        if not any(given.values()):
            return
        if missing := [flag for flag, value in given.items() if not value]:
            raise InputError(f"{missing[0]} is missing: give --oidc-issuer, --oidc-audience and --oidc-jwks together, or none of them")
        if not self.oidc_tenant_claim:
            raise InputError("--oidc-tenant-claim is empty: name the claim of a token that names its tenant")
        require("jwt", "--oidc-issuer")
        url = urlsplit(self.oidc_jwks)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            raise InputError(f"--oidc-jwks {self.oidc_jwks} is not encrypted: give an https URL, or a file")
        if url.scheme not in ("http", "https") and not Path(self.oidc_jwks).is_file():
            raise InputError(f"--oidc-jwks {self.oidc_jwks} is neither an https URL nor a file: correct it")

    @property
    def tolerance(self) -> float:
        """``clock_tolerance`` in seconds."""
        return parse_duration(self.clock_tolerance, "--clock-tolerance")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is that of this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
