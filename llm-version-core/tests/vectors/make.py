#!/usr/bin/env python3
"""Writes canonical.json from CANONICAL.md alone: a second implementation, not a copy of the first."""
import hashlib
import json
import pathlib
import struct


def u64(n):
    return struct.pack(">Q", n)


def text(s):
    raw = s.encode() if isinstance(s, str) else s
    return u64(len(raw)) + raw


def canonical(value):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def bundle_digest(components, dependencies, contract):
    h = hashlib.sha256(b"llm-version/bundle/1\0")
    h.update(u64(len(components)))
    for c in sorted(components, key=lambda c: c["path"].encode()):
        h.update(text(c["path"]) + text(c["kind"]) + u64(c["size"]) + bytes.fromhex(c["digest"]))
    h.update(u64(len(dependencies)))
    for name in sorted(dependencies):
        h.update(text(name) + text(dependencies[name]))
    h.update(text(canonical(contract)))
    return h.hexdigest()


def tensor_root(tensors):
    h = hashlib.sha256(b"llm-version/tensors/1\0" + u64(len(tensors)))
    for t in sorted(tensors, key=lambda t: t["name"].encode()):
        h.update(text(t["name"]) + text(t["dtype"]) + u64(len(t["shape"])))
        h.update(b"".join(u64(n) for n in t["shape"]) + bytes.fromhex(t["digest"]))
    return h.hexdigest()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def component(path, kind, data, **more):
    return {"digest": sha(data), "kind": kind, "path": path, "size": len(data), **more}


def case(what, name, version, components, dependencies=None, contract=None, licences=None, lineage=None):
    dependencies, contract = dependencies or {}, contract or {}
    components = sorted(components, key=lambda c: c["path"].encode())
    digest = bundle_digest(components, dependencies, contract)
    manifest = canonical({
        "components": components,
        "contract": contract,
        "dependencies": dependencies,
        "format": "llm-manifest/1",
        "id": f"{name}/v{version}-{digest}",
        "licences": licences or [],
        "lineage": lineage or {},
    })
    tensors = [t for c in components if c["kind"] == "weights" for t in c.get("tensors", [])]
    return {
        "what": what,
        "manifest": manifest.decode(),
        "bundle_digest": digest,
        "record_digest": hashlib.sha256(b"llm-version/manifest/1\0" + manifest).hexdigest(),
        "tensor_root": tensor_root(tensors) if tensors else None,
    }


TENSORS = [
    {"digest": sha(b"\0" * 8), "dtype": "F32", "name": "a.weight", "shape": [1, 2]},
    {"digest": sha(b"\1" * 4), "dtype": "BF16", "name": "b\u00e9", "shape": []},
]
CASES = [
    case("one small file", "chat", "1.0.0", [component("prompt/system.txt", "prompt", b"You are helpful.")]),
    case("empty file, other name and version: same form, other id", "a.b_c-d", "0.0.4294967295",
         [component("prompt/system.txt", "prompt", b"")]),
    case("order of paths is that of bytes: '-' before '/', non-ASCII last, beyond the BMP after U+FB33", "chat", "2.1.0", [
        component("model/weights/b", "weights", b"1"),
        component("model/weights-x", "other", b"2"),
        component("model/weights/\u00e9", "weights", b"3"),
        component("model/weights/\ufb33", "weights", b"4"),
        component("model/weights/\U0001f600", "weights", b"5"),
        component("config/generation.json", "generation", b"{}"),
    ]),
    case("chunk and tensor digests stand beside the digest", "chat", "1.2.3", [
        component("model/weights/model.safetensors", "weights", b"not really", chunks=[sha(b"not really")], tensors=TENSORS),
    ]),
    case("everything stated", "support-bot", "3.0.1", [
        component("config/dependencies.json", "dependencies", b'{"vllm":"0.9.1"}'),
        component("prompt/few_shot/1.json", "few_shot", b"[]"),
    ], dependencies={"vllm": "0.9.1", "Zlib": "1.3"}, contract={
        "api": "openai-chat/v1",
        "chat_template": sha(b"template"),
        "context_length": 9007199254740991,
        "embedding_space": {"dimensions": 1024, "id": "bge-m3"},
        "languages": ["de", "en"],
        "output_schema": {"fields": [{"name": "answer", "required": True, "types": ["null", "string"]}], "version": "2"},
        "probes": {"multi_turn": sha(b"rendered")},
        "runtime": {"vllm": ">=0.9, <0.11"},
        "stop_tokens": ["<|end|>", "\u2581\"\\\n\t\b\f\r\u0001\u007f"],
        "tokenizer": {"digest": sha(b"tok"), "special": [{"id": 0, "token": "<\uff5cbegin\uff5c>"}], "vocabulary_size": 32000},
        "tool_format": "hermes",
    }, licences=[{"id": "Apache-2.0"}, {"id": "MIT", "scope": "tokenizer"}], lineage={
        "base_model": {"name": "org/base", "revision": "0123abcd"},
        "code": {"commit": "ab" * 20, "dirty": True, "repository": "https://git.example/x"},
        "config": {"digest": sha(b"lr: 1e-5\n"), "overrides": ["lr=1e-5"], "text": "lr: 1e-5\n"},
        "datasets": [{"digest": "md5:d41d8cd98f00b204e9800998ecf8427e", "name": "d", "version": "4"}],
        "environment": {"torch": "2.7"},
        "hyper_parameters": {"lr": "0.00001"},
        "parents": [f"support-bot/v2.0.0-{sha(b'parent')}"],
        "seeds": {"torch": "9007199254740993"},
    }),
]

if __name__ == "__main__":
    out = pathlib.Path(__file__).with_name("canonical.json")
    out.write_text(json.dumps(CASES, indent=1, ensure_ascii=True) + "\n")
