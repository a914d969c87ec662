"""Serves a bundle of the quickstart on a GPU (or a CPU), OpenAI-compatible as far as the lane needs it.

    python e2e/gpu/serve.py BUNDLE --port 8000 --name v1 [--device cuda]

Needs nothing but PyTorch. It runs the same network as examples/model/src and gives the same text for the likeliest tokens.
"""

import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

BYTES, BOS, EOS = 256, 256, 257
FIRST_PIECE = 259
LONGEST_REQUEST = 1 << 20
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path, device):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = bytearray(data[8 + size :])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(body[begin:end], dtype=TYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"]).float().to(device)
    return tensors


class Bundle:
    def __init__(self, folder, device):
        def read(path):
            return json.loads((folder / path).read_text())

        self.config, self.generation = read("model/config.json"), read("config/generation.json")
        self.template = read("model/tokenizer/chat_template.json")
        system = folder / "prompt/system.txt"
        self.system = system.read_text().rstrip("\r\n") if system.exists() else ""
        self.pieces = [piece.encode() for piece in read("model/tokenizer/tokenizer.json")["pieces"]]
        self.ids = {piece: FIRST_PIECE + at for at, piece in enumerate(self.pieces)}
        self.longest = max(map(len, self.pieces), default=1)
        (weights,) = (folder / "model/weights").glob("*.safetensors")
        self.weights, self.device = read_safetensors(weights, device), device
        size = self.config["width"] // self.config["heads"]
        angle = torch.arange(self.config["longest"], device=device)[:, None] * self.config["rope_base"] ** (
            -torch.arange(size // 2, device=device) * 2.0 / size
        )
        self.cos, self.sin = angle.cos(), angle.sin()

    def encode(self, text):
        rest, out = text.encode(), []
        while rest:
            for length in range(min(self.longest, len(rest)), 1, -1):
                if rest[:length] in self.ids:
                    out.append(self.ids[rest[:length]])
                    break
            else:
                length = 1
                out.append(rest[0])
            rest = rest[length:]
        return out

    def spelling(self, token):
        if token < BYTES:
            return bytes([token])
        at = token - FIRST_PIECE
        return self.pieces[at] if 0 <= at < len(self.pieces) else b""

    def prompt(self, user):
        text = self.template["system"].replace("{system}", self.system) if self.system else ""
        text += self.template["user"].replace("{user}", user) + self.template["reply"]
        return [BOS] + self.encode(text)

    def norm(self, x, gain):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.config["norm_epsilon"]) * gain

    def rotate(self, x, begin):
        """Rotary positions on [time, head, size]; the halves are pairs."""
        span = slice(begin, begin + x.shape[0])
        cos, sin = self.cos[span, None, :], self.sin[span, None, :]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    @torch.inference_mode()
    def advance(self, ids, cache):
        """Logits after the last of these ids; the cache holds the keys and values of those before."""
        w, heads = self.weights, self.config["heads"]
        begin = cache[0][0].shape[0] if cache else 0
        x = w["embedding"][torch.tensor(ids, device=self.device)]
        mask = torch.ones(len(ids), begin + len(ids), dtype=torch.bool, device=self.device).tril(begin)
        for i in range(self.config["layers"]):
            at = f"layers.{i}."
            y = self.norm(x, w[at + "norm_attention"])
            q, k, v = (
                (y @ w[at + name]).reshape(len(ids), heads, -1) for name in ("query", "key", "value")
            )
            q, k = self.rotate(q, begin), self.rotate(k, begin)
            if i < len(cache):
                k, v = torch.cat([cache[i][0], k]), torch.cat([cache[i][1], v])
                cache[i] = (k, v)
            else:
                cache.append((k, v))
            scores = torch.einsum("qhs,khs->hqk", q, k) * q.shape[-1] ** -0.5
            scores = scores.masked_fill(~mask, float("-inf")).softmax(-1)
            x = x + torch.einsum("hqk,khs->qhs", scores, v).reshape(len(ids), -1) @ w[at + "output"]
            y = self.norm(x, w[at + "norm_mlp"])
            x = x + torch.relu(y @ w[at + "up"]).square() @ w[at + "down"]
        return self.norm(x[-1], w["norm"]) @ w["embedding"].T

    def generate(self, user, most):
        """Token by token: its spelling, or why it ends."""
        most = min(most or self.generation["max_tokens"], self.generation["max_tokens"])
        # A prompt that leaves no room for the longest answer loses its beginning.
        budget = max(1, self.generation["context"] - self.generation["max_tokens"])
        waiting, cache = self.prompt(user)[-budget:], []
        for _ in range(most):
            token = int(self.advance(waiting, cache).argmax())
            if token == EOS:
                yield None, "stop"
                return
            yield self.spelling(token), None
            waiting = [token]
        yield None, "length"


def handler(bundle, name):
    busy = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def send(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status, message):
            self.close_connection = True
            self.send(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

        def do_GET(self):
            if self.path == "/health":
                self.send(200, {"status": "ok"})
            elif self.path == "/v1/models":
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model"}]})
            else:
                self.refuse(404, "there is no such address")

        def do_POST(self):
            if self.path != "/v1/chat/completions":
                return self.refuse(404, "there is no such address")
            size = int(self.headers.get("Content-Length") or 0)
            if size > LONGEST_REQUEST:
                return self.refuse(413, "the request is too long")
            try:
                asked = json.loads(self.rfile.read(size))
                user = "\n".join(m["content"] for m in asked["messages"] if m["role"] == "user")
                most, stream = asked.get("max_tokens"), bool(asked.get("stream"))
            except (ValueError, KeyError, TypeError) as error:
                return self.refuse(400, f"the request cannot be read: {error!r}")
            if asked.get("model") != name:
                return self.refuse(404, f"there is no model {asked.get('model')!r}")
            with busy:
                if stream:
                    self.stream(user, most)
                else:
                    self.whole(user, most)

        def whole(self, user, most):
            text, finish, tokens = b"", None, 0
            for piece, finish in bundle.generate(user, most):
                text += piece or b""
                tokens += piece is not None
            message = {"role": "assistant", "content": text.decode(errors="replace")}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            usage = {"completion_tokens": tokens}
            self.send(200, {"object": "chat.completion", "model": name, "choices": [choice], "usage": usage})

        def stream(self, user, most):
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for piece, finish in bundle.generate(user, most):
                delta = {"content": piece.decode(errors="replace")} if piece is not None else {}
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                event = {"object": "chat.completion.chunk", "model": name, "choices": [choice]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

    return Handler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    bundle = Bundle(args.bundle, torch.device(args.device))
    # Kernels are chosen and loaded by the first calls.
    for _ in bundle.generate("Good morning. Could you send four lamps to Oslo this week?", None):
        pass
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "a CPU"
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(bundle, args.name))
    print(f"serving {args.bundle} on {device}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
