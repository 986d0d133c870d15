"""What the tests of `llm_neo.assets` are made of: packages, an index on this machine, a tiny GGUF file."""

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np


def sha256_of(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def zip_of(members: Mapping[str, bytes]) -> bytes:
    """A zip archive (a wheel, say) with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: Mapping[str, bytes], links: Mapping[str, str] | None = None, mode: str = "w:gz") -> bytes:
    """A tar archive with these files and symbolic links (name: target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


@dataclass
class Served:
    """A web server on this machine.

    Attributes:
        url: its address, without a slash at the end.
        requests: method and path of each request it got.
        credentials: the `Authorization` header of each request, in the same order.
    """

    url: str
    requests: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What the server says to a path."""

    body: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def serve(answers: Mapping[str, Answer], login: str | None = None) -> Iterator[Served]:
    """Serve `answers` by path on a free port; with `login` (`user:password`) only to those who give it."""
    served = Served(url="")
    expected = None if login is None else "Basic " + base64.b64encode(login.encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            served.requests.append(f"{self.command} {path}")
            served.credentials.append(self.headers.get("Authorization"))
            answer = answers.get(path, Answer(b"not here", "text/plain", 404))
            if expected is not None and self.headers.get("Authorization") != expected:
                answer = Answer(b"who are you?", "text/plain", 401)
            self.send_response(answer.status)
            headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
            for name, value in {**headers, **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body)
            # A body shorter than promised ends with the connection.
            self.close_connection = "Content-Length" in answer.headers

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def index_of(package: str, files: Mapping[str, bytes], vouched: bool = True) -> dict[str, Answer]:
    """The answers of a simple index with one package; `vouched`: the page gives each file's sha256."""
    links = "".join(
        f'<a href="../../files/{name}{f"#sha256={sha256_of(content)}" if vouched else ""}">{name}</a>'
        for name, content in files.items()
    )
    page = Answer(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")
    return {f"/simple/{package}/": page, **{f"/files/{name}": Answer(body) for name, body in files.items()}}


@contextmanager
def closed_port() -> Iterator[str]:
    """An address at which nobody answers."""
    with serve({}) as served:
        url = served.url
    yield url


SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "2 0", "2 4", "20 24", "Ġ 20", "Ġ Ġ", "h e"]


def tiny_vocabulary() -> list[str]:
    """320 tokens: three special ones, 256 bytes, the merges, fillers."""
    byte_values = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = [chr(value) for value in byte_values] + [chr(256 + index) for index in range(256 - len(byte_values))]
    tokens = [*SPECIAL_TOKENS, *spelled, *(merge.replace(" ", "") for merge in MERGES)]
    return tokens + [f"filler{index}" for index in range(320 - len(tokens))]


def tiny_gguf(
    path: Path,
    *,
    pre: str | None = "smollm",
    ids: Mapping[str, int] | None = None,
    adds_bos: bool | None = False,
    adds_eos: bool | None = None,
    architecture: str = "llama",
    without: str = "",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Write a Llama of one layer, width 64 and 320 byte-level tokens; the big matrices are Q8_0.

    Returns:
        The values that the file stands for, after quantisation, by tensor name.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    for add, value in (
        (writer.add_context_length, 128),
        (writer.add_embedding_length, 64),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 128),
        (writer.add_head_count, 1),
        (writer.add_head_count_kv, 1),
        (writer.add_vocab_size, 320),
        (writer.add_rope_dimension_count, 64),
    ):
        add(value)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tiny_vocabulary())
    writer.add_token_types([3, 3, 3] + [1] * 317)
    writer.add_token_merges(MERGES)
    for role, index in ({"bos": 1, "eos": 2, "pad": 2, "unk": 0} if ids is None else ids).items():
        getattr(writer, f"add_{role}_token_id")(index)
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    if adds_eos is not None:
        writer.add_add_eos_token(adds_eos)
    values = _add_tensors(writer, without, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _add_tensors(writer: gguf.GGUFWriter, without: str, draw: np.random.Generator) -> dict[str, np.ndarray]:
    q8 = gguf.GGMLQuantizationType.Q8_0
    values = {}
    for name, shape in {
        "token_embd": (320, 64),
        "output_norm": (64,),
        "blk.0.attn_norm": (64,),
        "blk.0.ffn_norm": (64,),
        **{f"blk.0.attn_{part}": (64, 64) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (128, 64),
        "blk.0.ffn_up": (128, 64),
        "blk.0.ffn_down": (64, 128),
    }.items():
        if name == without:
            continue
        exact = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", exact)
            values[name] = exact
        else:
            packed = gguf.quantize(exact, q8)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=q8)
            values[name] = gguf.dequantize(packed, q8)
    return values
