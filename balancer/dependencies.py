"""Optional libraries: what installs each, and the error where one is missing.

`pip install balancer` installs NumPy and safetensors, which the samplers need. Everything else belongs to an
extra. Modules import optional libraries as usual. The command line and the lazily imported public names of
the package turn a failed import into a `MissingDependencyError` (`explained_imports`). `require` raises it
before the import, where the flag or class that needs the library can be named.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from balancer.errors import MissingDependencyError

INSTALL = {
    "accelerate": "balancer[transformers]",
    "alembic": "balancer[serve]",
    "altair": "balancer[compare]",
    "bitsandbytes": "balancer[quantize]",
    "deltalake": "balancer[cluster]",
    "executorch": "balancer[executorch]",
    "fastapi": "balancer[serve]",
    "fastapi_offline": "balancer[serve]",
    "fpdf": "balancer[report]",
    "gymnasium": "balancer[train]",
    "httpx": "balancer[serve]",
    "imblearn": "balancer[imblearn]",
    "jwt": "balancer[oidc]",
    "keras": "balancer[keras]",
    "lightgbm": "balancer[train]",
    "lightning": "balancer[lightning]",
    "msgspec": "balancer[serve]",
    "onnx": "balancer[export]",
    "onnxruntime": "balancer[export]",
    "onnxscript": "balancer[export]",
    "opentelemetry": "balancer[telemetry]",
    "optuna": "balancer[compare]",
    "polars": "balancer[train]",
    "prometheus_client": "balancer[serve]",
    "psycopg": "balancer[postgresql]",
    "pydantic": "balancer[serve]",
    "ray": "balancer[cluster]",
    "rich": "balancer[train]",
    "scipy": "balancer[sklearn]",
    "shtab": "balancer[train]",
    "sklearn": "balancer[sklearn]",
    "sqlalchemy": "balancer[serve]",
    "stable_baselines3": "balancer[train]",
    "starlette": "balancer[serve]",
    "streamlit": "balancer[app]",
    "tensorboard": "balancer[train]",
    "tokenizers": "balancer[text]",
    "torch": "torch",
    "transformers": "balancer[transformers]",
    "triton": "balancer[cuda]",
    "uvicorn": "balancer[serve]",
    "vl_convert": "balancer[compare]",
}
"""What to install by the name of the module: an extra of this package, or the library itself."""


def is_installed(library: str) -> bool:
    """Whether the module of an optional library can be found. It is not imported."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


def require(library: str, needed_by: str, install: str | None = None) -> None:
    """Check that an optional library is installed, before it is imported or before the work that needs it.

    Args:
        library: The name of the module, a key of `INSTALL`.
        needed_by: What needs it, as the message names it: a flag, a class, a kind of file.
        install: What to install, instead of what `INSTALL` says.

    Raises:
        MissingDependencyError: It is not installed.
    """
    if not is_installed(library):
        raise missing(library, needed_by, install)


def missing(library: str, needed_by: str, install: str | None = None) -> MissingDependencyError:
    """The error to raise where an optional library is missing. Arguments as of `require`."""
    error = MissingDependencyError(f"{needed_by} needs {library}", install or INSTALL[library])
    error.name = library
    return error


@contextmanager
def explained_imports(needed_by: str, install: str | None = None) -> Iterator[None]:
    """Turn the import error of an optional library into one that says how to install it.

    Other import errors pass unchanged. So does a `MissingDependencyError` that names an extra: it already
    says what needs the library.

    Args:
        needed_by: What is imported or called in the block, as the message names it.
        install: What to install, instead of what `INSTALL` says.

    Raises:
        MissingDependencyError: An optional library is missing.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingDependencyError) as error:
        library = (error.name or "").partition(".")[0]
        if library not in INSTALL or (isinstance(error, MissingDependencyError) and error.install.startswith("balancer[")):
            raise
        raise missing(library, needed_by, install) from error
