"""A hub on this machine, and small models that it serves."""

import functools
import hashlib
import http.server
import io
import socket
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from neuroclips.pretrained import catalogue, convert, download

TINY_VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, block_out_channels=[8, 16],
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4,
    sample_size=16, scaling_factor=0.18215,
)  # fmt: skip
LICENCE = {"of": "all of it", "name": "MIT", "link": "https://example.org/licence", "conditions": "keep the notice"}


@dataclass
class Hub:
    """Files by path, and what was asked for them: (path, Range, Authorization)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    redirect: dict[str, str] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)  # bytes after which the next answers end
    ranges: bool = True
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    sent: int = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *said):
        pass

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range")
        hub.asked.append((path, wanted, self.headers.get("Authorization")))
        if path in hub.redirect:
            self._head(302, 0, {"Location": hub.redirect[path], **hub.headers.get(path, {})})
            return
        if path in hub.status or path not in hub.files:
            self._head(hub.status.get(path, 404), 0, {})
            return
        content, first, code = hub.files[path], 0, 200
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', **hub.headers.get(path, {})}
        if wanted and hub.ranges:
            first, code = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if first >= len(content):
                self._head(416, 0, {"Content-Range": f"bytes */{len(content)}", **headers})
                return
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._head(code, len(content) - first, headers)
        part = content[first:]
        end = hub.cut.pop(0) if hub.cut else len(part)
        self.wfile.write(part[:end])
        hub.sent += len(part[:end])
        if end < len(part):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _head(self, code, length, headers):
        self.send_response(code)
        for name, value in ({"Content-Type": "application/octet-stream"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers on this machine, and a client that does not wait between attempts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setattr(download, "_CHUNK", 1000)
    monkeypatch.setenv("NO_PROXY", "*")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def no_network(monkeypatch):
    """Opening any connection is an error."""

    def refuse(*words, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def vae_bytes():
    """A small autoencoder as ``torch.save`` writes it."""
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save(AutoencoderKL(**TINY_VAE).state_dict(), file)
    return file.getvalue()


@pytest.fixture
def small(tmp_path, monkeypatch, vae_bytes):
    """A catalogue of small models and an empty home: 'sd-vae' of one hashed file, 'words' of three that are not."""
    entries = {
        "sd-vae": {
            "purpose": "for tests", "serves": "vae", "parameters": 1, "converter": "sd-vae", "ready": 50_000,
            "licences": [LICENCE | {"name": None, "stated": "none stated"}, LICENCE], "cite": "Nobody 2026",
            "sources": [{
                "role": "vae", "repo": "pscotti/mindeyev2", "type": "dataset", "revision": "abc1234",
                "file": "deep/vae.pth", "bytes": len(vae_bytes), "sha256": hashlib.sha256(vae_bytes).hexdigest(),
            }],
        },
        "words": {
            "purpose": "for tests", "serves": "caption", "parameters": None, "converter": None, "ready": None,
            "licences": [LICENCE], "cite": "Nobody 2026",
            "sources": [
                {"role": "folder", "repo": "some/words", "revision": "f00d", "file": name, "into": name, **more}
                for name, more in (("config.json", {}), ("model.safetensors", {}), ("extra.json", {"optional": True}))
            ],
        },
    }  # fmt: skip
    path = tmp_path / "weights.yaml"
    path.write_text(yaml.safe_dump(entries))
    monkeypatch.setattr(catalogue, "WEIGHTS", path)
    monkeypatch.setenv("NEUROCLIPS_MODELS", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    tiny = functools.partial(convert.CONVERTERS["sd-vae"], config=TINY_VAE)
    monkeypatch.setitem(convert.CONVERTERS, "sd-vae", tiny)
    return catalogue.published()


VAE_AT = "/datasets/pscotti/mindeyev2/resolve/abc1234/deep/vae.pth"
WORDS_AT = "/some/words/resolve/f00d/"


@pytest.fixture
def served(hub, small, vae_bytes):
    """The hub serves the small models."""
    hub.files[VAE_AT] = vae_bytes
    hub.files |= {f"{WORDS_AT}config.json": b'{"a": 1}', f"{WORDS_AT}model.safetensors": b"7" * 4321}
    return hub
