"""An export pushed to a stand-in of the hub on this machine."""

import base64
import http.server
import json
import threading

import huggingface_hub
import pytest

from coadapt._errors import InputError
from coadapt.exporting import check_repo, push_export, pushing
from tests.invoking import invoke
from tests.toy_runs import content_of, train_toy


class Hub(http.server.ThreadingHTTPServer):
    """Keeps what is committed to it; no file is large."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/me/tickets"
        self.made, self.files, self.refuse, self.tokens = [], {}, None, []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *args):
        pass

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"id": "me/tickets", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.refuse is not None:
            self.answer(self.server.refuse, {"error": "no"})
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self.answer(200, {"url": self.server.url})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in asked]
            self.answer(200, {"files": [{**m, "shouldIgnore": False} for m in modes]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/commit/" + "1" * 40
            self.answer(200, {"commitUrl": url, "commitOid": "1" * 40})
        else:
            self.answer(200, {})  # the card is checked


@pytest.fixture
def hub(monkeypatch):
    """A hub that `push_export` talks to, with the token ``hf_toy``."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_at(monkeypatch, server.server_address[1])
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def point_at(monkeypatch, port, token="hf_toy"):
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(
        pushing, "HfApi", lambda: huggingface_hub.HfApi(endpoint=endpoint, token=token)
    )
    # What HF_ENDPOINT sets when the library is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def run(tiny_bert, toy_suite_files, tmp_path_factory):
    return train_toy(tiny_bert, toy_suite_files, tmp_path_factory.mktemp("run") / "run")


def test_adapter_and_card_arrive(run, hub, tmp_path):
    out = tmp_path / "out"
    told = invoke("export", run.path, "--output", out, "--push", "me/tickets")
    assert told.exit_code == 0, told.output
    assert f"pushed to {hub.url}" in told.output
    assert hub.made[0]["name"] == "tickets"
    assert hub.made[0]["organization"] == "me"
    made = hub.made[0]  # by the older or the newer of the hub's words
    assert made.get("private") is True or made.get("visibility") == "private"
    assert set(hub.tokens) == {"Bearer hf_toy"}
    assert hub.files == {p.relative_to(out).as_posix(): p.read_bytes() for p in files_of(out)}
    assert hub.files["README.md"].startswith(b"---\nlibrary_name: peft")
    assert any(name.endswith("adapter_model.safetensors") for name in hub.files)


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("status", "why"),
    [(401, "knows no such token"), (403, "may not write to me/tickets"), (400, "answered 400")],
)
def test_refusal_keeps_the_export(status, why, run, hub, tmp_path):
    run.export(tmp_path / "out")
    before, hub.refuse = content_of(tmp_path / "out"), status
    with pytest.raises(InputError, match=rf"{why}.*`hf upload me/tickets "):
        push_export(tmp_path / "out", "me/tickets", public=True)
    assert content_of(tmp_path / "out") == before
    assert hub.files == {}


def test_unreachable_hub_is_told_after_the_export(run, hub, tmp_path, monkeypatch):
    hub.shutdown()
    hub.server_close()
    told = invoke("export", run.path, "--output", tmp_path / "out", "--push", "me/tickets")
    assert told.exit_code == 2
    assert "cannot be reached" in told.output
    assert "hf upload me/tickets" in told.output
    assert (tmp_path / "out" / "routes.json").is_file()


@pytest.mark.parametrize("name", ["tickets", "me/a b", "a/b/c"])
def test_bad_name_is_refused_before_the_export(name):
    with pytest.raises(InputError, match="OWNER/NAME"):
        check_repo(name)


def test_other_folder_is_not_pushed(tmp_path):
    with pytest.raises(InputError, match="no export"):
        push_export(tmp_path, "me/tickets")
