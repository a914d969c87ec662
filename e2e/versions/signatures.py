"""OpenSSF Model Signing, both ways with the reference implementation."""

import base64
import hashlib
import json
import shutil
import subprocess

TYPE = "application/vnd.in-toto+json"


def resign(lane, signature, change, curve="P-256"):
    """Rewrites the payload of a signature file and signs it anew with the same key: what a careless signer makes."""
    private, _ = lane.keys(curve)
    bundle = json.loads(signature.read_text())
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    resources = statement["predicate"]["resources"]
    root = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
    statement["subject"][0]["digest"]["sha256"] = root
    payload = json.dumps(statement).encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(payload), payload)
    made = subprocess.run([lane.program("openssl"), "dgst", "-sha256", "-sign", private], input=signed,
                          capture_output=True, timeout=60, check=True)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(made.stdout).decode()
    signature.write_text(json.dumps(bundle))


def both_ways(lane):
    """Their signatures verify here, ours there, and a changed file shows on both sides."""
    theirs = lane.program("model_signing")
    seen = []
    for curve in ("P-256", "P-384"):
        model, _ = lane.make(f"signed-{curve}")
        private, public = lane.keys(curve)
        by_them, by_us = lane.work / f"{curve}-them.sig", lane.work / f"{curve}-us.sig"
        lane.runs(theirs, "sign", "key", model, "--private_key", private, "--signature", by_them)
        verified = lane.done("verify-signature", model, "--key", public, "--signature", by_them)["files"]
        lane.done("sign", model, "--key", private, "--signature", by_us)
        verify = [theirs, "verify", "key", model, "--public_key", public, "--signature", by_us]
        lane.runs(*verify)
        (model / "prompt/system.txt").write_text("Be evil.\n")
        assert not lane.accepts(*verify), "they accept a changed file"
        lane.refused("verify-signature", model, "--key", public, "--signature", by_them)
        seen.append(f"{curve} {len(verified)} files")
    return f"theirs verify here, ours there ({', '.join(seen)}); a changed file is refused on both sides"


def certificates(lane):
    """A signature by a certificate holds under the public key of that certificate."""
    theirs, openssl = lane.program("model_signing"), lane.program("openssl")
    model, _ = lane.make("certified")
    private, public = lane.keys("P-256")
    _, other = lane.keys("P-384")
    certificate, signature = lane.work / "leaf.pem", lane.work / "certified.sig"
    lane.runs(openssl, "req", "-x509", "-new", "-key", private, "-subj", "/CN=signer", "-days", "1", "-out", certificate,
              "-addext", "keyUsage=digitalSignature", "-addext", "extendedKeyUsage=codeSigning")
    lane.runs(theirs, "sign", "certificate", model, "--private_key", private, "--signing_certificate", certificate,
              "--certificate_chain", certificate, "--signature", signature)
    verified = lane.done("verify-signature", model, "--key", public, "--signature", signature)["files"]
    lane.refused("verify-signature", model, "--key", other, "--signature", signature)
    return f"a signature by a certificate holds under its public key ({len(verified)} files), and under no other"


def stricter(lane):
    """What the reference accepts although the tree is not what was signed, or the list is ambiguous."""
    theirs = lane.program("model_signing")
    private, public = lane.keys("P-256")
    accepted = []

    def case(name, model, signature):
        if lane.accepts(theirs, "verify", "key", model, "--public_key", public, "--signature", signature):
            accepted.append(name)
        lane.refused("verify-signature", model, "--key", public, "--signature", signature)

    def signed(name):
        model, _ = lane.make(f"strict-{name}")
        signature = lane.work / f"strict-{name}.sig"
        lane.runs(theirs, "sign", "key", model, "--private_key", private, "--signature", signature)
        return model, signature

    # A file listed twice: readers disagree which line counts.
    model, signature = signed("twice")
    resign(lane, signature, lambda s: s["predicate"]["resources"].append(dict(s["predicate"]["resources"][0])))
    case("a file listed twice", model, signature)
    # Paths that the signer chose to leave out, without telling whoever verifies.
    model, _ = lane.make("strict-ignored")
    signature = lane.work / "strict-ignored.sig"
    lane.runs(theirs, "sign", "key", model, "--private_key", private, "--signature", signature,
              "--ignore-paths", model / "prompt")
    (model / "prompt/system.txt").write_text("Be evil.\n")
    case("paths that the signer left out", model, signature)
    # The order of a list is free, so this one must be accepted on both sides.
    model, signature = signed("order")
    resign(lane, signature, lambda s: s["predicate"]["resources"].reverse())
    lane.done("verify-signature", model, "--key", public, "--signature", signature)
    lane.runs(theirs, "verify", "key", model, "--public_key", public, "--signature", signature)
    # A climbing path to a file that exists.
    model, signature = signed("climbing")
    shutil.copy(model / "prompt/system.txt", lane.work / "outside.txt")
    resign(lane, signature, lambda s: s["predicate"]["resources"].append(
        {"name": "../outside.txt", "algorithm": "sha256",
         "digest": hashlib.sha256((lane.work / "outside.txt").read_bytes()).hexdigest()}))
    case("a path that climbs out", model, signature)
    assert accepted, "the reference accepts none of these any more: take the scenario out"
    return f"3 unsound signatures are refused here; the reference accepts {len(accepted)}: {', '.join(accepted)}"
