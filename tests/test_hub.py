"""Checkpoints by name, against a stand-in of the Hugging Face hub on loopback.

The hub's client reads its settings when it is imported: each test runs it in its own process.
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import numpy as np
import pytest

from e5spark.encoder import Encoder
from e5spark.model import registry
from tests import checkpoints
from tests.oracle import INVARIANCE_TOLERANCE, assert_close

SMALL = "intfloat/multilingual-e5-small"
PINNED = registry.find(SMALL).revision
DISTILLED = "avditvs/multilingual-e5-small-distill-base"
FIRST, SECOND = "1" * 40, "2" * 40
TEXTS = ["A short text.", "图书馆早上九点开门", ""]

CLIENT = """
import dataclasses, json, sys
from e5spark.model import checkpoint, registry
from e5spark.errors import E5SparkError
from e5spark.model.spec import model_spec

known = registry.find("intfloat/multilingual-e5-small")
shape = dataclasses.replace(known.shape, ffn=64)
registry.CHECKPOINTS[known.name] = dataclasses.replace(known, shape=shape, vocab=2000)

def located(name, options):
    spec = model_spec(name, options)
    files = checkpoint.locate(spec)
    checkpoint.check_published(spec, files)
    pinned = checkpoint.pin(spec, files).revision
    return {"model": str(files.model), "tokenizer": str(files.tokenizer), "revision": pinned}

def encoded(name, options):
    from e5spark.encoder import Encoder
    return Encoder.load(name, **options).encode(options_texts, role="query").tolist()

for line in sys.stdin:
    call, name, options, options_texts = json.loads(line)
    try:
        answer = {"located": located, "encoded": encoded}[call](name, options)
    except E5SparkError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""

# multilingual-e5-small without its bulk: as CLIENT has it in its registry.
SIZES = {**checkpoints.SMALL, "ffn": 64}
VOCABULARY = 2000


class Hub:
    """What the hub's client asks of the hub: a commit, its list of files, and the files."""

    def __init__(self):
        self.commits = {}
        self.main = {}
        self.sent = []
        self.status = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = "http://127.0.0.1:{1}".format(*self._server.server_address)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def publish(self, name, commit, files):
        """Put a commit on top of main; the files by their path."""
        self.commits[name, commit] = files
        self.main[name] = commit

    def close(self):
        """Switch the hub off; asking it is refused from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, path):
        """The headers and the body of the file at a path."""
        if self.status is not None:
            return self.status, {}, b""
        if not (route := re.fullmatch(ROUTES, path)):
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        name = route["api"] or route["repo"]
        if name not in self.main:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        wanted = route["revision"] or route["tree"] or route["commit"]
        commit = self.main[name] if wanted == "main" else wanted
        if (name, commit) not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.commits[name, commit]
        if route["revision"]:
            return 200, {}, json.dumps({"id": name, "sha": commit}).encode()
        if route["tree"]:
            return 200, {}, json.dumps([entry(*item) for item in files.items()]).encode()
        self.sent.append(f"{name}/{route['file']}")
        content = files[route["file"]]
        return 200, {"X-Repo-Commit": commit, **file_headers(route["file"], content)}, content

    def _handler(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.respond(with_body=True)

            def do_HEAD(self):
                self.respond(with_body=False)

            def respond(self, *, with_body):
                status, headers, body = hub.answer(urlsplit(self.path).path)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *arguments):
                """Keep the tests' output quiet."""

        return Handler


ROUTES = (
    r"/api/models/(?P<api>[^/]+/[^/]+)/(revision/(?P<revision>\w+)|tree/(?P<tree>\w+))"
    r"|/(?P<repo>[^/]+/[^/]+)/resolve/(?P<commit>\w+)/(?P<file>.+)"
)


def is_large(path):
    """Whether the hub keeps the file in its large storage, under its sha256."""
    return path.endswith((".safetensors", ".bin", ".onnx"))


