"""docs/service.md and docs/operations.md: commands run, and answers, routes and flags are real."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from starlette.routing import Route

from balancer.cli import main
from balancer.options.flags import parameters
from balancer.serving import metrics
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.http.route_table import RouteTable
from benchmarks.lib.ports import free_port
from tests.conftest import HYBRID, TINY
from tests.serving.tools import opened

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("service", "operations")}
ELSEWHERE = re.compile(r"PostgreSQL|issuer|cluster")
"""What the text before a command says if the command needs more than this machine."""
STARTED_WITHIN = 10.0
"""Seconds of the processor from `balancer serve` to the first answer."""

BALANCER = """#!/bin/bash
case "$1" in
  simulate) exec "$PYTHON" -m balancer "$@" --rows 3000 --fraud-rate 0.08 --seed 3 ;;
  train) exec "$PYTHON" -m balancer "$@" $SHORT ;;
  serve)
    "$PYTHON" -m balancer "$@" --port "$PORT" > serve.out 2> serve.log < /dev/null &
    echo $! > serve.pid
    for _ in $(seq 900); do
      grep -q '"message": "running"' serve.log && exit 0
      kill -0 $! || break
      sleep 0.1
    done
    cat serve.log; exit 1 ;;
  *) exec "$PYTHON" -m balancer "$@" ;;
