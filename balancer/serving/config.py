"""What `balancer serve` can be told; a worker gets it as JSON by its environment."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from balancer.data.spec import parse_duration
from balancer.errors import InputError


@dataclass(frozen=True)
class ServeConfig:
    """Serve balancing sessions, and with a run scores of transactions, over HTTP; docs/service.md tells how."""

    run: Path | None = None
    """Run folder to score with; left out, only balancing sessions are served."""
    models: Path | None = None
    """Folder of run folders that POST /v1/models may put in service in its place."""
    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only where there are API keys."""
    port: int = 8000
    """Port to listen on."""
    database: str = "sqlite:///balancer-service.db"
    """Where everything is kept: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."""
    workers: int = 1
    """Processes that serve; one that dies is replaced."""
    precision: Literal["full", "quantized"] = "full"
    """The full model, or the one that balancer quantize made of it."""
    max_body: int = 8_000_000
    """Bytes of a request at most."""
    max_rows: int = 1_000
    """Transactions or labels of a request at most."""
    rate: float = 500.0
    """Requests a second that a key has at each worker; 0: no limit."""
    timeout: float = 30.0
    """Seconds that a request may take."""
    clock_tolerance: str = "1h"
    """How far a transaction's time may be ahead of the service's clock, as 10min or 1h."""
    tls_certificate: Path | None = None
    """Certificate chain (PEM), to serve HTTPS; with --tls-key."""
    tls_key: Path | None = None
    """Private key of the certificate (PEM)."""

    def __post_init__(self) -> None:
        for name in ("port", "workers", "max_body", "max_rows"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give a whole number from 1 up")
        if self.port > 65_535:
            raise InputError(f"--port is {self.port}: give a number up to 65535")
        if not self.rate >= 0 or not 0 < self.timeout < 1e6:
            raise InputError("--rate is a number from 0 up and --timeout a number of seconds above 0")
        parse_duration(self.clock_tolerance, "--clock-tolerance")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InputError("give --tls-certificate and --tls-key together, or neither")
        for flag, path in (("--tls-certificate", self.tls_certificate), ("--tls-key", self.tls_key), ("--models", self.models)):
            if path is not None and not path.exists():
                raise InputError(f"{flag} {path} does not exist")

    @property
    def tolerance(self) -> float:
        """`clock_tolerance` in seconds."""
        return parse_duration(self.clock_tolerance, "--clock-tolerance")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
