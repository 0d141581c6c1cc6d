"""Models in service: their identity, trial and states, who follows them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file, save_file
from sqlalchemy import insert, select, update

from balancer.cli import main
from balancer.data.spec import DAY
from balancer.errors import InputError
from balancer.files import write_json
from balancer.serving.config import ServeConfig
from balancer.serving.errors import ConflictError
from balancer.serving.http.app import create_app
from balancer.serving.models import registry as rooms
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.models.model_states import champion_before
from balancer.serving.models.probe import what_is_wrong
from balancer.serving.models.registry import Registry
from balancer.serving.models.run_files import run_digests
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import decisions, models, registered_models
from tests.serving.test_scoring import card
from tests.serving.tools import opened


def with_threshold(run: Path, target: Path, threshold: float) -> Path:
    """A copy of a run with another threshold, which makes it another model."""
    shutil.copytree(run, target)
    decision = json.loads((target / "decision.json").read_text())
    (target / "decision.json").write_text(json.dumps(decision | {"threshold": threshold}))
    return target


def with_weights(run: Path, target: Path, value: float) -> Path:
    """A copy of a run with one weight replaced, and the digests of its files corrected."""
    shutil.copytree(run, target)
    weights = load_file(target / "model.safetensors")
    name = next(name for name, each in weights.items() if each.dtype == np.float32 and "head" in name)
    weights[name].flat[0] = value
    save_file(weights, target / "model.safetensors")
    config = json.loads((target / "model.json").read_text())
    config["weights_sha256"] = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    (target / "model.json").write_text(json.dumps(config))
    content = json.loads((target / "run.json").read_text())
    content["parts"]["model.json"] = hashlib.sha256((target / "model.json").read_bytes()).hexdigest()
    (target / "run.json").write_text(json.dumps(content))
    return target


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """Runs `one`, `two` and `three`, which differ in their thresholds."""
    for number, name in enumerate(("one", "two", "three")):
        with_threshold(tiny_run, tmp_path / "runs" / name, 0.5 + 0.1 * number)
    return tmp_path / "runs"


@pytest.fixture
def near(tmp_path: Path) -> Iterator[Database]:
    """A database in a file."""
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


def name_of(model: LoadedModel | None) -> str | None:
    return None if model is None else model.name


def overwrite(folder: Path) -> str:
    """Change a run in place; returns what its decision was."""
    before = (folder / "decision.json").read_text()
    (folder / "decision.json").write_text(json.dumps(json.loads(before) | {"threshold": 0.123}))
    return before


def test_the_digest_covers_what_scoring_reads(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    known = run_digests(run, "full")
    assert LoadedModel.load(run, "run", "full").digest == known.digest
    assert known == run_digests(tiny_run, "full")  # whatever the folder is called
    scored = ["run.json", "schema.json", "decision.json", "reference.json", "model.json", "model.safetensors"]
    scored += [f"trees/{file.name}" for file in (tiny_run / "trees").iterdir()]
    assert len(scored) > 9
    for name in scored:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content + b" ")
        assert not run_digests(run, "full").includes(known.digest), name
        (run / name).write_bytes(content)
    for name in ("report.json", "model.quantized.safetensors", "precision.json"):  # what `balancer quantize` adds is not read
        (run / name).write_text("new")
        assert run_digests(run, "full").digest == known.digest
    assert run_digests(run, "quantized").digest != run_digests(tiny_run, "quantized").digest
    assert run_digests(run, "quantized").includes(known.digest)


def test_a_plan_changes_the_planned_network_and_not_the_full_one(network_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(network_run, run)
    content = json.loads((run / "run.json").read_text())
    before, planned = run_digests(run, "full"), run_digests(run, "auto")
    assert planned.includes(before.digest) and before.includes(planned.digest)
    del content["parts"]["precision.json"]
    write_json(run / "run.json", content)  # as a run without a plan
    without = run_digests(run, "auto")
    assert without.digest == before.digest
    assert main(["quantize", str(run), "--max-drop", "0.5", "--dataset", str(tiny_table)]) == 0
    assert run_digests(run, "full").digest == before.digest, "the full network is what it was"
    assert not run_digests(run, "auto").includes(planned.digest)


def test_an_overwritten_run_is_refused_by_every_worker(folder: Path, database: Database) -> None:
    one, other = Registry(database, None, folder), Registry(database, None, folder)
    loaded = one.activate("one")
    other.follow(at_once=True)
    assert other.current is not None and other.current.digest == loaded.digest
    one.activate("two")
    before = overwrite(folder / "one")
    changed = r"the files of 'one' changed since it was put in service: restore them, and copy the new run under another name"
    for registry in (one, other):
        with pytest.raises(ConflictError, match=changed):
            registry.activate("one")
        with pytest.raises(ConflictError, match=changed):
            registry.put("one", "shadow")
        with pytest.raises(ConflictError, match=changed):
            registry.roll_back()
    # What was loaded stays: here the files change between the activation and the other worker's look.
    (folder / "one" / "decision.json").write_text(before)
    one.activate("one")
    other.follow(at_once=True)
    one.activate("two")
    second = overwrite(folder / "two")
    other.follow(at_once=True)
    assert name_of(one.current) == "two"
    assert other.current is not None and other.current.digest == loaded.digest
    assert "the files of 'two' changed" in (other.problem or "")
    with pytest.raises(ConflictError, match="the files of 'two' changed"):
        Registry(database, None, folder).begin()
    # The remedy works.
    shutil.copytree(folder / "two", folder / "four")
    (folder / "two" / "decision.json").write_text(second)
    other.follow(at_once=True)
    assert other.current.name == "two" and other.problem is None
    assert one.activate("four").decision.threshold == 0.123


def test_a_restart_with_an_overwritten_run_says_what_to_do(tiny_run: Path, tmp_path: Path, near: Database) -> None:
    run = with_threshold(tiny_run, tmp_path / "mine", 0.5)
    Registry(near, run, None).begin()
    Registry(near, run, None).begin()
    overwrite(run)
    with pytest.raises(ConflictError, match="the files of 'mine' changed since it was put in service"):
        Registry(near, run, None).begin()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_without_finite_weights_is_refused_and_the_old_one_stays(
    network_run: Path, tmp_path: Path, near: Database, value: float
) -> None:
    runs = tmp_path / "runs"
    with_threshold(network_run, runs / "good", 0.5)
    bad = with_weights(network_run, runs / "bad", value)
    registry = Registry(near, None, runs, "full")
    good = registry.activate("good")
    for state in ("champion", "shadow", "canary", "candidate"):
        with pytest.raises(InputError, match=r"the run 'bad' can't be put in service, because weights in .* are not finite numbers"):
            registry.put("bad", state, share=0.1 if state == "canary" else None)
    assert registry.current is good
    assert registry.challenger is None
    assert [each.name for each in registry.states()] == ["good"]
    fresh = opened(f"sqlite:///{tmp_path / 'fresh.db'}")
    with pytest.raises(InputError, match="can't be put in service"):
        Registry(fresh, bad, None, "full").begin()
    fresh.close()


def test_a_finite_weight_that_gives_no_probability_is_refused(network_run: Path, tmp_path: Path) -> None:
    model = LoadedModel.load(with_weights(network_run, tmp_path / "bad", 3e38), "bad")
    assert what_is_wrong(LoadedModel.load(network_run, "good")) is None
    found = what_is_wrong(model)
    assert found is None or "a score that is not a number from 0 to 1" in found


@pytest.mark.parametrize("kind", ["tiny_run", "network_run", "trees_run"])
def test_every_kind_of_run_passes_its_trial_and_a_broken_score_does_not(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LoadedModel.load(request.getfixturevalue(kind), "run")
    assert what_is_wrong(model) is None
    monkeypatch.setattr(LoadedModel, "step", lambda self, values, state: (np.array([[np.nan, np.nan]]), state))
    assert what_is_wrong(model) == "it gives typical rows a score that is not a number from 0 to 1"


def test_a_run_that_is_not_in_service_and_one_that_is_not_here_are_said(
    folder: Path, near: Database, caplog: pytest.LogCaptureFixture
) -> None:
    first = Registry(near, folder / "one", folder)
    first.begin()
    assert first.notes == []
    first.activate("two")
    again = Registry(near, folder / "one", folder)
    again.begin()
    assert name_of(again.current) == "two"
    assert len(again.notes) == 1
    assert (
        '--run one is not in service, because \'two\' was put in service since; to replace it, send POST /v1/models with {"name": "one"}'
        in (caplog.text)
    )
    with pytest.raises(InputError, match=r"'two', is not among the runs .*\(only one is here\): restart with --models FOLDER"):
        Registry(near, folder / "one", None).begin()
    alone = Registry(near, None, None)
    alone.begin()
    assert "restart with --models FOLDER" in alone.notes[0]
    assert alone.current is None


def test_states_over_http(folder: Path, near: Database) -> None:
    tenant, operator = (keys.create(near, "bank", scopes)[1] for scopes in (("admin", "score"), ("operator",)))
    approver = keys.TOKEN.fullmatch(operator)[1]  # type: ignore[index]
    other = Registry(near, folder / "one", folder)
    other.begin()
    with TestClient(create_app(ServeConfig(run=folder / "one", models=folder, database=near.shown))) as client:

        def put(content: dict[str, Any] | None = None, path: str = "", key: str = operator) -> Any:
            return client.post(f"/v1/models{path}", json=content, headers={"Authorization": f"Bearer {key}"})

        assert put({"name": "two"}, key=tenant).status_code == 403  # a tenant's admin changes nothing for all
        assert put(path="/rollback", key=tenant).status_code == 403
        assert put(path="/rollback").status_code == 409
        for content, status, error in (
            ({"name": "two", "state": "canary"}, 422, "share: a canary decides for a share"),
            ({"name": "two", "state": "canary", "share": 0}, 422, "above 0 and at most 1"),
            ({"name": "two", "state": "canary", "share": 1.5}, 422, "above 0 and at most 1"),
            ({"name": "two", "state": "shadow", "share": 0.5}, 422, "only a canary has one"),
            ({"name": "two", "state": "king"}, 422, "state"),
            ({"name": "four"}, 422, "there is no run 'four'"),
            ({"name": "../runs/two"}, 422, "there is no run"),
            ({"name": "a\x00"}, 422, "name"),
            ({"name": "two", "state": "retired"}, 409, "'two' is not registered"),
            ({"name": "one", "state": "shadow"}, 409, "'one' is the champion"),
            ({"name": "one", "state": "retired"}, 409, "'one' is the champion"),
        ):
            answer = put(content)
            assert (answer.status_code, error in answer.json()["error"]) == (status, True), answer.text
        shadow = put({"name": "two", "state": "shadow"}).json()
        assert (shadow["in_service"], shadow["challenger"], shadow["canary_share"]) == ("one", "two", 0)
        other.follow(at_once=True)
        assert name_of(other.challenger) == "two" and other.canary_share == 0
        refused = put({"name": "three", "state": "canary", "share": 0.1})
        assert refused.status_code == 409 and "'two' is the challenger, as shadow; there can be one at a time" in refused.json()["error"]
        canary = put({"name": "two", "state": "canary", "share": 0.25}).json()
        assert canary["canary_share"] == 0.25
        other.follow(at_once=True)
        assert other.canary_share == 0.25
        champion = put({"name": "two"}).json()
        assert (champion["in_service"], champion["challenger"], champion["canary_share"]) == ("two", None, 0)
        assert put({"name": "two"}).json()["activations"] == champion["activations"]  # already in service
        found = {each["name"]: (each["state"], each["by"]) for each in champion["models"]}
        assert found == {"one": ("retired", approver), "two": ("champion", approver)}
        latest, first = champion["activations"]
        assert (latest["by"], latest["rolled_back"], first["by"]) == (approver, False, None)
        assert time.time() - latest["activated"] < DAY
        assert put({"name": "three", "state": "candidate"}).json()["challenger"] is None
        assert put({"name": "three", "state": "shadow"}).json()["challenger"] == "three"
        back = put(path="/rollback").json()
        assert (back["in_service"], back["challenger"]) == ("one", "three")
        assert back["activations"][0]["rolled_back"]
        assert put(path="/rollback").status_code == 409  # nothing was before the first one
        other.follow(at_once=True)
        assert name_of(other.current) == "one"
        shutil.rmtree(folder / "three")
        assert put({"name": "three", "state": "retired"}).json()["challenger"] is None
        other.follow(at_once=True)
        assert other.challenger is None
        listed = client.get("/v1/models", headers={"Authorization": f"Bearer {operator}"}).json()
        assert {each["name"]: each["state"] for each in listed["models"]} == {"one": "champion", "two": "retired", "three": "retired"}
        assert listed["available"] == ["one", "two"]


def test_two_rollbacks_lead_two_champions_back(folder: Path, near: Database) -> None:
    registry = Registry(near, None, folder)
    for name in ("one", "two", "three"):
        registry.activate(name)
    assert registry.roll_back().name == "two"
    assert registry.roll_back().name == "one"
    with pytest.raises(ConflictError, match="there was no other champion before this one"):
        registry.roll_back()
    registry.activate("three")
    assert registry.roll_back().name == "one"


def test_the_champion_before_is_not_one_that_was_left() -> None:
    def row(name: str, rolled_back: bool = False) -> dict[str, Any]:
        return {"name": name, "digest": name.lower(), "rolled_back": rolled_back}

    def before(*rows: dict[str, Any]) -> str | None:
        found = champion_before(rows[::-1])
        return None if found is None else found[0]

    assert before() is None
    assert before(row("A")) is None
    assert before(row("A"), row("A")) is None  # recorded again by another version
    assert before(row("A"), row("B")) == "A"
    assert before(row("A"), row("B"), row("A")) == "B"
    assert before(row("A"), row("B"), row("A", True)) is None
    assert before(row("A"), row("B"), row("C"), row("B", True)) == "A"
    assert before(row("A"), row("B"), row("C"), row("B", True), row("D")) == "B"


def test_a_database_of_an_earlier_version_starts_and_records_the_files_again(folder: Path, near: Database) -> None:
    files = run_digests(folder / "one", "auto")
    assert len(files.others) == 3
    for number, digest in enumerate(sorted(files.others), 1):
        row = {"generation": 2 * number, "name": "one", "digest": digest, "activated": 1.0}
        near.write(lambda connection, row=row: connection.execute(insert(models).values(row)))  # type: ignore[misc]
        registry = Registry(near, folder / "one", None)
        registry.begin()
        assert registry.current is not None and registry.current.digest == files.digest
        latest = registry.activations()[0]
        assert (latest["generation"], latest["digest"]) == (2 * number + 1, files.digest)
        again = Registry(near, folder / "one", None)
        again.begin()
        assert again.activations()[0] == latest


def test_a_model_is_loaded_once_per_process(folder: Path, near: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = LoadedModel.load

    def counted(folder: Path, name: str, precision: Any = "full") -> LoadedModel:
        loads.append(name)
        return load(folder, name, precision)

    monkeypatch.setattr(rooms.LoadedModel, "load", counted)
    registry = Registry(near, folder / "one", folder)
    registry.begin()
    registry.begin()
    registry.put("two", "shadow")
    registry.put("two", "canary", share=0.5)
    registry.follow(at_once=True)
    registry.activate("two")
    registry.follow(at_once=True)
    registry.activate("two")
    assert loads == ["one", "two"]


def test_workers_that_begin_or_change_at_once_agree(folder: Path, database: Database) -> None:
    registries = [Registry(database, folder / "one", folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Registry.begin, registries))
        assert len(registries[0].activations()) == 1
        assert {registry.serving.generation for registry in registries} == {1}

        def challenge(number: int) -> str:
            try:
                registries[number].put(("two", "three")[number % 2], "shadow")
            except ConflictError as error:
                return str(error)
            return ""

        said = list(threads.map(challenge, range(4)))
    assert sorted(map(bool, said)) == [False, False, True, True]
    for registry in registries:
        registry.follow(at_once=True)
    assert len({name_of(registry.challenger) for registry in registries}) == 1


def test_a_challenger_whose_files_are_gone_leaves_the_champion(folder: Path, near: Database, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(near, folder / "one", folder)
    registry.begin()
    registry.put("two", "shadow")
    overwrite(folder / "two")
    registry.follow(at_once=True)
    assert registry.challenger is not None  # it is loaded
    other = Registry(near, folder / "one", folder)
    other.begin()
    assert other.current is not None and other.challenger is None
    assert "the files of 'two' changed" in (other.problem or "")
    for _ in range(3):
        other.follow(at_once=True)
    assert caplog.text.count("the model 'two' can't be served here") == 1
    shutil.move(folder, folder.with_name("moved"))
    other.follow(at_once=True)
    assert other.current is not None
    assert "the folder of --models can't be read" in (other.problem or "")


def test_a_copy_of_the_champion_is_put_in_service_by_its_name(folder: Path, near: Database) -> None:
    shutil.copytree(folder / "one", folder / "copy")
    registry = Registry(near, folder / "one", folder)
    registry.begin()
    with pytest.raises(ConflictError, match="'copy' is the champion, or a copy of it"):
        registry.put("copy", "shadow")
    registry.activate("copy")
    assert name_of(registry.current) == "copy"
    assert registry.roll_back().name == "one"


def test_the_comparison_over_http_names_its_challenger(folder: Path, near: Database) -> None:
    with TestClient(create_app(ServeConfig(run=folder / "one", models=folder, database=near.shown))) as client:
        assert client.get("/v1/models/comparison").status_code == 409
        client.post("/v1/models", json={"name": "two", "state": "shadow"})
        answer = client.get("/v1/models/comparison")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["champion"]["name"], answer.json()["challenger"]["name"]) == ("one", "two")
        client.post("/v1/models", json={"name": "two", "state": "retired"})
        assert client.get("/v1/models/comparison").status_code == 409
        assert client.get("/v1/models/comparison", params={"challenger": "two"}).status_code == 200
        assert client.get("/v1/models/comparison", params={"challenger": "two", "since": 5, "until": 9.5}).json()["rows"] == 0
        for wrong in ("nan", "inf", "-1", "1e300", "yesterday"):
            assert client.get("/v1/models/comparison", params={"challenger": "two", "since": wrong}).status_code == 422
        unknown = client.get("/v1/models/comparison", params={"challenger": "four"})
        assert unknown.status_code == 422 and "there is no registered model 'four'" in unknown.json()["error"]
        assert client.post("/v1/score", json={"transactions": [card()]}).status_code == 200


def test_scores_of_a_shadow_and_of_a_canary_are_compared(folder: Path, near: Database) -> None:
    with TestClient(create_app(ServeConfig(run=folder / "one", models=folder, database=near.shown))) as client:
        for number in range(40):
            if number in (10, 20):
                change = {"name": "two", "state": "shadow"} | ({"state": "canary", "share": 0.5} if number == 20 else {})
                assert client.post("/v1/models", json=change).status_code == 200
            raw = card(transaction_id=f"x{number}", card_id=f"c{number}", amount=10.0 + number)
            assert client.post("/v1/score", json={"transactions": [raw]}).status_code == 200
        labels = [{"id": f"x{number}", "label": str(int(number % 5 == 0))} for number in range(0, 40, 2)]
        assert client.post("/v1/labels", json={"labels": labels}).json()["stored"] == 20
        found = client.get("/v1/models/comparison").json()
    assert (found["rows"], found["labelled"], found["frauds"]) == (30, 15, 3)
    assert found["agreement"]["value"] is not None
    assert found["average_precision_difference"]["value"] == 0  # they differ in their thresholds alone
    decided = near.read(lambda connection: connection.execute(select(decisions.c.digest, decisions.c.transaction)).all())
    by_two = {row.transaction for row in decided if row.digest == found["challenger"]["digest"]}
    assert 0 < len(by_two) < 20 and all(int(name[1:]) >= 20 for name in by_two)


def test_only_one_challenger_is_stored_even_by_hand(folder: Path, near: Database) -> None:
    """Where two are stored, all workers take the same one."""
    registry = Registry(near, folder / "one", folder)
    registry.begin()
    registry.put("two", "shadow")
    registry.put("three", "candidate")
    changed = update(registered_models).where(registered_models.c.name == "three").values(state="shadow", changed=time.time() + 5)
    near.write(lambda connection: connection.execute(changed))
    registry.follow(at_once=True)
    assert name_of(registry.challenger) == "three"
    found = near.read(lambda connection: connection.execute(select(registered_models.c.state)).scalars().all())
    assert sorted(found) == ["champion", "shadow", "shadow"]
