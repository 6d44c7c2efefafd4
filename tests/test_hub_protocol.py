"""Upload and download by huggingface_hub's own client, against a server that speaks the hub's protocol over HTTP."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from safetensors.torch import load_file

import attention_branch as ab

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub that an upload and a download take, as huggingface.co documents and answers them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def reply(self, status, body=b"", **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self):
        hub, path = self.server, self.path.partition("?")[0]
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        needs_token = self.command == "POST" and path != "/api/validate-yaml"
        if needs_token and self.headers.get("Authorization") != "Bearer hf_secret":
            return self.reply(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid token")
        if path == "/api/validate-yaml":
            yaml.safe_load(json.loads(content)["content"].split("---")[1])
            return self.reply(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repos:
                return self.reply(409, {"error": "You already created this model repo"})
            hub.repos[name] = {}
            return self.reply(200, {"url": f"{hub.address}/{name}"})
        if match := re.fullmatch(r"/api/models/(.+?)/preupload/main", path):
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(content)["files"]
            ]
            return self.reply(200, {"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            assert self.headers["Content-Type"] == "application/vnd.git-lfs+json"
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.address}/stored/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if self.command == "PUT" and path.startswith("/stored/"):
            assert hashlib.sha256(content).hexdigest() == path.rpartition("/")[2]
            hub.stored[path.rpartition("/")[2]] = content
            return self.reply(200)
        if match := re.fullmatch(r"/api/models/(.+?)/commit/main", path):
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    assert value["encoding"] == "base64"
                    hub.repos[match[1]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[match[1]][value["path"]] = hub.stored[value["oid"]]
                else:
                    assert line["key"] == "header"
                    hub.messages.append(value["summary"])
            return self.reply(200, {"commitUrl": f"{hub.address}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            if match[1] not in hub.repos:
                return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            files = [{"rfilename": name} for name in sorted(hub.repos[match[1]])]
            return self.reply(200, {"id": match[1], "sha": COMMIT, "siblings": files})
        if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/(?:main|{COMMIT})", path):
            files = hub.repos[match[1]].items()
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(found),
                    "oid": hashlib.sha1(f"blob {len(found)}\0".encode() + found, usedforsecurity=False).hexdigest(),
                }
                for name, found in files
            ]
            return self.reply(200, tree)
        if match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", path):
            found = hub.repos[match[1]][match[2]]
            etag = f'"{hashlib.sha256(found).hexdigest()}"'
            headers = {"X_Repo_Commit": COMMIT, "ETag": etag, "Content_Length": str(len(found))}
            return self.reply(200, found, **headers)
        return self.reply(404, {"error": f"no route {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_any


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.stored, server.messages = {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# One process does it all: the client reads its address when it is imported, and starting one takes seconds.
PUSH_AND_LOAD = """
import sys
import attention_branch as ab
from attention_branch.errors import UserError

model = ab.load_model(sys.argv[1])
try:
    model.push_to_hub("me/animals", token="hf_wrong")
except UserError as problem:
    print(problem)
print(model.push_to_hub("me/animals", commit_message="The first"))
back = ab.load_model("me/animals")
print(back.class_names)
back.save_pretrained(sys.argv[2])
try:
    ab.load_model("me/nothing")
except UserError as problem:
    print(problem)
"""


def test_what_is_pushed_is_loaded_again(hub, tmp_path):
    torch.manual_seed(0)
    model = ab.create_model("resnet14", 3, branch="lite", class_names=["cat", "dog", "horse"])
    model.save_pretrained(tmp_path / "model")
    # Xet, the hub's newer storage, has a protocol of its own; without it the client uploads by git LFS.
    given = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
    given |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", PUSH_AND_LOAD, str(tmp_path / "model"), str(tmp_path / "back")],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    refused, address, names, missing = done.stdout.strip().splitlines()
    assert refused.startswith("The hub did not take 'me/animals' (")
    assert "401" in refused
    assert address == f"{hub.address}/me/animals/commit/{COMMIT}"
    assert hub.messages == ["The first"]
    files = hub.repos["me/animals"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert names == "['cat', 'dog', 'horse']"
    assert missing.startswith("'me/nothing' is no folder here and the hub gave no network")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(value, back[name]) for name, value in model.state_dict().items())