esac
"""
CURL = """#!/bin/bash
"$CURL" -sS --max-time 60 -o body -w '%{http_code}\\n' "${@//localhost:8000/127.0.0.1:$PORT}" >> status
cat body
"""


class Block(NamedTuple):
    """A fenced block of a page, and the paragraph before it."""

    language: str
    text: str
    before: str


def blocks(page: str) -> list[Block]:
    found, end = [], 0
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", PAGES[page], flags=re.DOTALL | re.MULTILINE):
        before = PAGES[page][end : match.start()].strip().rpartition("\n\n")[2]
        found.append(Block(match[1], match[2], before))
        end = match.end()
    return found


def read_shown(text: str) -> Any:
    """The JSON of a shown answer; what is left out is the text `...`, or a key of this name."""
    parts, stack = [], []
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|\.\.\.|.', text, flags=re.DOTALL):
        if token in "{[":
            stack.append(token)
        elif token in "}]":
            stack.pop()
        parts.append(('"...": 0' if stack[-1] == "{" else '"..."') if token == "..." else token)
    return json.loads("".join(parts))


def check_shape(shown: Any, real: Any, where: str = "answer") -> None:
    """A real answer has the keys, the lengths of lists and the kinds of values of the one that is shown."""
    if shown is None or real is None:
        return
    if isinstance(shown, dict):
        keys = set(shown) - {"..."}
        assert isinstance(real, dict), where
        assert keys <= set(real) if "..." in shown else keys == set(real), (where, keys ^ set(real))
        for key in keys:
            check_shape(shown[key], real[key], f"{where}.{key}")
    elif isinstance(shown, list):
        kept = [each for each in shown if each != "..."]
        assert isinstance(real, list), where
        assert len(real) >= len(kept) if "..." in shown else len(real) == len(kept), (where, real)
        for number, each in enumerate(kept):
            check_shape(each, real[number], f"{where}[{number}]")
    else:
        kind = (int, float) if isinstance(shown, float) else type(shown)
        assert isinstance(real, kind), (where, real)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of this package in a block, without what is set before them."""
    joined = re.sub(r"<<'END'.*?^END$", "", text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    for found in re.finditer(r"(?:^|\$\()(?:[A-Z_]+=\S+ +)?((?:balancer|kubectl) [^)\n]*)", joined, flags=re.MULTILINE):
        yield shlex.split(found[1])


def in_order() -> list[tuple[str, Block]]:
    return [(page, block) for page in PAGES for block in blocks(page)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder, and an environment in which the commands of the pages are short ones at a free port."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("the commands of the pages need curl")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (("balancer", BALANCER), ("curl", CURL)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    given = {"PYTHON": sys.executable, "CURL": curl, "PORT": str(free_port()), "SHORT": shlex.join((*HYBRID, *TINY, "--policy", "auto"))}
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    yield folder, os.environ | given | path
    process = folder / "serve.pid"
    if process.is_file():
        service = psutil.Process(int(process.read_text()))
        service.terminate()
        psutil.wait_procs([service], timeout=60)


def run_example(text: str, folder: Path, port: str) -> None:
    """Run the training loop of the page, with a model that guesses."""
    from torch.utils.data import DataLoader

    guess = np.random.default_rng(0)
    labels = (guess.random(2_000) < 0.05).astype(int)
    names: dict[str, Any] = {
        "labels": labels,
        "valid_labels": labels,
        "valid": labels,
        "dataset": labels,
        "DataLoader": DataLoader,
        "model": None,
        "train_one_epoch": lambda _, loader: next(iter(loader)),
        "model_scores": lambda valid: 0.3 * valid + 0.7 * guess.random(len(valid)),
        "key": (folder / "set").read_text().partition('"')[2].partition('"')[0],
    }
    exec(compile(text.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), "docs/service.md", "exec"), names)
    assert names["sampler"].epoch == 10


@pytest.mark.slow
def test_the_commands_run_and_the_answers_are_those_shown(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    answered = 0
    for (_, block), (_, following) in pairwise([*in_order(), ("", Block("", "", ""))]):
        if block.language == "python":
            run_example(block.text, folder, environment["PORT"])
        if block.language != "sh" or ELSEWHERE.search(block.before):
            continue
        # What one block sets, the next ones have.
        script = f"[ -f set ] && . ./set\n{block.text}\ndeclare -p KEY > set 2> /dev/null || rm set"
        (folder / "status").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, (block.text, done.stdout, done.stderr)
        if (folder / "status").is_file():
            statuses = set((folder / "status").read_text().split())
            said = re.search(r"[Ss]tatus (\d+)", following.before if following.language == "json" else block.before)
            expected = {said[1]} if said else {"200", "201"}
            assert statuses <= expected, (block.text, statuses, (folder / "body").read_text())
        if following.language == "json":
            check_shape(read_shown(following.text), json.loads((folder / "body").read_text()))
            answered += 1
            if answered == 1:
                parent = psutil.Process(int((folder / "serve.pid").read_text()))
                spent = [sum(each.cpu_times()[:2]) for each in (parent, *parent.children(recursive=True))]
                assert sum(spent) < STARTED_WITHIN
    assert answered == sum(block.language == "json" for _, block in in_order())
    for name in ("audit.parquet", "fields.parquet", "restored.db", "balancer-2026-06-01.backup"):
        assert (folder / name).is_file()


def flags_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that the help of a command names."""
    with suppress(SystemExit):
        main([*command, "--help"])
    return set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))


def test_flags_and_files_of_all_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for _, block in in_order():
        for program, *words in commands(block.text):
            if program == "kubectl":
                assert words[:2] == ["apply", "-f"]
                assert (ROOT / words[2]).exists()
                continue
            name = words[: 2 if words[0] in ("service", "keys") else 1]
            seen.add(tuple(name))
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= flags_of(name, capsys), (words, given)
    assert {("serve",), ("keys", "create"), ("keys", "list")} <= seen
    assert {("service", each) for each in ("migrate", "purge", "backup", "restore", "import", "export", "monitor")} <= seen


def test_flags_of_the_text_exist_and_all_of_the_service_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    serving = {f"--{each.name.replace('_', '-')}" for each in parameters(ServeConfig)}
    others: set[str] = set()
    for command in ("train", "score", "simulate", "app"):
        others |= flags_of([command], capsys)
    for room, names in (("keys", "create list revoke"), ("service", "migrate purge backup restore import export monitor")):
        for name in names.split():
            others |= flags_of([room, name], capsys)
    for page, text in PAGES.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
        assert named <= serving | others, (page, named - serving - others)
    (settings,) = re.findall(r"^## Settings\n(.*?)^## ", PAGES["operations"], flags=re.DOTALL | re.MULTILINE)
    rows = [re.split(r" *\| *", line.strip("| ")) for line in settings.splitlines() if line.startswith("| `--")]
    assert {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)`", row[0])} == serving
    for flag, shown, *_ in rows:
        if re.fullmatch(r"[\d,]+", shown):  # a number: the default itself
            default = getattr(ServeConfig(), flag.strip("`-").replace("-", "_"))
            assert float(shown.replace(",", "")) == default, flag


def test_every_route_is_named_with_its_scope(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()
    app = create_app(ServeConfig(database=url))
    table = RouteTable(app.routes)
    paths = {route.path_format: route for route in app.routes if isinstance(route, Route) and route.include_in_schema}
    real = {}
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            scope = table.find({"type": "http", "method": method.upper(), "path": re.sub(r"\{\w+\}", "x", path)}).scope
            real[f"{method.upper()} {path}"] = scope or "none"
    assert paths
    shown = dict(re.findall(r"^\| `([A-Z]+ /[^`]*)` \| (\w+) \|", PAGES["service"], flags=re.MULTILINE))
    assert shown == real
    for page, text in PAGES.items():  # and the text names no other ones
        for method, path in re.findall(r"`(GET|POST|PATCH|PUT|DELETE) (/[^`?]*)", text):
            assert f"{method} {path}" in real, (page, method, path)
        for path in re.findall(r"localhost:8000(/[^\s'?]*)", text):
            assert any(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known.split()[1]), path) for known in real), (page, path)


def test_metrics_and_links_exist() -> None:
    known = set(metrics._REGISTRY._names_to_collectors)
    texts = PAGES | {"README": (ROOT / "README.md").read_text(encoding="utf-8")}
    for page, text in PAGES.items():
        assert set(re.findall(r"`(balancer_\w+)`", text)) <= known, page
        for target in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            assert not file or (ROOT / "docs" / file).exists(), (page, target)
            home = Path(file).stem if file else page
            if anchor and home in texts:
                headings = re.findall(r"^#+ (.*)$", texts[home], flags=re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], (page, target)
        for file in re.findall(r"`((?:deploy|benchmarks)/[\w./-]*)`", text):
            assert (ROOT / file).exists(), (page, file)


def test_the_shape_of_answers_is_compared() -> None:
    shown = read_shown('{"a": [{"b": 1.5}, ...], "c": "x...", "d": {...}, ...}')
    check_shape(shown, {"a": [{"b": 2}, {}], "c": "y", "d": {"e": 1}, "f": 0})
    for wrong in ({"a": [], "c": "y", "d": {}}, {"a": [{"b": "2"}], "c": "y", "d": {}}, {"a": [{"b": 2}], "c": "y"}):
        with pytest.raises(AssertionError):
            check_shape(shown, wrong)
