"""Every way of getting the package imports every part of it, and importing stays light."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.isolation import EXTRAS, installed, plain, ranges, run_with_only

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


def pip(*arguments: str | Path, cwd: Path, **environment: str) -> None:
    """Pip without network: no dependencies, and the build tools of this environment."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", *arguments, cwd=cwd, **environment)


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
    """A folder with an sdist, and with the wheel built from that sdist.

    The native libraries are compiled without optimization, which takes a tenth of the time.
    """
    folder = tmp_path_factory.mktemp("dist")
    compiler = folder.parent / "quick"
    compiler.write_text('#!/bin/sh\nfor each; do shift; [ "$each" = -O3 ] || set -- "$@" "$each"; done\nexec c++ -O0 "$@"\n')
    compiler.chmod(0o755)
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout)
    run(*build, cwd=folder, **({"CC": str(compiler), "CXX": str(compiler)} if shutil.which("c++") else {}))
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
        (file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        needs = [
            line.removeprefix("Requires-Dist: ") for line in archive.read(file).decode().splitlines() if line.startswith("Requires-Dist: ")
        ]
    assert [Requirement(text).name for text in needs if "extra ==" not in text] == ["numpy", "safetensors"]
    expected = {file.relative_to(ROOT).as_posix() for file in (ROOT / "balancer").rglob("*.py")}
    data = ("py.typed", "models/README.md", "data_samples/README.md", "data_samples/transactions.parquet")
    assert all((ROOT / "balancer" / name).is_file() for name in data)
    expected |= {f"balancer/{name}" for name in data}
    expected |= {
        file.relative_to(ROOT).as_posix() for file in (ROOT / "balancer").rglob("policy.*") if file.suffix in {".json", ".safetensors"}
    }
    assert expected <= names
    libraries = {"attention/_native_attention", "attention/_native_flex", "quantization/_native_int8", "step/_native_step"}
    built = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert not shutil.which("c++") or built == {*(f"balancer/models/{name}" for name in libraries), "balancer/trees/_native_trees"}
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
    no_compiler = {"CC": "/bin/false", "CXX": "/bin/false"}  # where modules lie has nothing to do with the native libraries
    pip("--no-build-isolation", "--editable", source, "--prefix", tmp_path / "venv", "--ignore-installed", cwd=tmp_path, **no_compiler)
    assert any(site.glob("*balancer*")), "the editable install went elsewhere"
    # The dependencies come from this environment: a folder named by a .pth file is searched, but its own .pth
    # files (an editable
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


@pytest.mark.parametrize("links", ["missing", "text files"])
def test_a_checkout_without_links_works(checkout: Path, tmp_path: Path, links: str) -> None:
    """Windows without the right to make links: git leaves the four names out, or writes files that hold the
    links' targets."""
    source = tmp_path / "checkout"
    shutil.copytree(checkout, source)
    if links == "text files":
        for name in SIBLINGS:
            (source / name).write_text(f"balancer/{name}")
    found = places(source, source)
    assert all(file.is_relative_to(source / "balancer") for file in found.values())
    code = """
import os, sys
from balancer.cli import main
def started(program, command):
    print(command[command.index("run") + 1])
    sys.exit(0)
os.execv = os.execve = lambda program, command, *_: started(program, command)
main(["app"])
"""
    script = Path(run(sys.executable, "-c", code, cwd=source, PYTHONPATH=str(source)).strip())
    assert script == source / "balancer" / "app" / "streamlit_app.py"
    assert script.is_file()
    code = "import balancer.app.loading; print(balancer.app.loading.sample_table())"
    table = Path(run(sys.executable, "-c", code, cwd=source, PYTHONPATH=str(source)).strip())
    assert table == source / "balancer" / "data_samples" / "transactions.parquet"


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


@pytest.mark.parametrize("allowed", ["numpy torch", "numpy safetensors"])
def test_sampler_needs_numpy_only(allowed: str) -> None:
    """With torch alone (`load_policy` of a constant reads no file), and in a core install, where the learned
    policy is read too."""
    code = """
assert {"polars", "gymnasium", "stable_baselines3", "sklearn", "rich"} <= blocked
import balancer
from balancer import InputError, SamplerCore, load_policy
from balancer.sampling import RowSampler, SamplingController
assert "torch" not in sys.modules, "the NumPy sampler imported torch"
load_policy("constant", num_classes=2)
if "safetensors" not in blocked:
    load_policy("auto", num_classes=2)
from balancer import AdaptiveSampler
"""
    done = run_with_only(map(Requirement, allowed.split()), code)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve() -> None:
    import balancer

    assert set(balancer.__all__) <= set(dir(balancer))
    for name in balancer.__all__:
        assert getattr(balancer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Sampler'"):
        _ = balancer.Sampler  # type: ignore[attr-defined]


def pins() -> dict[str, str]:
    """Versions in constraints.txt by name."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {plain(name): version for name, version in (line.split("==") for line in lines if line)}


def test_constraints_pin_every_dependency_exactly() -> None:
    for requirement in ranges(*EXTRAS):
        assert plain(requirement.name) in pins()
        operators = {each.operator for each in requirement.specifier}
        assert operators <= {">=", "<"} and ">=" in operators, f"{requirement}: pyproject.toml gives ranges, constraints.txt exact versions"


def test_constraints_pin_what_the_dependencies_bring_as_it_is_installed_here() -> None:
    """Also what no extra lists: two installs on two days are the same."""
    pinned = pins()
    brought = installed(ranges(*EXTRAS))
    assert brought <= set(pinned), sorted(brought - set(pinned))
    for name in brought:
        with suppress(metadata.PackageNotFoundError):
            assert metadata.version(name).partition("+")[0] == pinned[name], name


def test_help_is_quick() -> None:
    """Processor time, best of several: other programs must not count.

    A slow machine may take longer than 0.3 s, up to ten times what Python itself takes to start there.
    """

    def seconds(*arguments: str) -> float:
        before = os.times()
        text = run(sys.executable, *arguments, cwd=ROOT)
        after = os.times()
        assert ("train" in text) == ("--help" in arguments)
        return after.children_user + after.children_system - before.children_user - before.children_system

    start = min(seconds("-c", "pass") for _ in range(6))
    assert min(seconds("-m", "balancer", "--help") for _ in range(6)) < max(0.3, 10 * start)
