"""Every way of getting the package imports every part of it, and importing stays light."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SIBLINGS = ("app", "data_samples", "envs", "models")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Prints where each part was imported from, as JSON.
WHERE = """
import importlib, json
names = ["balancer", *("balancer." + name for name in {siblings!r})]
print(json.dumps({{name: importlib.import_module(name).__file__ for name in names}}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def places(cwd: Path, *folders: Path, python: str | Path = sys.executable) -> dict[str, Path]:
    """Where each part is imported from, with `folders` first on the path of a fresh interpreter in `cwd`."""
    code = WHERE.format(siblings=SIBLINGS)
    found: dict[str, str] = json.loads(run(python, "-c", code, cwd=cwd, PYTHONPATH=os.pathsep.join(map(str, folders))))
    return {name: Path(file) for name, file in found.items()}


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Pip without network: no dependencies, and the build tools of this environment."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, so that building writes nothing into the working tree."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "balancer", root / "balancer", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and with the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    return folder


def test_the_fixed_names_at_the_top_are_links_into_the_package() -> None:
    for name in SIBLINGS:
        assert (ROOT / name).is_symlink(), f"{name} must be a link to balancer/{name}"
        assert os.readlink(ROOT / name) == f"balancer/{name}", "relative, so that it holds wherever the checkout lies"


def test_every_python_file_lies_in_a_package() -> None:
    for file in (ROOT / "balancer").rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py: it would be left out of the wheel"


def test_wheel_is_built_from_the_sdist_and_holds_every_file(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    (wheel,) = distributions.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/models/__init__.py") for name in archive.getnames())
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {file.relative_to(ROOT).as_posix() for file in (ROOT / "balancer").rglob("*.py")}
    data = ("py.typed", "models/README.md", "data_samples/README.md", "data_samples/transactions.parquet")
    assert all((ROOT / "balancer" / name).is_file() for name in data)
    expected |= {f"balancer/{name}" for name in data}
    expected |= {
        file.relative_to(ROOT).as_posix() for file in (ROOT / "balancer").rglob("policy.*") if file.suffix in {".json", ".safetensors"}
    }
    assert expected <= names
    assert {name.partition("/")[0] for name in names} == {"balancer", f"balancer-{metadata_version(wheel)}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def metadata_version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def test_wheel_imports(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    pip("--target", tmp_path / "site", wheel, cwd=tmp_path)
    found = places(tmp_path, tmp_path / "site")
    assert found["balancer.models"] == tmp_path / "site" / "balancer" / "models" / "__init__.py"
    assert all(file.is_relative_to(tmp_path / "site" / "balancer") for file in found.values())


def test_editable_install_imports(checkout: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = next((tmp_path / "venv").glob("bin/python")) if os.name == "posix" else tmp_path / "venv" / "Scripts" / "python.exe"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    source = tmp_path / "checkout"
    shutil.copytree(checkout, source)
    pip("--no-build-isolation", "--editable", source, "--prefix", tmp_path / "venv", "--ignore-installed", cwd=tmp_path)
    assert any(site.glob("*balancer*")), "the editable install went elsewhere"
    # The dependencies come from this environment: a folder named by a .pth file is searched, but its own .pth files (an editable
    # install of this tree, say) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = places(tmp_path, python=python)
    assert found["balancer"] == source / "balancer" / "__init__.py"
    assert found["balancer.models"] == source / "balancer" / "models" / "__init__.py"
    assert all(file.is_relative_to(source) for file in found.values())


def test_plain_checkout_without_links_imports_everything(checkout: Path, tmp_path: Path) -> None:
    found = places(tmp_path, checkout)
    assert found["balancer.models"] == checkout / "balancer" / "models" / "__init__.py"
    assert all(file.is_relative_to(checkout) for file in found.values()), "an install of another checkout answered"


def name_of_models() -> str:
    import balancer.models

    return balancer.models.__name__


def test_spawned_worker_imports_the_sibling_folders() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(name_of_models) == "balancer.models"


def test_import_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, balancer; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run(sys.executable, "-c", f"import json; {code}", cwd=ROOT))
    assert not {"numpy", "torch", "polars", "sklearn", "gymnasium"} & set(loaded)


def test_sampler_needs_numpy_and_torch_only() -> None:
    """All other distributions of this environment are made unimportable, but for what torch itself asks for."""
    needed, todo = set(), ["numpy", "torch"]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in needed:
            continue
        needed.add(name)
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in wanted if "extra ==" not in text]
    blocked = {
        module
        for module, owners in metadata.packages_distributions().items()
        if module != "balancer" and not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & needed
    }
    assert {"polars", "gymnasium", "stable_baselines3", "sklearn", "rich", "safetensors"} <= blocked
    code = f"""
import sys
blocked = set({sorted(blocked)!r})
class Block:
    @staticmethod
    def find_spec(fullname, path, target=None):
        if fullname.partition(".")[0] in blocked:
            raise ModuleNotFoundError(fullname, name=fullname)
sys.meta_path.insert(0, Block)
import balancer
from balancer import InputError, RowSampler, SamplingController, load_policy
assert "torch" not in sys.modules, "the NumPy sampler pulled torch in"
load_policy("constant", num_classes=2)
from balancer import AdaptiveSampler
"""
    run(sys.executable, "-c", code, cwd=ROOT)


def test_public_names_resolve() -> None:
    import balancer

    assert set(balancer.__all__) <= set(dir(balancer))
    for name in balancer.__all__:
        assert getattr(balancer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
        _ = balancer.Sampler  # type: ignore[attr-defined]


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    extras = PROJECT["project"]["optional-dependencies"].values()
    ranges = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    ranges = [text.partition(";")[0] for text in ranges if not text.startswith("balancer[")]  # that is an extra that takes in others
    wanted = {re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]).lower() for text in ranges}
    assert wanted <= pinned
    assert all(">" in text and "==" not in text for text in ranges), "pyproject.toml gives ranges; exact versions are in constraints.txt"


def test_help_is_quick() -> None:
    """Best of several, because the machine has other things to do."""
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        text = run(sys.executable, "-m", "balancer", "--help", cwd=ROOT)
        seconds.append(time.perf_counter() - begun)
    assert "train" in text
    assert min(seconds) < 0.3
