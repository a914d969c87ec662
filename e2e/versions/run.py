"""The lane `versions`: the version tool against the implementations that others use.

run.py TOOL COUNTS: TOOL is the command-line tool `bundle`; the numbers of scenarios that passed, failed and were skipped
go to the file COUNTS. Packages are kept in a cache folder, $LLM_E2E_CACHE or ~/.cache/llm-e2e.
"""

import os
import pathlib
import sys
import tempfile

import exchange
import registry
import signatures
import tamper
from lane import Lane

SCENARIOS = [
    ("signatures", signatures.both_ways),
    ("certificates", signatures.certificates),
    ("stricter", signatures.stricter),
    ("oci", exchange.oci),
    ("hub", exchange.hub),
    ("bom", exchange.bom),
    ("tensors", exchange.tensors),
    ("dvc", exchange.dvc),
    ("killed", registry.killed),
    ("race", registry.race),
    ("tampering", tamper.tampering),
]


def main():
    tool, counts, *chosen = sys.argv[1:]
    cache = os.environ.get("LLM_E2E_CACHE") or pathlib.Path.home() / ".cache" / "llm-e2e"
    with tempfile.TemporaryDirectory() as work:
        lane = Lane(tool, work)
        lane.install(cache)
        for name, scenario in SCENARIOS:
            if not chosen or name in chosen:
                lane.scenario(name, scenario)
    pathlib.Path(counts).write_text(f"{lane.passed} {lane.failed} {lane.skipped}\n")


main()
