"""README and site: commands and examples run, links lead somewhere, tables are those of the results."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from balancer.cli import COMMANDS, main
from balancer.deployment import export
from balancer.deployment.distil import distil
from balancer.models.quantization import applying, sensitivities
from balancer.policy_learning.budgets import TASK_BUDGETS
from benchmarks.report import badges, readme_tables
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}

SHORT: dict[str, tuple[str, ...]] = {
    "simulate": ("--rows", "7000", "--fraud-rate", "0.06"),
    "train": TINY,
    "pretrain": (*TINY[:4], *TINY[6:]),
    "compare": (
        *("--folds", "1", "--seeds", "1", "--epochs", "2", "--steps-per-epoch", "4", "--treatments", "none,one_to_one,constant:share=.2"),
    ),
    "policy train": ("--rollouts", "1", "--budget", "quick"),
    "policy evaluate": ("--number", "2", "--groups", "1"),
}
"""Flags that make the commands of a page so short that a test can run them."""
WAIT = {"app", "serve", "keys", "service"}
"""Commands that wait for a browser or for requests; tests of their own give them some."""
OWN_TESTS = {
    *("docs/detector.md", "docs/flex_attention.md", "docs/integrations.md", "docs/operations.md", "docs/parts.md", "docs/policies.md"),
    *("docs/sampler.md", "docs/scale.md", "docs/service.md"),
    *(page for page in PAGES if page.startswith("docs/gallery/")),
}
"""Pages whose blocks are run by tests of their own."""


class Block(NamedTuple):
    """A fenced block of a page."""

    mark: str | None
    """What follows ``<!-- run``; None where the block is not marked."""
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page in Python, shell or TOML; text and other languages are left out."""
    found = re.findall(r"(?:^<!-- run *(.*?) *-->\n)?^```(python|sh|toml)\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    marked = re.findall(r"(<!-- run[^\n]*\n)?^```(?:python|sh|toml)\n", PAGES[page], flags=re.MULTILINE)
    return [Block(mark if with_mark else None, language, text) for (mark, language, text), with_mark in zip(found, marked, strict=True)]


RUN = [page for page in PAGES if any(block.mark is not None for block in blocks(page))]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments."""
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def run_command(words: list[str]) -> None:
    """Run a command of a page, at a length that a test can afford."""
    assert words[0] == "balancer"
    # A resumed run takes its length from the run folder.
    short = () if "--resume" in words else SHORT.get(" ".join(words[1:3]), SHORT.get(words[1], ()))
    assert main([*words[1:], *short]) == 0, words


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps where a command has no flag for them."""
    monkeypatch.setattr(export, "distil", partial(distil, steps=50))
    monkeypatch.setitem(TASK_BUDGETS, "quick", replace(TASK_BUDGETS["quick"], slots=1, siblings=2))


@pytest.mark.slow
@pytest.mark.usefixtures("short_steps")
@pytest.mark.filterwarnings("ignore::balancer.sampling.bundle.OutsideTraining")  # the policy is trained for seconds
@pytest.mark.parametrize("page", [page for page in RUN if page != "README.md"])
def test_the_marked_blocks_run(page: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page)):
        if block.language == "toml":
            (tmp_path / "spec.toml").write_text(block.text, encoding="utf-8")
        if block.mark is None:
            continue
        if "in the folder of a run" in block.mark and not (tmp_path / "runs").exists():
            shutil.copytree(tiny_run, tmp_path / "runs" / "mine")
        if block.language == "python":
            exec(compile(block.text, f"{page}, block {number}", "exec"), names)
        else:
            for words in commands(block.text):
                run_command(words)


def test_every_block_is_run_by_a_test() -> None:
    left = [
        f"{page}: {block.text.splitlines()[0]}"
        for page in PAGES
        if page not in OWN_TESTS
        for block in blocks(page)
        if block.mark is None and block.language != "toml" and not block.text.startswith("pip install")
    ]
    assert left == []


def test_the_guides_have_every_command() -> None:
    given = {words[1] for block in blocks("docs/guides/index.md") if block.language == "sh" for words in commands(block.text)}
    assert given == set(COMMANDS) - WAIT


def test_the_loop_of_the_readme_runs() -> None:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    (block,) = (block for block in blocks("README.md") if block.language == "python")
    assert block.mark is not None and len([line for line in block.text.splitlines() if line.strip()]) <= 8
    rng = np.random.default_rng(0)
    labels = (rng.random(600) < 0.05).astype(np.int64)
    x, y = torch.tensor(rng.normal(size=(600, 3)), dtype=torch.float32), torch.tensor(labels)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    seen = []

    def train_one_epoch(loader: Any, loss: Any) -> None:
        for features, label in loader:
            optimizer.zero_grad()
            loss(model(features), label).backward()
            optimizer.step()
            seen.append(len(label))

    def predict(given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(given)
        return found

    given = {"labels": labels, "dataset": TensorDataset(x, y), "train_one_epoch": train_one_epoch, "predict": predict}
    assert all(name in block.mark for name in given)
    names = given | {"x_valid": x, "y_valid": y, "DataLoader": DataLoader}
    exec(compile(block.text, "README.md", "exec"), names)
    assert sum(seen) == 6000 and names["sampler"].finished


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("README.md"):
        if block.language == "sh" and block.mark is not None:
            for words in commands(block.text):
                run_command(words)
    assert (tmp_path / "scored.parquet").is_file()


@pytest.mark.parametrize("supported", [("fp32",), ("int8", "fp32"), ("int8", "bf16", "fp32")], ids="-".join)
def test_the_quantization_example_on_any_processor(
    supported: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the processor lacks a planned precision, the example says what each layer got instead, and
    why."""
    (example,) = (block.text for block in blocks("docs/guides/quantize_export.md") if "apply_precision" in block.text)
    for module in (applying, sensitivities):
        monkeypatch.setattr(module, "cpu_supports", lambda precision, *_: precision in supported)
    exec(compile(example, "quantize_export.md", "exec"), {})
    printed = capsys.readouterr().out
    assert ("this CPU has no bfloat16 (AVX512-BF16) instructions: fp32" in printed) == ("bf16" not in supported)


def test_make_targets_exist() -> None:
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    printed = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "balancer train --dataset balancer/data_samples/transactions.parquet" in printed


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        # Four files of the reference and of the project are made when the site is built.
        made = {"cli.md", "http.md", "models.md", "changelog.md", "contributing.md", "sample.md"}
        assert link.startswith("http") or Path(link).name in made or ((ROOT / page).parent / link).exists(), link


def test_tables_are_those_of_the_result_files() -> None:
    whole = "\n".join(PAGES.values())
    assert all(f"<!-- table {name} -->" in whole for name in readme_tables.TABLES)
    for page, text in PAGES.items():
        assert readme_tables.filled(text) == text, f"{page}: run python -m benchmarks.report.readme_tables"


def test_badges_say_what_the_project_says() -> None:
    for name, picture in badges.badges().items():
        assert (DOCS / "images" / name).read_text(encoding="utf-8") == picture, "run python -m benchmarks.report.badges"
        assert f"docs/images/{name}" in README


def test_the_first_screen_is_short() -> None:
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("page", ["README.md", *(page for page in PAGES if page.startswith("docs/start/"))])
def test_sentences_are_short(page: str) -> None:
    """At most 30 words in a sentence of the README and of the pages under Start."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    cells = [cell for line in text.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    prose = re.split(r"\n\s*\n|\n(?=- |\d+\. )", "\n".join(line for line in text.splitlines() if not line.startswith(("|", "    "))))
    for part in (*prose, *cells):
        for sentence in re.split(r"(?<=[.:;?!])\s+", " ".join(part.split())):
            assert len(sentence.split()) <= 30, sentence
