"""Identities on a real MinIO: what a learner's user can do, and what it cannot."""

from __future__ import annotations

import base64
import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from minio.commonconfig import Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.commands.identities import Identity, enroll, policy_of, prepare, revoke, rotate
from fedpipe.commands.run import _check_keys
from fedpipe.compiled.graph import read_graph
from fedpipe.engine.local import Engine
from fedpipe.errors import InputError, NotFoundError, StoreError
from fedpipe.federation.file import read_federation
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import COORDINATOR, public_key
from fedpipe.learners.contribute import contribute
from fedpipe.learners.vote import vote
from fedpipe.registry.publication import versions
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history, read_head
from fedpipe.rounds.manifests import Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.timings import Timing, note
from fedpipe.serving.catalogue import locate
from fedpipe.store import Store, keys, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.s3 import MinioStore
from fedpipe.store.users import Users
from tests import servers
from tests.federations import PlusOneLearner, close_vote, fresh, make_federation, make_plan

LEARNERS = {"a": PlusOneLearner(1), "b": PlusOneLearner(2)}


def write_file(folder: Path, store: str, *, secret: str = "") -> Path:
    members = [{"name": "a"}, {"name": "b", **({"secret": secret} if secret else {})}]
    content = {
        "name": "tiny", "store": store, "learners": members, "data": {"uri": "x.npz"},
        "training": {"rounds": 2, "batch_size": 1},
    }  # fmt: skip
    (folder / "federation.yaml").write_text(yaml.safe_dump(content))
    return folder / "federation.yaml"


@pytest.fixture
def file(tmp_path: Path, minio_server: servers.Server, s3_keys: None) -> Path:
    """A federation with a prefix of its own on MinIO."""
    uri = minio_server.uri.replace("s3://tests", f"s3://tests/{tmp_path.name.replace('_', '-')}")
    return write_file(tmp_path, uri)


def uri_of(file: Path) -> str:
    return str(yaml.safe_load(file.read_text())["store"])


def secret_of(made: Identity) -> dict[str, str]:
    manifest = yaml.safe_load(made.files[-1].read_text())
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("Secret", made.secret)
    return {key: base64.b64decode(value).decode() for key, value in manifest["data"].items()}


def opened(file: Path, secret: dict[str, str]) -> MinioStore:
    """The federation's store as a learner opens it."""
    whole = open_store(uri_of(file))
    assert isinstance(whole, MinioStore)
    return MinioStore(
        "tests", f"{whole._prefix}/tiny", endpoint=whole._endpoint, credentials=Credentials(secret["accesskey"], secret["secretkey"]),
    )  # fmt: skip


def coordinators(file: Path) -> Store:
    return open_store(uri_of(file)).below("tiny")


