"""What the scenarios share: the tool, the components, verdicts, a small bundle."""

import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# Debian packages by the program that they bring.
PROGRAMS = {"skopeo": "skopeo", "docker-registry": "docker-registry", "strace": "strace", "openssl": "openssl"}


class Missing(Exception):
    """A component that is not here."""


class Lane:
    def __init__(self, tool, work):
        self.tool, self.work = pathlib.Path(tool).resolve(), pathlib.Path(work)
        self.passed = self.failed = self.skipped = 0
        self.python = None

    # Verdicts: one line each.

    def verdict(self, name, ok, text):
        self.passed, self.failed = self.passed + bool(ok), self.failed + (not ok)
        print(f"{'ok     ' if ok else 'FAILED '} {name}: {text}", flush=True)

    def scenario(self, name, run):
        """Runs a scenario, which returns what it saw or fails by an exception."""
        try:
            self.verdict(name, True, run(self))
        except Missing as missing:
            if os.environ.get("CI") == "true":
                self.verdict(name, False, f"{missing} is not here, and must be under CI")
            else:
                self.skipped += 1
                print(f"SKIPPED: {name}: {missing} is not here", flush=True)
        except Exception as error:  # whatever it is, the other scenarios run
            self.verdict(name, False, f"{type(error).__name__}: {error}")

    # Components.

    def install(self, cache):
        """Brings the Python packages into a folder of their own, and Debian's where they are missing. What cannot be had
        is missed by the scenarios that need it."""
        for bring in (self.install_python, self.install_programs):
            try:
                bring(pathlib.Path(cache))
            except (OSError, subprocess.SubprocessError) as error:
                print(f"        {bring.__name__}: {error}", flush=True)

    def install_python(self, cache):
        wanted = HERE / "requirements.txt"
        environment = cache / "versions"
        stamp = environment / hashlib.sha256(wanted.read_bytes()).hexdigest()
        python = environment / "bin" / "python"
        if not stamp.exists():
            shutil.rmtree(environment, ignore_errors=True)
            environment.parent.mkdir(parents=True, exist_ok=True)
            quiet = {"stdout": subprocess.DEVNULL, "timeout": 300}
            made = subprocess.run([sys.executable, "-m", "venv", environment], **quiet)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted]
            if made.returncode == 0 and subprocess.run(pip, **quiet).returncode == 0:
                stamp.touch()
        self.python = python if stamp.exists() else None

    def install_programs(self, _):
        absent = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
        if absent and os.geteuid() == 0 and shutil.which("apt-get"):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 300}
            subprocess.run(["apt-get", "update", "-qq"], **quiet)
            subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], **quiet)

    def inside(self, script, *words):
        """Runs a script of `inside/` with the installed packages; returns what it printed."""
        if self.python is None:
            raise Missing("the Python environment")
        return self.runs(self.python, HERE / "inside" / script, *words)

    def program(self, name):
        """The path of a program, Debian's or from the Python environment."""
        own = self.python and self.python.parent / name
        found = own if own and own.exists() else shutil.which(name)
        if not found:
            raise Missing(name)
        return found

    # Running things. Nothing waits longer than a minute.

    def runs(self, *words, **options):
        """Runs what must succeed; returns its output."""
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, **options)
        assert done.returncode == 0, f"{words[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}"
        return done.stdout

    def accepts(self, *words):
        """Whether a program ends well."""
        return subprocess.run(list(map(str, words)), capture_output=True, timeout=60).returncode == 0

    def bundle(self, *words):
        """Runs the command-line tool; returns its exit code and its one object."""
        command = [self.tool, *map(str, words), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stderr[-500:]}") from None

    def done(self, *words):
        """Runs the tool, which must succeed."""
        code, said = self.bundle(*words)
        assert code == 0, f"bundle {' '.join(map(str, words))}: {said.get('error')}"
        return said

    def refused(self, *words):
        """Runs the tool, which must find the check to fail (exit code 1); returns what it said."""
        code, said = self.bundle(*words)
        assert code == 1, f"bundle {' '.join(map(str, words))} ended with {code}: {said.get('error')}"
        return said

    # Things to work on.

    def folder(self, name):
        """A new empty folder."""
        path = self.work / name
        path.mkdir(parents=True)
        return path

    def make(self, name, version="1.0.0", prompt="Be brief.\n", weights=None):
        """A built bundle called `chat` in a new folder; returns the folder and what `build` said."""
        path = self.work / name
        self.done("init", path, "--name", "chat", "--version", version, "--licence", "Apache-2.0")
        files = {
            "model/weights/model.safetensors": weights or tensor_file(),
            "model/config.json": b'{"hidden_size": 2, "architectures": ["Tiny"]}',
            "model/tokenizer/tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0}}}',
            "prompt/system.txt": prompt.encode(),
            "prompt/few_shot/1.json": b'[{"role": "user", "content": "hi"}]',
            "config/empty.toml": b"",
        }
        for file, data in files.items():
            target = path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return path, self.done("build", path)

    def keys(self, curve):
        """A private and a public key in PEM."""
        folder = self.work / "keys"
        folder.mkdir(exist_ok=True)
        private, public = folder / f"{curve}.key", folder / f"{curve}.pub"
        if not public.exists():
            openssl = self.program("openssl")
            self.runs(openssl, "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-out", private)
            self.runs(openssl, "pkey", "-in", private, "-pubout", "-out", public)
        return private, public


def tensor_file(numbers=(1.0, 2.0)):
    """A safetensors file of one tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [0, 4 * len(numbers)]}})
    header = header.encode().ljust(-(-len(header) // 8) * 8)
    return struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(numbers)}f", *numbers)


def files(root, without=()):
    """Every file of a folder with its bytes."""
    found = (p for p in pathlib.Path(root).rglob("*") if p.is_file())
    named = {p.relative_to(root).as_posix(): p.read_bytes() for p in found}
    return {name: data for name, data in named.items() if name not in without}
