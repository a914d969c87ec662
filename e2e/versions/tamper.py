"""Ways to tamper with what is versioned. Each is done to a fresh copy of something that was found in order, and the
command-line tool must say so with exit code 1."""

import hashlib
import json
import os
import pathlib
import shutil

from lane import tensor_file
from signatures import resign

PROMPT, WEIGHTS = "prompt/system.txt", "model/weights/model.safetensors"


def edit(path, change):
    """Rewrites a file, whatever its permissions, as another file of that name; the change must change it."""
    before = path.read_bytes()
    after = change(before)
    assert after != before, f"{path} is as before"
    path.unlink()
    path.write_bytes(after)


def text(path, old, new):
    edit(path, lambda data: data.replace(old.encode(), new.encode(), 1))


def structure(path, change):
    """Changes a JSON file and writes it as compactly as before."""
    value = json.loads(path.read_text())
    change(value)
    edit(path, lambda _: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def swap(first, second):
    kept = first.read_bytes()
    edit(first, lambda _: second.read_bytes())
    edit(second, lambda _: kept)


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


# A bundle folder, by `verify`.


def folder_damages():
    def link(target):
        def damage(d):
            (d / PROMPT).unlink()
            (d / PROMPT).symlink_to(target)
        return damage

    def link_outside(d):
        outside = d.with_name(d.name + ".outside")
        (d / PROMPT).rename(outside)
        (d / PROMPT).symlink_to(outside)

    def link_inside(d):
        (d / PROMPT).rename(d / "tests/system.txt")
        (d / PROMPT).symlink_to("../tests/system.txt")

    def linked_folder(d):
        (d / "prompt").rename(d.with_name(d.name + ".prompt"))
        (d / "prompt").symlink_to(d.with_name(d.name + ".prompt"))

    def zeroes(d):
        size = (d / WEIGHTS).stat().st_size
        with open(d / WEIGHTS, "wb") as file:
            file.truncate(size)

    def manifest(change):
        return lambda d: structure(d / "manifest.json", change)

    def twice(m):
        m["components"].insert(0, m["components"][0])

    def whole(name):
        return lambda d: (shutil.rmtree(d), shutil.copytree(d.parent / name, d))

    return [
        ("a changed byte", lambda d: edit(d / WEIGHTS, flip)),
        ("an appended byte", lambda d: edit(d / WEIGHTS, lambda data: data + b"\0")),
        ("a truncated file", lambda d: edit(d / WEIGHTS, lambda data: data[:-4])),
        ("zeroes of the same size (sparse)", zeroes),
        ("a file made empty", lambda d: edit(d / PROMPT, lambda _: b"")),
        ("an empty file filled", lambda d: edit(d / "config/empty.toml", lambda _: b"x")),
        ("an empty file removed", lambda d: (d / "config/empty.toml").unlink()),
        ("a removed file", lambda d: (d / PROMPT).unlink()),
        ("an extra file", lambda d: (d / "prompt/more.txt").write_text("x")),
        ("an extra empty file", lambda d: (d / "prompt/more.txt").touch()),
        ("a file outside the layout", lambda d: (d / "run.sh").write_text("x")),
        ("a renamed file", lambda d: (d / PROMPT).rename(d / "prompt/System.txt")),
        ("a file moved to another folder", lambda d: (d / PROMPT).rename(d / "config/system.txt")),
        ("two files that changed places", lambda d: swap(d / PROMPT, d / "model/config.json")),
        ("a twin by letter case", lambda d: (d / "prompt/SYSTEM.txt").write_text("x")),
        ("twins by Unicode form", lambda d: [(d / f"prompt/{n}.txt").write_text("x") for n in ("\u00e4", "a\u0308")]),
        ("a link to nothing", link("gone")),
        ("a link to the same bytes outside", link_outside),
        ("a link to the same bytes inside", link_inside),
        ("a folder that is a link", linked_folder),
        ("a name that is not UTF-8", lambda d: pathlib.Path(os.fsdecode(os.fsencode(d) + b"/prompt/\xff.txt")).write_text("x")),
        ("a pipe", lambda d: os.mkfifo(d / "prompt/pipe")),
        ("another version in the metadata", lambda d: text(d / "metadata.json", "1.0.0", "1.0.1")),
        ("another licence in the metadata", lambda d: text(d / "metadata.json", "Apache-2.0", "MIT")),
        ("metadata with a key twice", lambda d: text(d / "metadata.json", "{", '{"name": "chat",')),
        ("no metadata", lambda d: (d / "metadata.json").unlink()),
        ("another digest in the manifest", manifest(lambda m: m["components"][0].update(digest="0" * 64))),
        ("another size in the manifest", manifest(lambda m: m["components"][0].update(size=m["components"][0]["size"] + 1))),
        ("another kind in the manifest", manifest(lambda m: m["components"][0].update(kind="other" if m["components"][0]["kind"] != "other" else "code"))),
        ("a component left out of the manifest", manifest(lambda m: m["components"].pop())),
        ("a component twice in the manifest", manifest(twice)),
        ("components reordered in the manifest", manifest(lambda m: m["components"].reverse())),
        ("`..` in the manifest", lambda d: text(d / "manifest.json", PROMPT, "prompt/../../x")),
        ("an absolute path in the manifest", lambda d: text(d / "manifest.json", PROMPT, "/etc/hostname")),
        ("a key twice in the manifest", lambda d: text(d / "manifest.json", '"format"', '"format":"llm-manifest/1","format"')),
        ("a space in the manifest", lambda d: text(d / "manifest.json", ":{", ": {")),
        ("another id in the manifest", lambda d: text(d / "manifest.json", "chat/v1.0.0", "chat/v1.0.1")),
        ("a manifest cut short", lambda d: edit(d / "manifest.json", lambda data: data[: len(data) // 2])),
        ("a whole other bundle in its place", whole("another")),
    ]


def folders(lane, home):
    _, built = lane.make("tampered/folder")
    lane.make("tampered/another", prompt="Be evil.\n")
    return (home / "folder", folder_damages(), lambda copy: ["verify", copy, "--id", built["id"]])


# A registry, by `check` against a head that was kept.


def registry_damages(blob, manifest_object):
    entry = "objects/log/{:020}.json".format
    last = 7

    def renumber(d):
        (d / entry(2)).rename(d / "x")
        (d / entry(3)).rename(d / entry(2))
        (d / "x").rename(d / entry(3))

    def sealed(d):
        """An alias moved by hand: the last entry rewritten with a digest that fits it."""
        path = d / entry(last)
        value = json.loads(path.read_text())
        value["event"]["alias_moved"]["to"], value["event"]["alias_moved"]["from"] = (
            value["event"]["alias_moved"]["from"], value["event"]["alias_moved"]["to"])
        del value["digest"]
        body = json.dumps(value, separators=(",", ":")).encode()
        value = {"digest": hashlib.sha256(b"llm-version/log/1\0" + body).hexdigest()} | value
        edit(path, lambda _: json.dumps(value, separators=(",", ":")).encode())

    def protected(d):
        path = d / blob
        path.chmod(0o644)

    return [
        ("an altered log entry", lambda d: text(d / entry(1), "ana", "eve")),
        ("the last log entry altered", lambda d: text(d / entry(last), "ana", "eve")),
        ("an alias moved by hand", lambda d: text(d / entry(last), '"production"', '"candidate"')),
        ("an alias moved by hand, with its digest", sealed),
        ("a log entry removed", lambda d: (d / entry(3)).unlink()),
        ("the first log entry removed", lambda d: (d / entry(0)).unlink()),
        ("a log cut at its end", lambda d: (d / entry(last)).unlink()),
        ("two log entries exchanged", renumber),
        ("a log entry cut short", lambda d: edit(d / entry(4), lambda data: data[:50])),
        ("a log entry written with spaces", lambda d: text(d / entry(4), ":", ": ")),
        ("all of the log removed", lambda d: shutil.rmtree(d / "objects/log")),
        ("a stored file altered", lambda d: edit(d / blob, flip)),
        ("a stored file cut", lambda d: edit(d / blob, lambda data: data[:-1])),
        ("a stored file removed", lambda d: (d / blob).unlink()),
        ("a stored file that can be edited (mode)", protected),
        ("a stored manifest altered", lambda d: text(d / manifest_object, "chat/v1", "chat/v2")),
        ("a stored manifest removed", lambda d: (d / manifest_object).unlink()),
    ]


def registries(lane, home):
    registry = home / "registry"
    shared = ["--registry", registry, "--by", "ana"]
    ids = []
    for n in range(2):
        model, built = lane.make(f"tampered/published-{n}", f"1.{n}.0", f"prompt {n}\n")
        lane.done("publish", model, *shared)
        ids.append(built)
    lane.done("alias", "chat", "production", "--to", ids[0]["id"], *shared)
    lane.done("tag", ids[0]["id"], "team", "search", *shared)
    lane.done("pin", ids[0]["id"], *shared)
    lane.done("alias", "chat", "production", "--to", ids[1]["id"], *shared)
    log = lane.done("log", "--registry", registry)
    assert len(log["entries"]) == 8, len(log["entries"])
    digest = hashlib.sha256(b"prompt 1\n").hexdigest()
    damages = registry_damages(f"blobs/sha256/{digest[:2]}/{digest}", f"objects/manifests/{ids[1]['record']}.json")
    return registry, damages, lambda copy: ["check", "--registry", copy, "--known", log["head"]]


# A signed folder, by `verify-signature`.


def signature_damages(lane):
    def payload(change):
        return lambda d: resign(lane, d / "model.sig", change)

    def first(**fields):
        return payload(lambda s: s["predicate"]["resources"][0].update(fields))

    def unsigned(change):
        return lambda d: structure(d / "model.sig", change)

    def cut(b):
        b["dsseEnvelope"]["signatures"] = []

    return [
        ("a changed file", lambda d: edit(d / PROMPT, flip)),
        ("an extra file", lambda d: (d / "tests/more.json").write_text("{}")),
        ("an extra empty file", lambda d: (d / "tests/empty").touch()),
        ("a removed file", lambda d: (d / PROMPT).unlink()),
        ("a renamed file", lambda d: (d / PROMPT).rename(d / "prompt/z.txt")),
        ("a file that became a link", lambda d: ((d / PROMPT).unlink(), (d / PROMPT).symlink_to("few_shot/1.json"))),
        ("a payload altered", unsigned(lambda b: b["dsseEnvelope"].update(payload="e30="))),
        ("a signature altered", unsigned(lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="MEQCIA=="))),
        ("no signature", unsigned(cut)),
        ("two signatures", unsigned(lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]))),
        ("another key named", unsigned(lambda b: b["verificationMaterial"]["publicKey"].update(hint="0" * 64))),
        ("another type of payload", unsigned(lambda b: b["dsseEnvelope"].update(payloadType="text/plain"))),
        ("a file signed twice", payload(lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]))),
        ("`..` signed", first(name="../model.sig")),
        ("an absolute path signed", first(name="/etc/hostname")),
        ("a weak hash signed", first(algorithm="md5")),
        ("files signed under exchanged names", payload(lambda s: exchange_names(s["predicate"]["resources"]))),
        ("links allowed by the signer", payload(lambda s: s["predicate"]["serialization"].update(allow_symlinks=True))),
        ("another statement", payload(lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"))),
        ("a signature file cut short", lambda d: edit(d / "model.sig", lambda data: data[: len(data) // 2])),
    ]


def exchange_names(resources):
    resources[0]["name"], resources[1]["name"] = resources[1]["name"], resources[0]["name"]


def signatures(lane, home):
    model, _ = lane.make("tampered/signed")
    private, public = lane.keys("P-256")
    lane.done("sign", model, "--key", private, "--signature", model / "model.sig")
    return model, signature_damages(lane), lambda copy: [
        "verify-signature", copy, "--key", public, "--signature", copy / "model.sig"]


# An OCI layout, by `import-oci`.


def layout_damages(blob):
    def rewritten(change):
        """What a publisher could write: a changed manifest under its true digest."""
        def damage(d):
            index = json.loads((d / "index.json").read_text())
            described = index["manifests"][0]
            old = d / "blobs/sha256" / described["digest"].removeprefix("sha256:")
            manifest = json.loads(old.read_text())
            change(manifest)
            data = json.dumps(manifest).encode()
            described.update(digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
            (d / "blobs/sha256" / described["digest"].removeprefix("sha256:")).write_bytes(data)
            edit(d / "index.json", lambda _: json.dumps(index).encode())
        return damage

    def path_of(place, path):
        def change(manifest):
            manifest["layers"][place]["annotations"]["org.cncf.model.filepath"] = path
        return rewritten(change)

    def described_blob(d):
        digest = json.loads((d / "index.json").read_text())["manifests"][0]["digest"]
        return d / "blobs/sha256" / digest.removeprefix("sha256:")

    return [
        ("a blob altered", lambda d: edit(d / blob, flip)),
        ("a blob cut", lambda d: edit(d / blob, lambda data: data[:-1])),
        ("a blob removed", lambda d: (d / blob).unlink()),
        ("the artifact's manifest altered", lambda d: edit(described_blob(d), lambda data: data.replace(b"raw", b"rax", 1))),
        ("a layer left out", rewritten(lambda m: m["layers"].pop(0))),
        ("a layer twice", rewritten(lambda m: m["layers"].append(m["layers"][0]))),
        ("a layer that climbs out", path_of(0, "../../out.txt")),
        ("a layer at an absolute path", path_of(0, "/tmp/out.txt")),
        ("a layer that is another file's twin by case", path_of(0, "PROMPT/system.txt")),
        ("another size of a layer", rewritten(lambda m: m["layers"][0].update(size=m["layers"][0]["size"] + 1))),
    ]


def layouts(lane, home):
    model, _ = lane.make("tampered/exported")
    layout = home / "layout"
    lane.done("export-oci", model, layout)
    digest = hashlib.sha256(b"Be brief.\n").hexdigest()
    return layout, layout_damages(f"blobs/sha256/{digest}"), lambda copy: ["import-oci", copy, copy.with_name(copy.name + ".out")]


# A folder that must not become a bundle, by `build`.


def unfit_damages():
    def put(path, data):
        def damage(d):
            (d / path).parent.mkdir(parents=True, exist_ok=True)
            (d / path).write_bytes(data)
        return damage

    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n".encode()
    pickle = b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01."
    gguf = b"GGUF\x03\0\0\0" + (1).to_bytes(8, "little") + (0).to_bytes(8, "little")
    gguf += (1).to_bytes(8, "little") + b"w" + (1).to_bytes(4, "little") + (9).to_bytes(8, "little") + bytes(12) + bytes(64)
    location = b"\x0a\x08location\x12\x06m.data"
    tensor = b"\x6a" + bytes([len(location)]) + location + b"\x70\x01"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    onnx = b"\x08\x09\x12\x04test\x3a" + bytes([len(graph)]) + graph
    index = json.dumps({"metadata": {}, "weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}).encode()
    key = "-----BEGIN " + "PRIVATE KEY-----"
    return [
        ("a git-lfs pointer for weights", put(WEIGHTS, pointer)),
        ("a pickle called safetensors", put(WEIGHTS, pickle)),
        ("a pickle called bin", put("model/weights/x.bin", pickle)),
        ("a web page for weights", put(WEIGHTS, b"<!doctype html><html>")),
        ("a header that claims too much", put(WEIGHTS, b"\xff" * 7 + b"\x7f{}")),
        ("tensors beyond the end of a file", lambda d: edit(d / WEIGHTS, lambda data: data[:-4])),
        ("bytes that no tensor holds", lambda d: edit(d / WEIGHTS, lambda data: data + b"1234")),
        ("a GGUF file cut short", put("model/weights/x.gguf", gguf[:-40])),
        ("an ONNX model without its data file", put("model/weights/m.onnx", onnx)),
        ("an index whose shard is missing", put("model/weights/model.safetensors.index.json", index)),
        ("an unfinished download", put("model/weights/y.incomplete", b"x")),
        ("a key in a prompt", put("prompt/more.txt", key.encode())),
        ("a password in a configuration", put("config/routing.json", b'{"store": "postgres://u:pw123@db/x"}')),
        ("a twin by letter case", put("prompt/SYSTEM.txt", b"x")),
        ("a name that no other system takes", put("prompt/a\\b.txt", b"x")),
    ]


def unfit(lane, home):
    model, _ = lane.make("tampered/unfit")
    return model, unfit_damages(), lambda copy: ["build", copy]


def tampering(lane):
    """Every tampering of every group; each is printed."""
    home = lane.folder("tampered")
    caught, missed = 0, []
    for group, prepare in (("bundle", folders), ("registry", registries), ("signature", signatures),
                           ("OCI layout", layouts), ("build", unfit)):
        pristine, damages, command = prepare(lane, home)
        for number, (name, damage) in enumerate([("nothing", None), *damages]):
            copy = home / f"{pristine.name}-{number}"
            shutil.copytree(pristine, copy, symlinks=True)
            if damage:
                damage(copy)
            code, said = lane.bundle(*command(copy))
            if code == (1 if damage else 0):
                caught += bool(damage)
            else:
                missed.append(f"{group}: {name} (exit {code})")
            if damage:
                first = str(said.get("error", "NOT CAUGHT")).replace(str(copy), "").splitlines()
                print(f"        {group}: {name}: {first[:2][-1].strip()[:110]}", flush=True)
            shutil.rmtree(copy)
    assert not missed, f"not caught: {missed}"
    assert caught >= 25
    return f"{caught} ways, each caught with exit code 1"
