"""Errors: their classes, and what the command line and the package say where an optional library is
missing."""

from __future__ import annotations

import copy
import importlib
import pickle
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import balancer
from balancer import errors
from balancer.cli import COMMANDS, EXTRAS, main
from balancer.dependencies import INSTALL, explained_imports, is_installed, missing, require
from balancer.errors import InputError, MissingDependencyError, UnsupportedError
from tests.isolation import ROOT, plain, ranges, run_with_only

KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, InputError)]


def made(kind: type[InputError]) -> InputError:
    return missing("torch", "x") if kind is MissingDependencyError else kind("x")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_bad_input_that_can_be_pickled(kind: type[InputError]) -> None:
    error = made(kind)
    assert isinstance(error, ValueError)
    assert not isinstance(error, OSError), "a handler for the disk's errors would take it for one"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)


def test_a_missing_library_is_an_import_error_with_the_line_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r"^--chart needs altair: pip install 'balancer\[compare\]'$") as caught:
        raise missing("altair", "--chart")
    assert (caught.value.name, pickle.loads(pickle.dumps(caught.value)).name) == ("altair", "altair")
    require("sys", "x")
    assert not is_installed("balancer.nothing")


def test_only_import_errors_of_optional_libraries_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDependencyError, match=r"^x needs polars: pip install 'balancer\[train\]'$"), explained_imports("x"):
        importlib.import_module("polars")
    with pytest.raises(MissingDependencyError, match=r"^x needs polars: pip install 'y'$"), explained_imports("x", "y"):
        raise ModuleNotFoundError("No module named 'polars.exceptions'", name="polars.exceptions")
    with pytest.raises(MissingDependencyError, match=r"^--chart needs altair"), explained_imports("x"):
        raise missing("altair", "--chart")  # says more than "x" does
    with pytest.raises(MissingDependencyError, match=r"^x needs torch: pip install 'y'$"), explained_imports("x", "y"):
        raise missing("torch", "balancer.models")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), explained_imports("x"):
        importlib.import_module("no_such_module")
    with pytest.raises(ImportError, match="cannot import name"), explained_imports("x"):
        exec("from json import nothing")


def distributions(extra: str) -> set[str]:
    """Names of what an extra lists beyond the core, those of extras that it includes too."""
    return {plain(requirement.name) for requirement in ranges(extra)}


@pytest.mark.parametrize("library", sorted(INSTALL))
def test_what_is_said_to_install_a_library_does(library: str) -> None:
    """Either the extra lists the distribution of the module, or a distribution that depends on it."""
    install = INSTALL[library]
    if not install.startswith("balancer["):
        assert install == library
        return
    listed = distributions(install.removeprefix("balancer[").removesuffix("]"))
    brought = {"scipy": "scikit-learn", "pydantic": "fastapi", "starlette": "fastapi"}
    owners = {plain(name) for name in packages_distributions().get(library, [library])}
    assert (owners | {brought.get(library, library)}) & listed


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_extra_that_a_command_names_has_all_that_training_or_serving_needs(command: str) -> None:
    assert distributions(EXTRAS.get(command, "train")) >= {"polars", "rich", "torch"}


STORED = ROOT / "tests" / "stored" / "0.1"


def in_core(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code where nothing but the core's own dependencies can be imported."""
    return run_with_only(ranges(), "import sys\n" + code, *arguments)


COMMAND = "from balancer.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    "arguments",
    [
        "train --dataset TABLE",
        "pretrain --dataset TABLE",
        "score RUN --input TABLE --output NEW.csv",
        "evaluate RUN --dataset TABLE",
        "quantize RUN --dataset TABLE",
        "export RUN",
        "compare --dataset TABLE",
        "app",
        "serve",
        "keys list --database sqlite:///TABLE",
        "policy evaluate auto",
        "doctor",
        "simulate --out NEW.parquet",
    ],
)
def test_a_command_in_a_core_install_ends_in_one_line(arguments: str, tmp_path: Path) -> None:
    for word, path in (("TABLE", STORED / "transactions.parquet"), ("RUN", STORED / "rows"), ("NEW", tmp_path / "new")):
        arguments = arguments.replace(word, str(path))  # paths are checked first
    done, (command, *_) = in_core(COMMAND, *arguments.split()), arguments.split()
    extra = EXTRAS.get(command, "train")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: (?:balancer {command}|--treatments \w+) needs \w+: pip install 'balancer\[{extra}\]'\n", done.stderr), (
        done.stderr
    )


