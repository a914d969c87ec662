"""The registry when its process is killed, and when two of them race."""

import collections
import re
import shutil
import subprocess
import threading

# Every call by which a process changes files.
WRITES = ("write,pwrite64,writev,fsync,fdatasync,link,linkat,unlink,unlinkat,mkdir,mkdirat,rename,renameat,renameat2,"
          "fchmod,fchmodat,chmod,ftruncate,copy_file_range,sendfile")


def calls(strace, command, trace):
    """How often each of these calls is made, by any one thread."""
    subprocess.run([strace, "-f", "-o", trace, "-e", f"trace={WRITES}", *command], capture_output=True, timeout=60,
                   check=True)
    made = re.findall(r"^(\d+) +(\w+)\(", trace.read_text(), re.MULTILINE)
    most = collections.Counter()
    for (_, call), times in collections.Counter(made).items():
        most[call] = max(most[call], times)
    return [(call, n) for call, times in sorted(most.items()) for n in range(1, times + 1)]


def killed(lane):
    """Kills the tool before each call that changes a file, for every command that writes; the next try finishes."""
    strace = lane.program("strace")
    one, built_one = lane.make("killed-1")
    two, built_two = lane.make("killed-2", "1.1.0", "Be kind.\n")
    results = lane.work / "results.json"
    results.write_text('{"accuracy": "0.9"}')
    base = lane.work / "killed-registry"
    shared = ["--registry", base, "--by", "e2e"]
    lane.done("publish", one, *shared)
    lane.done("alias", "chat", "production", "--to", built_one["id"], *shared)
    commands = [
        ("publish", ["publish", two]),
        ("alias", ["alias", "chat", "production", "--to", built_two["id"]]),
        ("evaluate", ["evaluate", built_two["id"], results]),
        ("gc", ["gc", "--keep-latest", "0", "--keep-previous", "0"]),
    ]
    counts = []
    for name, command in commands:
        head = lane.done("log", "--registry", base)["head"]
        copy = lane.work / "killed-copy"
        words = [*command, "--registry", copy, "--by", "e2e"]
        run = list(map(str, [lane.tool, *words]))
        shutil.copytree(base, copy)
        moments = calls(strace, run, lane.work / "killed-trace")
        shutil.rmtree(copy)
        for call, nth in moments:
            shutil.copytree(base, copy)
            inject = [strace, "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={nth}"]
            ended = subprocess.run([*inject, *run], capture_output=True, timeout=60)
            assert ended.returncode in (137, -9), f"{name} outlived {call} {nth}: {ended.returncode}"
            # Whatever the moment, the log holds what it held and every version is whole.
            lane.done("check", "--registry", copy, "--known", head)
            lane.done(*words)
            said = lane.done("check", "--registry", copy, "--known", head)
            if name == "alias":
                shown = lane.done("alias", "chat", "production", "--registry", copy)
                assert shown["to"] == built_two["id"]
            if name == "gc":
                assert said["versions"] == 1, said
            shutil.rmtree(copy)
        counts.append(f"{name} {len(moments)}")
        lane.done(*command, *shared)
    return f"killed before each call that changes a file ({', '.join(counts)} times): always whole, and the next try finishes"


def race(lane):
    """Two processes move one alias by compare-and-set: every move that was acknowledged is in the history, in a chain."""
    registry = lane.work / "raced"
    shared = ["--registry", registry, "--by", "e2e"]
    ids = []
    for n in range(2):
        model, built = lane.make(f"raced-{n}", f"1.{n}.0", f"prompt {n}\n")
        lane.done("publish", model, *shared)
        ids.append(built["id"])
    moves, lost, problems = [], [], []

    def mover(who):
        try:
            for _ in range(25):
                at = lane.done("alias", "chat", "production", "--registry", registry)["to"]
                to = ids[1] if at == ids[0] else ids[0]
                code, said = lane.bundle("alias", "chat", "production", "--from", at or "nothing", "--to", to,
                                         "--registry", registry, "--by", who)
                assert code in (0, 4), said
                (moves if code == 0 else lost).append((at, to))
        except Exception as problem:  # told by the thread that waits
            problems.append(problem)

    threads = [threading.Thread(target=mover, args=(who,)) for who in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not problems, problems
    history = lane.done("alias", "chat", "production", "--history", "--registry", registry)["moves"]
    assert len(history) == len(moves) and len(moves) + len(lost) == 50
    assert all(before["to"] == after["from"] for before, after in zip(history, history[1:]))
    lane.done("check", "--registry", registry)
    return f"50 tries of two processes: {len(moves)} moved, {len(lost)} were told that the other was faster, none lost"
