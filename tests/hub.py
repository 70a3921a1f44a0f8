"""A server on this machine that stands for the hub: the calls that huggingface_hub makes of it."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

import huggingface_hub.constants
import yaml

LARGE = ".safetensors"  # files that go the way of large files, as a repository's settings say
LICENSES = ("apache-2.0", "mit")


class Hub:
    """What the server holds.

    Attributes:
      tokens: the user of each token, and whether it may write.
      repositories: the files of each branch by the name of the repository.
      private: the names of repositories that not everybody may read.
      messages: the message of each commit.
      calls: the method and the path of every request.
      large: what was uploaded as large files, by digest.
    """

    def __init__(self):
        self.tokens = {"writes": ("owner", True), "reads": ("owner", False)}
        self.repositories = {}
        self.private = set()
        self.messages = []
        self.calls = []
        self.large = {}
        self.url = ""


class _Refused(Exception):
    def __init__(self, status, said="", code="", content=None):
        super().__init__(said)
        self.status, self.code, self.content = status, code, content or {"error": said}


def _commit(files):
    found = hashlib.sha1()
    for name, content in sorted(files.items()):
        found.update(name.encode() + content)
    return found.hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _user(self, *, writes=False):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Refused(401, "Invalid username or password.")
        user, may_write = self.hub.tokens[token]
        if writes and not may_write:
            raise _Refused(403, "You don't have the required permissions to perform this action.")
        return user

    def _files(self, name, branch):
        if name not in self.hub.repositories:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        if name in self.hub.private:
            try:
                self._user()
            except _Refused as error:
                raise _Refused(401, "Repository not found", "RepoNotFound") from error
        branches = self.hub.repositories[name]
        branch = urllib.parse.unquote(branch)
        held = {_commit(files): files for files in branches.values()}
        if branch not in branches and branch not in held:
            raise _Refused(404, "Invalid rev id", "RevisionNotFound")
        return branches.get(branch, held.get(branch))

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = urllib.parse.urlparse(self.path).path
        self.hub.calls.append((self.command, path))
        for method, pattern, answer in WAYS:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                try:
                    self._send(200, answer(self, body, *found.groups()))
                except _Refused as error:
                    headers = {"X-Error-Code": error.code} if error.code else {}
                    headers["X-Error-Message"] = str(error)
                    self._send(error.status, error.content, headers)
                return
        self._send(500, {"error": f"this hub does not know {self.command} {path}"})

    def _send(self, status, content, headers=None):
        if isinstance(content, tuple):
            content, headers = content
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def create(self, body):
        user, wanted = self._user(writes=True), json.loads(body)
        owner = wanted.get("organization") or user
        if owner != user:
            raise _Refused(403, f"You don't have the rights to create a model under {owner}")
        name = f"{owner}/{wanted['name']}"
        if name in self.hub.repositories:
            said = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            raise _Refused(409, said["error"], content=said)
        self.hub.repositories[name] = {"main": {".gitattributes": b"*.safetensors lfs\n"}}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(name)
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def info(self, body, name, _=None, branch="main"):
        files = self._files(name, branch or "main")
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "modelId": name, "sha": _commit(files), "siblings": siblings}

    def make_branch(self, body, name, branch):
        self._user(writes=True)
        self._files(name, "main")
        branches = self.hub.repositories[name]
        branch = urllib.parse.unquote(branch)
        if branch in branches:
            raise _Refused(409, "Reference already exists")
        branches[branch] = dict(branches["main"])
        return {}

    def validate(self, body):
        content = json.loads(body)["content"]
        metadata = yaml.safe_load(content.split("---\n")[1])
        if metadata.get("license", LICENSES[0]) not in LICENSES:
            said = f'"license" must be one of {list(LICENSES)}'
            raise _Refused(400, said, content={"errors": [{"message": said}]})
        return {"warnings": [], "errors": []}

    def preupload(self, body, name, branch):
        self._user(writes=True)
        held = self._files(name, branch)
        answers = []
        for file in json.loads(body)["files"]:
            before = held.get(file["path"])
            # As git names what it stores.
            oid = None if before is None else hashlib.sha1(b"blob %d\0" % len(before) + before)
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": mode,
                    "shouldIgnore": False,
                    "oid": oid and oid.hexdigest(),
                }
            )
        return {"files": answers}

    def batch(self, body, name):
        self._user(writes=True)
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}
            objects.append({**one, "actions": {"upload": upload}})
        return {"transfer": "basic", "objects": objects}

    def upload(self, body, digest):
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.large[digest] = body
        return {}

    def commit(self, body, name, branch):
        self._user(writes=True)
        files = dict(self._files(name, branch))
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            match said["key"]:
                case "header":
                    self.hub.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case other:
                    raise _Refused(400, f"unknown operation {other}")
        self.hub.repositories[name][urllib.parse.unquote(branch)] = files
        oid = _commit(files)
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.hub.url}/{name}/commit/{oid}",
        }

    def resolve(self, body, name, branch, path):
        files = self._files(name, branch)
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        content = files[path]
        etag = hashlib.sha256(content).hexdigest()
        return content, {"X-Repo-Commit": _commit(files), "ETag": f'"{etag}"'}

    def tree(self, body, name, branch):
        files = self._files(name, branch)
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for path, content in files.items()
        ]


_NAME = r"([\w.-]+/[\w.-]+)"
WAYS = [
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}(/revision)/([^/]+)", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/branch/([^/]+)", _Handler.make_branch),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]+)", _Handler.upload),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


@contextlib.contextmanager
def server():
    """Starts a hub that is empty; yields it. Its address is in `url`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        hub.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            running.shutdown()
            thread.join()


def found_at(url, cache, monkeypatch, token="writes"):
    """Makes the library in this process take the server at a URL for the hub.

    In other processes HF_ENDPOINT does this, which the library reads once.
    """
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