@pytest.mark.parametrize("arguments", ["--help", "--version", "train --help", "compare --help", "score --help", "serve --help"])
def test_help_needs_the_core_only(arguments: str) -> None:
    done = in_core(COMMAND, *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_in_a_core_install() -> None:
    code = """
from balancer.errors import MissingDependencyError
import balancer
from balancer import *
help(balancer)
for name in [*balancer.__all__, "AdaptiveClassifier", "AdaptiveLoss", "AdaptiveResampler"]:
    try:
        getattr(balancer, name)
        print("there:", name)
    except MissingDependencyError as error:
        print("not there:", error)
"""
    done = in_core(code)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("not there: ")] == [
        "not there: AdaptiveClassifier needs sklearn: pip install 'balancer[sklearn]'",
        "not there: AdaptiveLoss needs torch: pip install 'torch'",
        "not there: AdaptiveResampler needs imblearn: pip install 'balancer[imblearn]'",
    ]
    assert {"there: AdaptiveSampler", "there: SamplerCore", "there: load_policy"} <= set(lines)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("balancer.models", "balancer.models needs torch: pip install 'torch'"),
        ("balancer.envs", "balancer.envs needs gymnasium: pip install 'balancer[train]'"),
        ("balancer.integrations.lightning", "AdaptiveCallback needs torch: pip install 'balancer[lightning]'"),
        ("balancer.integrations.hugging_face", "AdaptiveTrainer needs torch: pip install 'balancer[transformers]'"),
        ("balancer.integrations.keras", "pip install 'balancer[keras]'"),
    ],
)
def test_modules_name_what_they_need(module: str, said: str) -> None:
    assert in_core(f"import {module}").stderr.rstrip().endswith(said)


LOOP = """
import sys
import numpy as np
from balancer import AdaptiveBatchSampler, AdaptiveSampler
rng = np.random.default_rng(0)
labels = (rng.random(2_000) < 0.05).astype(int)
score = np.clip(0.3 * labels + 0.5 * rng.random(2_000), 0, 1)
made = lambda: AdaptiveSampler(labels, epochs=3, num_samples=100)
sampler, drawn = made(), []
for _ in range(sampler.epochs):
    drawn += list(sampler)
    sampler.update(labels, score, rows=np.arange(2_000), row_score=score)
half, again = made(), made()
rows = iter(half)
first = [next(rows) for _ in range(30)]
again.load_state_dict(half.state_dict())
assert [*first, *again] == drawn[:100]
assert [len(batch) for batch in AdaptiveBatchSampler(labels, batch_size=10, epochs=3, num_batches=2)] == [10, 10]
print(hash(tuple(drawn)), sampler.weights.share.tolist())
"""


def test_the_sampler_draws_the_same_rows_without_torch() -> None:
    without = in_core(LOOP + "assert 'torch' not in sys.modules")
    with_torch = subprocess.run([sys.executable, "-c", LOOP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert without.stderr == ""
    assert without.stdout == with_torch.stdout


def test_what_is_unsupported_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> int:
        raise UnsupportedError("no such instructions: use --backend torch")

    monkeypatch.setattr("balancer.cli.doctor.main", refuse)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: no such instructions: use --backend torch\n"


def test_no_module_catches_input_errors_to_find_out_what_is_unsupported() -> None:
    """Handlers of InputError show its text to the user, raise again or undo something; they don't just go
    on."""
    for file in Path(balancer.__file__).parent.rglob("*.py"):
        found = re.findall(r"except \(?InputError[^\n]*\n\s+(pass|continue|return(?![^\n]*error)[^\n]*)", file.read_text())
        assert not found, f"{file}: {found}"