def entry(path, content):
    sha256 = hashlib.sha256(content).hexdigest()
    large = {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
    plain = {"type": "file", "path": path, "size": len(content), "oid": sha256[:40]}
    return {**plain, **large} if is_large(path) else plain


def file_headers(path, content):
    sha256 = hashlib.sha256(content).hexdigest()
    if not is_large(path):
        return {"ETag": f'"{sha256[:40]}"'}
    return {
        "ETag": '"of-the-storage"',
        "X-Linked-Etag": f'"{sha256}"',
        "X-Linked-Size": str(len(content)),
    }


@pytest.fixture
def hub():
    running = Hub()
    yield running
    running.close()


@pytest.fixture
def client(hub, tmp_path):
    """Resolves a checkpoint by name in a process with an empty cache of its own."""
    environment = dict(os.environ) | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def ask(name, call="located", **options):
            process.stdin.write(json.dumps([call, name, options, TEXTS]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint with the layers and the width of multilingual-e5-small, and little else."""
    directory = tmp_path_factory.mktemp("small")
    return checkpoints.bert_unigram(directory, **SIZES, vocab_size=VOCABULARY)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


STUB = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


def test_a_known_name_is_fetched_once_at_its_pinned_revision(hub, client, small, monkeypatch):
    checkpoint = registry.find(SMALL)
    slim = dataclasses.replace(checkpoint, shape=registry.Shape(**SIZES), vocab=VOCABULARY)
    monkeypatch.setitem(registry.CHECKPOINTS, SMALL, slim)
    published = contents(small) | {"1_Pooling/config.json": b"{}"}
    unwanted = (
        "README.md",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "onnx/config.json",
        "openvino/config.json",
        "handler.py",
    )
    hub.publish(SMALL, PINNED, published | dict.fromkeys(unwanted, b"not wanted"))
    hub.publish(SMALL, SECOND, {"config.json": b"a later commit"})

    vectors = np.array(client(SMALL, "encoded", download=True))
    expected = Encoder.load(str(small), checkpoint=SMALL).encode(TEXTS, role="query")
    assert_close(vectors, expected, INVARIANCE_TOLERANCE)
    assert set(hub.sent) == {f"{SMALL}/{path}" for path in published}

    hub.close()
    assert client(SMALL, "encoded", download=False) == vectors.tolist()
    assert client(SMALL, download=True)["revision"] == PINNED


def test_a_name_that_is_not_cached_is_refused_with_the_ways_to_provide_it(hub, client):
    hub.publish(SMALL, PINNED, STUB)
    reply = client(SMALL)
    assert reply["error"] == "ModelError"
    for needed in (
        f"{SMALL} at revision {PINNED} is not in the hub cache of this machine",
        "download=True",
        "model.download = true",
        f"hf download {SMALL} --revision {PINNED} --local-dir DIR",
        f"checkpoint='{SMALL}'",
        "--archives model.tar.gz#model",
    ):
        assert needed in reply["message"]
    assert hub.sent == []


def test_a_checkpoint_without_pin_stays_at_the_commit_of_its_first_fetch(hub, client):
    name = "intfloat/e5-small"
    hub.publish(name, FIRST, STUB)
    assert client(name, download=True)["revision"] == FIRST
    hub.publish(name, SECOND, STUB | {"model.safetensors": b"others"})
    for download in (True, False):
        reply = client(name, download=download)
        assert reply["revision"] == FIRST
        assert (Path(reply["model"]) / "model.safetensors").read_bytes() == b"weights"


def test_a_revision_of_the_user_overrides_the_pinned_one(hub, client):
    hub.publish(SMALL, PINNED, STUB)
    hub.publish(SMALL, SECOND, STUB)
    reply = client(SMALL, download=True, revision=SECOND)
    assert Path(reply["model"]).name == SECOND


def test_a_name_that_e5spark_does_not_know_works_with_a_revision(hub, client):
    hub.publish("someone/e5-of-mine", FIRST, STUB)
    reply = client("someone/e5-of-mine", download=True, revision=FIRST)
    assert Path(reply["model"]).name == FIRST


def test_a_borrowed_tokenizer_is_fetched_at_its_own_pin(hub, client):
    weights = {name: STUB[name] for name in ("config.json", "model.safetensors")}
    hub.publish(DISTILLED, FIRST, weights)
    hub.publish(SMALL, PINNED, STUB)
    hub.publish(SMALL, SECOND, STUB)
    reply = client(DISTILLED, download=True)
    assert Path(reply["model"]).name == FIRST
    assert Path(reply["tokenizer"]).name == PINNED
    hub.close()
    assert client(DISTILLED) == reply


@pytest.mark.parametrize(
    ("name", "revision"), [("someone/none", FIRST), ("intfloat/e5-small", None)]
)
def test_a_repository_that_the_hub_has_not_is_a_model_error(hub, client, name, revision):
    reply = client(name, download=True, revision=revision)
    assert reply["error"] == "ModelError"
    assert f"The hub ({hub.endpoint}) has no {name}" in reply["message"]


def test_a_revision_that_the_hub_has_not_is_a_model_error(hub, client):
    hub.publish(SMALL, FIRST, STUB)
    reply = client(SMALL, download=True)
    assert reply["error"] == "ModelError"
    assert f"has no {SMALL} at revision {PINNED}" in reply["message"]


def test_a_name_that_no_hub_could_have_is_a_model_error(client):
    reply = client("a/b/c", download=True, revision=FIRST)
    assert reply["error"] == "ModelError"
    assert "'a/b/c' is not a valid name on the hub" in reply["message"]


def test_a_hub_that_cannot_be_reached_is_transient(hub, client):
    hub.close()
    reply = client("intfloat/e5-small", download=True)
    assert reply["error"] == "TransientError"
    assert (
        f"The hub ({hub.endpoint}) could not be reached for intfloat/e5-small" in reply["message"]
    )


def test_a_hub_that_fails_is_transient(hub, client):
    hub.status = 501
    reply = client("intfloat/e5-small", download=True)
    assert reply["error"] == "TransientError"


def test_weights_altered_in_the_cache_are_caught(hub, client):
    hub.publish(SMALL, PINNED, STUB)
    weights = Path(client(SMALL, download=True)["model"]) / "model.safetensors"
    weights.write_bytes(b"altered")
    reply = client(SMALL)
    assert reply["error"] == "ModelError"
    assert hashlib.sha256(b"altered").hexdigest() in reply["message"]
    assert f"was published with {hashlib.sha256(b'weights').hexdigest()}" in reply["message"]


def test_a_file_lost_from_the_cache_is_fetched_again(hub, client):
    hub.publish(SMALL, PINNED, STUB)
    weights = Path(client(SMALL, download=True)["model"]) / "model.safetensors"
    weights.unlink()
    assert client(SMALL)["error"] == "ModelError"
    client(SMALL, download=True)
    assert weights.read_bytes() == b"weights"


def test_a_download_that_ended_between_two_parts_is_continued(hub, client):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    parts = dict.fromkeys(index["weight_map"].values(), b"weights")
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    hub.publish("someone/large", FIRST, files | parts | {"tokenizer.json": b"{}"})
    directory = Path(client("someone/large", download=True, revision=FIRST)["model"])
    (directory / "model-2.safetensors").unlink()
    assert client("someone/large", revision=FIRST)["error"] == "ModelError"
    client("someone/large", download=True, revision=FIRST)
    assert (directory / "model-2.safetensors").read_bytes() == b"weights"