class TestALearnersUser:
    @pytest.fixture
    def stores(self, file: Path) -> dict[str, MinioStore]:
        return {name: opened(file, secret_of(enroll(file, name))) for name in LEARNERS}

    def test_takes_part_in_rounds(
        self, file: Path, stores: dict[str, MinioStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Everything that a learner's steps do, with its own credentials and key."""
        monkeypatch.setenv("FEDPIPE_KEYS", str(file.parent / "keys"))
        ours, plan = coordinators(file), make_plan(make_federation(tuple(LEARNERS)))
        record = begin(ours, plan, fresh)
        for number in (1, 2):
            for name, learner in LEARNERS.items():
                offered = contribute(stores[name], plan, name, number, record.weights, lambda k=learner: k)
                assert isinstance(offered, Update), offered
                note(stores[name], plan.run, Timing(step="train", learner=name, round=number, started=0.0, seconds=1.0))
            record = close_round(ours, plan, number, record.weights)
            assert [u.learner for u in record.updates] == ["a", "b"]
            assert all(u.signature for u in record.updates)

    def test_takes_part_in_votes(
        self, file: Path, stores: dict[str, MinioStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDPIPE_KEYS", str(file.parent / "keys"))
        federation = make_federation(tuple(LEARNERS), algorithm={"name": "collective"})
        ours, plan = coordinators(file), make_plan(federation)
        base = begin(ours, plan, fresh).weights
        offered = contribute(stores["a"], plan, "a", 1, base, lambda: LEARNERS["a"])
        assert isinstance(offered, Update)
        for name, learner in LEARNERS.items():
            vote(stores[name], plan, name, 1, base, offered.weights, "a", lambda k=learner: k)
        record = close_vote(ours, plan, 1, base)
        assert len(record.ballots) == 2
        assert not record.absent

    def test_reads_nothing_of_another_learner(self, file: Path, stores: dict[str, MinioStore]) -> None:
        ours, plan = coordinators(file), self.played(file)
        shard, update = "learners/b/shard", f"learners/b/runs/{plan.run}/1/update"
        ours.create(shard, b"{}")
        weights = read_update(ours, update)["weights"].removeprefix("sha256:")
        for key in (shard, update, f"learners/b/objects/{weights}", "coordinator/x"):
            ours.create(key, b"{}")
            with pytest.raises(StoreError, match="refuses the credentials") as caught:
                stores["a"].read(key)
            assert not isinstance(caught.value, NotFoundError)
        assert stores["a"].read(f"runs/{plan.run}/1/record").data
        assert stores["b"].read(update).data
        assert read_enrolled(stores["a"]).learners.keys() == {"a", "b"}

    def test_sends_parcels_and_removes_its_own(self, stores: dict[str, MinioStore]) -> None:
        key, other = keys.parcel("a", "0f" * 32), keys.update("a", "r", 1)
        assert stores["a"].poll(key) is None
        assert stores["a"].create(key, b"numbers")
        assert stores["b"].read(key).data == b"numbers"
        stores["a"].replace(other, b"{}")
        for name, kept in (("b", key), ("a", other)):
            with pytest.raises(StoreError):
                stores[name].delete(kept)
        stores["a"].delete(key)
        assert stores["b"].poll(key) is None

    def test_lists_nothing(self, file: Path, stores: dict[str, MinioStore]) -> None:
        self.played(file)
        for prefix in ("", "learners/", "learners/a/", "objects/"):
            with pytest.raises(StoreError):
                list(stores["a"].keys(prefix))

    def test_writes_nothing_but_its_own(self, file: Path, stores: dict[str, MinioStore]) -> None:
        ours, plan = coordinators(file), self.played(file)
        head = read_head(ours)
        assert head is not None
        before = {key: ours.read(key).data for key in ours.keys()}
        for key in ("HEAD", f"runs/{plan.run}/1/record", f"runs/{plan.run}/9/record", "objects/x", "enrolled",
                    f"learners/b/runs/{plan.run}/1/update", "learners/b/x", "coordinator/x"):  # fmt: skip
            for write in (stores["a"].create, stores["a"].replace):
                with pytest.raises(StoreError):
                    write(key, b"{}")
        with pytest.raises(StoreError):
            stores["a"].swap("HEAD", b"{}", head[1])
        assert {key: ours.read(key).data for key in ours.keys()} == before
        assert stores["a"].create("learners/a/x", b"1")

    def played(self, file: Path) -> Plan:
        """A round that the coordinator's credentials played for all."""
        ours, plan = coordinators(file), make_plan(make_federation(tuple(LEARNERS)))
        base = begin(ours, plan, fresh).weights
        for name, learner in LEARNERS.items():
            contribute(ours, plan, name, 1, base, lambda k=learner: k)
        record = close_unsigned(ours, plan, base)
        assert record
        return plan


def close_unsigned(store: Store, plan: Plan, base: str) -> Any:
    """Commits round 1 although nobody signed: the enrolment is put aside."""
    enrolled = store.read("enrolled")
    store.replace("enrolled", b'{"learners": {}}')
    record = close_round(store, plan, 1, base)
    store.replace("enrolled", enrolled.data)
    return record


def read_update(store: Store, key: str) -> dict[str, Any]:
    return dict(yaml.safe_load(store.read(key).data))


class TestEnroll:
    def test_writes_a_key_and_a_secret_that_nobody_else_reads(self, file: Path) -> None:
        made = enroll(file, "a")
        assert [path.name for path in made.files] == ["a.key", "a.secret.yaml"]
        for path in made.files:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (file.parent / "keys" / ".gitignore").read_text() == "*\n"
        secret = secret_of(made)
        assert set(secret) == {"accesskey", "secretkey", "signingkey"}
        known = read_enrolled(coordinators(file)).learners["a"]
        assert known.key == public_key(secret["signingkey"])
        assert re.fullmatch("fedpipe-tiny-a-[0-9a-f]{8}", known.user)
        assert made.secret == "fedpipe-tiny-a"
        for key in secret.values():
            assert key == secret["accesskey"] or key not in repr(read_enrolled(coordinators(file)))

    def test_only_once(self, file: Path) -> None:
        made = enroll(file, "a")
        before = [path.read_bytes() for path in made.files]
        with pytest.raises(InputError, match=r"'a' has been enrolled since .* UTC") as caught:
            enroll(file, "a")
        assert caught.value.remedy == "Run `fedpipe rotate a` to replace its keys."
        assert [path.read_bytes() for path in made.files] == before

    def test_a_name_that_is_none(self, file: Path) -> None:
        with pytest.raises(InputError, match="there is no learner 'c'") as caught:
            enroll(file, "c")
        assert caught.value.remedy == "Learners: a, b."
        assert not (file.parent / "keys").exists()

    def test_nothing_is_left_when_it_fails(self, file: Path) -> None:
        name = enroll(file, "b").user.replace("-b-", "-a-")
        shutil.rmtree(file.parent / "keys")
        (file.parent / "keys").write_text("a file where the folder must be")
        with pytest.raises(InputError, match=r"cannot be written"):
            enroll(file, "a")
        (file.parent / "keys").unlink()
        assert not Users(uri_of(file)).has(name)
        assert "a" not in read_enrolled(coordinators(file)).learners

    def test_a_user_that_somebody_made(self, file: Path) -> None:
        made = enroll(file, "a", given=Credentials("theirs", "their-secret"))
        assert secret_of(made)["secretkey"] == "their-secret"
        assert read_enrolled(coordinators(file)).learners["a"].user == "theirs"
        assert revoke(file, "a") == "theirs"

    def test_a_folder_has_no_users(self, tmp_path: Path) -> None:
        file = write_file(tmp_path, "store")
        made = enroll(file, "a")
        assert [path.name for path in made.files] == ["a.key"]
        assert not made.user
        with pytest.raises(InputError, match="a folder has no users"):
            policy_of(file, "a")

    def test_the_secret_is_named_by_the_federation_file(self, tmp_path: Path, file: Path) -> None:
        write_file(tmp_path, uri_of(file), secret="hospital-b-store")
        assert enroll(file, "b").secret == "hospital-b-store"


class TestRotate:
    def test_the_old_keys_are_worth_nothing(self, file: Path) -> None:
        before = secret_of(enroll(file, "a"))
        after = secret_of(rotate(file, "a"))
        assert before["accesskey"] == after["accesskey"]
        with pytest.raises(StoreError):
            opened(file, before).create("learners/a/x", b"1")
        assert opened(file, after).create("learners/a/x", b"1")
        assert read_enrolled(coordinators(file)).learners["a"].key == public_key(after["signingkey"])

    def test_only_who_is_enrolled(self, file: Path) -> None:
        with pytest.raises(InputError, match="'a' is not enrolled"):
            rotate(file, "a")


class TestRevoke:
    def test_its_user_is_gone_and_its_updates_are_refused(self, file: Path) -> None:
        secret = secret_of(enroll(file, "a"))
        assert revoke(file, "a") == ""
        with pytest.raises(StoreError):
            opened(file, secret).create("learners/a/x", b"1")
        assert read_enrolled(coordinators(file)).learners["a"].revoked
        with pytest.raises(InputError, match=r"'a' is not enrolled: it was revoked on .* UTC"):
            revoke(file, "a")
        assert opened(file, secret_of(enroll(file, "a"))).create("learners/a/x", b"1")  # and it can come back


class TestTheCoordinator:
    def test_its_user_does_all_but_say_who_is_enrolled(self, file: Path) -> None:
        made = enroll(file, COORDINATOR)
        assert made.who == "the coordinator"
        assert made.secret == "fedpipe-tiny"  # not Kubeflow's own, which the file names by default
        assert [path.name for path in made.files] == ["_coordinator.key", "_coordinator.secret.yaml"]
        secret = secret_of(made)
        known = read_enrolled(coordinators(file)).coordinator
        assert known is not None
        assert known.key == public_key(secret["signingkey"])
        own = opened(file, secret)
        assert own.create("models/tiny/1/model.onnx", b"x")
        assert read_enrolled(own).coordinator == known
        token = own.read("enrolled").version
        for act in (
            lambda: own.replace("enrolled", b"{}"),
            lambda: own.swap("enrolled", b"{}", token),
            lambda: own.delete("enrolled"),
        ):
            with pytest.raises(StoreError):
                act()
        assert read_enrolled(coordinators(file)).coordinator == known

    def test_a_secret_that_the_file_names(self, tmp_path: Path, file: Path) -> None:
        content = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(content | {"secret": "ours"}))
        assert enroll(file, COORDINATOR).secret == "ours"

    def test_only_once_and_never_a_learner(self, file: Path) -> None:
        enroll(file, COORDINATOR)
        with pytest.raises(InputError, match="the coordinator has been enrolled since") as caught:
            enroll(file, COORDINATOR)
        assert caught.value.remedy == "Run `fedpipe rotate --coordinator` to replace its keys."
        assert not read_enrolled(coordinators(file)).learners

    def test_revoked_it_is_known_for_that(self, file: Path) -> None:
        secret = secret_of(enroll(file, COORDINATOR))
        assert revoke(file, COORDINATOR) == ""
        with pytest.raises(StoreError):
            opened(file, secret).read("enrolled")
        known = read_enrolled(coordinators(file)).coordinator
        assert known is not None
        assert known.revoked


@pytest.mark.parametrize("command", ["enroll", "rotate", "revoke"])
@pytest.mark.parametrize("arguments", [[], ["a", "--coordinator"]])
def test_an_identity_is_of_a_learner_or_of_the_coordinator(command: str, arguments: list[str], tmp_path: Path) -> None:
    told = CliRunner().invoke(app, [command, *arguments, "-f", str(write_file(tmp_path, "store"))])
    assert isinstance(told.exception, InputError)
    assert str(told.exception) == "specify a learner or --coordinator"


class TestOtherStores:
    def test_a_server_without_the_admin_api(
        self, tmp_path: Path, versitygw_server: servers.Server, s3_keys: None
    ) -> None:
        file = write_file(tmp_path, f"s3://tests/without-users?endpoint={versitygw_server.endpoint}")
        with pytest.raises(StoreError, match="the store refuses to manage users") as caught:
            enroll(file, "a")
        assert "fedpipe policy" in str(caught.value.remedy)
        assert not (tmp_path / "keys").exists()
        assert "a" not in read_enrolled(coordinators(file)).learners

    def test_a_store_of_amazon(self, s3_keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        with pytest.raises(StoreError, match="fedpipe cannot create users on AWS") as caught:
            Users("s3://bucket")
        assert "fedpipe policy" in str(caught.value.remedy)

    def test_somebody_who_is_no_administrator(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        secret = secret_of(enroll(file, "a"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", secret["accesskey"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret["secretkey"])
        with pytest.raises(StoreError):
            enroll(file, "b")


class TestARunOnThisMachine:
    def test_needs_the_keys_of_who_is_enrolled(self, numpy_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Found before anything is trained: else it would be refused when all have trained."""
        made = enroll(numpy_digits / "federation.yaml", "hospital-c", keys=numpy_digits / "away")
        monkeypatch.delenv("FEDPIPE_KEYS", raising=False)
        told = CliRunner().invoke(app, ["run", str(numpy_digits / "federation.yaml")])
        assert isinstance(told.exception, InputError)
        assert "hospital-c is enrolled and must sign its updates" in str(told.exception)
        assert "Set FEDPIPE_KEYS" in str(told.exception.remedy)
        assert "its key is missing" in str(told.exception)
        assert not (numpy_digits / "store" / "digits" / "runs").exists()
        monkeypatch.setenv("FEDPIPE_KEYS", str(made.files[0].parent))
        store, federation = (
            open_store(str(numpy_digits / "store")).below("digits"),
            read_federation(numpy_digits / "federation.yaml"),
        )
        _check_keys(store, federation, exports=True)
        enroll(numpy_digits / "federation.yaml", COORDINATOR, keys=numpy_digits / "elsewhere")
        _check_keys(store, federation, exports=False)
        with pytest.raises(InputError, match="the coordinator is enrolled and must sign the model"):
            _check_keys(store, federation, exports=True)


class TestTheServersUser:
    def test_finds_the_models_and_reads_nothing_else(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the URI of the federation's part of the store, as the chart gives it; before the first model too."""
        uri = uri_of(file)
        part, _, query = uri.partition("?")
        done = prepare(f"{part}/tiny?{query}", server=Credentials("the-server", "secret-of-the-server"))
        assert done[0].endswith("exists and honours conditional writes")
        assert done[1].startswith("user the-server has the rights of the server below ")
        coordinators(file).create("coordinator/state", b"1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-server")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-server")
        place = locate(store=f"{part}/tiny?{query}")
        (home,) = place.folders()
        assert versions(home.models) == {}
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
            coordinators(file).create("models/tiny/1/model.onnx", b"x")
        (home,) = place.folders()
        assert versions(home.models) == {"tiny": [1]}
        for act in (lambda: place.store.read("coordinator/state"), lambda: place.store.create("models/tiny/2/x", b"x")):
            with pytest.raises(StoreError):
                act()
        monkeypatch.undo()
        Users(uri, Credentials(servers.ACCESS_KEY, servers.SECRET_KEY)).remove("the-server")

    def test_a_place_that_is_no_federation(self) -> None:
        with pytest.raises(InputError, match="is not the URI of a federation in an S3 store"):
            prepare("s3://bucket?endpoint=http://127.0.0.1:1")


class TestTheCommands:
    def test_say_what_to_do_next(self, file: Path) -> None:
        told = CliRunner().invoke(app, ["enroll", "a", "-f", str(file)])
        assert told.exit_code == 0, told.output
        text = " ".join(told.output.split())
        assert "kubectl apply -n NAMESPACE -f" in text
        assert "secret: fedpipe-tiny-a" in text
        secret = yaml.safe_load((file.parent / "keys" / "a.secret.yaml").read_text())
        assert base64.b64decode(secret["data"]["secretkey"]).decode() not in told.output
        assert (file.parent / "keys" / "a.key").read_text().strip() not in told.output
        assert CliRunner().invoke(app, ["rotate", "a", "-f", str(file)]).exit_code == 0
        revoked = CliRunner().invoke(app, ["revoke", "a", "-f", str(file)])
        assert "a is revoked: its updates are refused" in revoked.output

    def test_policies(self, file: Path) -> None:
        for arguments, word in ((["a"], "learners/a/*"), ([], "s3:DeleteObject"), (["--server"], "models/*")):
            told = CliRunner().invoke(app, ["policy", *arguments, "-f", str(file)])
            assert told.exit_code == 0
            statements = yaml.safe_load(told.output)["Statement"]
            assert word in str(statements)

    def test_half_of_a_users_keys(self, file: Path) -> None:
        told = CliRunner().invoke(app, ["enroll", "a", "-f", str(file), "--access-key", "x"])
        assert "a user has two keys" in str(told.exception)


def test_every_step_in_a_process_of_its_own_with_its_own_identity(
    numpy_digits: Path, minio_server: servers.Server, s3_keys: None
) -> None:
    """As KFP's launcher starts the compiled tasks: each learner's have its secret, the others the federation's.

    The weights are those of the local engine, which runs all steps in one process on a folder.
    """
    file = numpy_digits / "federation.yaml"
    content = yaml.safe_load(file.read_text())
    content |= {"learners": content["learners"][:2], "quorum": {"min_learners": 2}}
    content["training"] |= {"rounds": 2}
    file.write_text(yaml.safe_dump(content))
    expected = fedpipe.run(file, out=numpy_digits / "out").summary
    uri = f"s3://tests/containers?endpoint={minio_server.endpoint}"
    file.write_text(yaml.safe_dump(content | {"store": uri}))
    federation = read_federation(file)
    secrets = {learner.name: secret_of(enroll(file, learner.name)) for learner in federation.learners}

    def command(secret: dict[str, str] | None, arguments: tuple[str, ...]) -> tuple[str, ...]:
        names = {
            "accesskey": "AWS_ACCESS_KEY_ID",
            "secretkey": "AWS_SECRET_ACCESS_KEY",
            "signingkey": "FEDPIPE_SIGNING_KEY",
        }
        return ("env", *(f"{names[key]}={value}" for key, value in (secret or {}).items()), *arguments)

    fedpipe.compile_pipeline(federation, numpy_digits / "pipeline.yaml")
    graph = read_graph(numpy_digits / "pipeline.yaml")
    owners = {
        task.key: str(task.inputs.get("learner", {}).get("runtimeValue", {}).get("constant")) for task in graph.tasks
    }
    tasks = tuple(t._replace(command=command(secrets.get(owners[t.key]), t.command)) for t in graph.tasks)
    assert {t.step for t in tasks} == {None}
    assert set(owners.values()) == {"None", *secrets}
    folder = numpy_digits / "containers"
    results = Engine(graph._replace(tasks=tasks), {**graph.parameters, "run": "run-1"}, folder=folder, workers=8).run()
    played = history(open_store(uri).below("digits"), "run-1")[1:]
    assert [record.weights for record in played] == [entry["weights"] for entry in expected["rounds"]]
    for record in played:
        assert {update.learner for update in record.updates} == set(secrets)
        for update in record.updates:
            assert update.signature is not None
            assert update.signature.key == public_key(secrets[update.learner]["signingkey"])
    log = (folder / "logs" / "coordinate.log").read_text()
    assert "round 1 train: asking hospital-a, hospital-b" in log
    assert "the session ends after round 2: all rounds are done" in log
    assert "round 2 hospital-b epoch 1: " in (folder / "logs" / "learn-hospital-b.log").read_text()

    placed, weights = (
        results[key]["parameterValues"][name] for key, name in (("initialise", "placed"), ("coordinate", "weights"))
    )
    inputs = {"parameterValues": {"place": placed, "learner": "hospital-b", "weights": weights}}
    text = json.dumps({"inputs": inputs, "outputs": {"outputFile": str(folder / "others.json")}})
    arguments = (sys.executable, "-m", "fedpipe", "step", "score", text)
    others = subprocess.run(command(secrets["hospital-a"], arguments), capture_output=True, text=True, check=False)
    assert others.returncode != 0
    assert "refuses the credentials" in others.stderr


class TestLifecycle:
    def test_old_versions_go_and_other_rules_stay(self, file: Path) -> None:
        part, _, query = uri_of(file).partition("?")
        store = open_store(f"{part}/tiny?{query}")
        assert isinstance(store, MinioStore)
        bucket = urlsplit(part).netloc
        foreign = Rule("Enabled", rule_filter=Filter(prefix="logs/"), rule_id="theirs", expiration=Expiration(days=3))
        store._client.set_bucket_lifecycle(bucket, LifecycleConfig([foreign]))
        for days in (30, 7):
            done = prepare(f"{part}/tiny?{query}", noncurrent_days=days)
            assert done[1] == f"old versions below {urlsplit(part).path.strip('/')}/tiny/ are removed after {days} days"
        found = store._client.get_bucket_lifecycle(bucket)
        assert found is not None
        kept, own = sorted(found.rules, key=lambda rule: str(rule.rule_id), reverse=True)
        assert (kept.rule_id, kept.expiration.days) == ("theirs", 3)  # type: ignore[union-attr]
        assert own.noncurrent_version_expiration.noncurrent_days == 7  # type: ignore[union-attr]
        assert own.expiration is None
        store._client.delete_bucket_lifecycle(bucket)
        with pytest.raises(InputError, match="-1 is not a number of days"):
            prepare(f"{part}/tiny?{query}", noncurrent_days=-1)
