"""Other homes of models: OCI registries, the Hugging Face cache, CycloneDX, safetensors, DVC."""

import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import time

from lane import files, tensor_file


@contextlib.contextmanager
def oci_registry(lane):
    """A registry on a free port of loopback; stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = lane.folder(f"oci-registry-{port}")
    config = home / "config.json"
    config.write_text(json.dumps({
        "version": 0.1, "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(home / "store")}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }))
    server = subprocess.Popen([lane.program("docker-registry"), "serve", config], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "docker-registry does not start"
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(timeout=20)


def copy(lane, source, target):
    """Copies an image with its digests."""
    lane.runs(lane.program("skopeo"), "--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false",
              "--dest-tls-verify=false", source, target)


def oci(lane):
    """A bundle through a real registry: out with skopeo, in with the ModelPack client and with skopeo."""
    model, built = lane.make("to-oci", weights=tensor_file([0.5] * 100_000))
    layout, tag = lane.work / "layout", "v1"
    exported = lane.done("export-oci", model, layout, "--tag", tag)
    with oci_registry(lane) as address:
        reference = f"{address}/org/chat:{tag}"
        copy(lane, f"oci:{layout}:{tag}", f"docker://{reference}")
        pulled = lane.work / "pulled"
        lane.runs(lane.program("modelpack"), "--insecure", "pull", reference, pulled)
        ours, there = files(model), files(pulled)
        assert ours == there, f"differ: {sorted(ours.items() ^ there.items())[:3]}"
        assert lane.done("verify", pulled)["id"] == built["id"]
        back = lane.work / "layout-back"
        copy(lane, f"docker://{reference}", f"oci:{back}:{tag}")
    index = json.loads((back / "index.json").read_text())
    assert f"{index['manifests'][0]['digest']}" == exported["artifact"], "the artifact has another digest"
    imported = lane.done("import-oci", back, lane.work / "from-oci")
    assert imported["id"] == built["id"]
    assert files(lane.work / "from-oci") == ours
    size = sum(map(len, ours.values()))
    return (f"{len(ours)} files, {size} bytes: skopeo out, the ModelPack client and skopeo in, each byte for byte "
            f"the bundle, artifact {exported['artifact'][:19]}")


def hub(lane):
    """What huggingface_hub downloads imports; what it would not notice is refused."""
    repository = lane.folder("hub/repository")
    for name, data in {
        "model.safetensors": tensor_file(), "config.json": b'{"hidden_size": 2}', "tokenizer.json": b"{}",
        "onnx/config.json": b"{}", "README.md": b"# tiny\n", "empty.txt": b"",
    }.items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(data)
    laid = json.loads(lane.inside("hub.py", repository, lane.work / "hub/home"))
    snapshot, folder = pathlib.Path(laid["snapshot"]), pathlib.Path(laid["folder"])
    said = []
    for source, name in ((snapshot, "chat-snapshot"), (folder, "chat-folder")):
        imported = lane.done("import-hf", source, lane.work / name, "--name", "chat")
        assert (imported["listed"], imported["commit"], imported["unchecked"]) == (True, laid["commit"], 0), imported
        assert (lane.work / name / "model/weights/model.safetensors").read_bytes() == tensor_file()
        assert lane.done("verify", lane.work / name)["id"] == imported["id"]
        said.append(imported)
    assert said[0]["id"] == said[1]["id"], "snapshot and folder are one version"
    assert said[0]["repository"] == "org/tiny"
    # A download of chosen files is one only if that is said.
    lane.refused("import-hf", laid["part"], lane.work / "chat-part")
    part = lane.done("import-hf", laid["part"], lane.work / "chat-part", "--part")
    blobs = snapshot.parent.parent / "blobs"

    def damaged(name, damage):
        home = lane.work / f"hub/{name}"
        shutil.copytree(snapshot.parent.parent, home / "models--org--tiny", symlinks=True)
        broken = home / "models--org--tiny" / "snapshots" / snapshot.name
        damage(broken, home / "models--org--tiny" / "blobs" / (snapshot / "model.safetensors").resolve().name)
        lane.refused("import-hf", broken, lane.work / f"chat-{name}")
        assert not (lane.work / f"chat-{name}").exists(), "something was left behind"
        return name

    def incomplete(broken, blob):
        partial = blob.with_name(blob.name + ".incomplete")
        blob.rename(partial)
        (broken / "model.safetensors").unlink()
        (broken / "model.safetensors").symlink_to(f"../../blobs/{partial.name}")

    def same_size(broken, blob):
        blob.write_bytes(tensor_file((1.0, 3.0)))

    def outside(broken, blob):
        (broken / "config.json").unlink()
        (broken / "config.json").symlink_to("/etc/hostname")

    refused = [
        damaged("dangling", lambda broken, blob: blob.unlink()),
        damaged("incomplete", incomplete),
        damaged("cut", lambda broken, blob: blob.write_bytes(blob.read_bytes()[:-1])),
        damaged("changed-in-size-alone-unseen", same_size),
        damaged("lacking", lambda broken, blob: (broken / "config.json").unlink()),
        damaged("surplus", lambda broken, blob: (broken / "more.json").write_text("{}")),
        damaged("outside", outside),
    ]
    assert blobs.is_dir()
    return (f"snapshot and download folder import as one version ({said[0]['files']} files, all listed), a part with "
            f"{len(part['left_out'])} left out if that is said; {len(refused)} damaged ones are refused")


def bom(lane):
    """The bill of materials is valid."""
    model, _ = lane.make("billed")
    lane.done("lineage", model, "--base-model", "org/base@abc", "--dataset", "web@1")
    lane.done("build", model)
    document = lane.work / "bom.json"
    lane.done("sbom", model, "--out", document)
    version = json.loads(document.read_text())["specVersion"]
    lane.inside("bom.py", document, version)
    text = document.read_text()
    broken = lane.work / "broken-bom.json"
    broken.write_text(text.replace('"machine-learning-model"', '"model"', 1))
    assert broken.read_text() != text
    try:
        lane.inside("bom.py", broken, version)
    except AssertionError:
        return f"CycloneDX {version}, {len(text)} bytes, valid; the validator refuses one with an unknown type"
    raise AssertionError("the validator accepts anything")


def tensors(lane):
    """Files that the Python library writes: one tensor root, whatever their bytes."""
    folder = lane.folder("tensors")
    lane.inside("tensors.py", folder)
    made, roots = {}, {}
    for name, version in (("a", "1.0.0"), ("b", "1.0.1"), ("c", "1.1.0")):
        model, built = lane.make(f"tensors-{name}", version, weights=(folder / f"{name}.safetensors").read_bytes())
        made[name], roots[name] = model, lane.done("show", model)["tensor_root"]
        assert built["id"]
    # The same tensors in two shards with an index.
    model, _ = lane.make("tensors-d", "1.0.2")
    weights = model / "model/weights"
    (weights / "model.safetensors").unlink()
    for file in ("d-1.safetensors", "d-2.safetensors"):
        shutil.copy(folder / file, weights / file)
    shutil.copy(folder / "d.index.json", weights / "model.safetensors.index.json")
    lane.done("build", model)
    made["d"], roots["d"] = model, lane.done("show", model)["tensor_root"]
    assert (folder / "a.safetensors").read_bytes() != (folder / "b.safetensors").read_bytes()
    assert roots["a"] and roots["a"] == roots["b"] == roots["d"] != roots["c"], roots
    for other in "bd":
        diff = lane.done("diff", made["a"], made[other])
        assert (diff["required"], diff["risk"]) == ("patch", "operational"), diff
    tuned = lane.done("diff", made["a"], made["c"])
    assert (tuned["required"], tuned["risk"]) == ("minor", "behavioural"), tuned
    (weights / "d-2.safetensors").unlink()
    assert "d-2.safetensors" in lane.refused("build", model)["error"]
    return f"4 checkpoints, other bytes: a repack and two shards share root {roots['a'][:12]}, one changed number does not"


def dvc(lane):
    """A data set in a lineage has the digest that DVC gives it."""
    data = lane.folder("data")
    for name, text in {"b.txt": "2\n", "a/x.txt": "1\n", "a/ä.txt": "", "a-b": "3"}.items():
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text(text)
    theirs = lane.inside("dvc.py", data).strip()
    model, _ = lane.make("with-data")
    lineage = lane.done("lineage", model, "--dataset", f"web@1={data}")["lineage"]
    ours = lineage["datasets"][0]["digest"]
    assert ours == theirs, (ours, theirs)
    return f"a folder of 4 files is {ours} to both"
