"""Writes what the Rust engine must reproduce: logits of the JAX model.

    python examples/model/reference.py
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from train import CONFIG, forward

HERE = Path(__file__).parent
IDS = [256, 72, 105, 259, 300, 400, 500, 600, 700, 767, 10, 300, 259, 44, 32, 301] * 6


def main():
    cases = []
    for name in ["base", "better"]:
        weights = {k: jnp.asarray(v.astype(np.float32)) for k, v in load_file(HERE / f"weights/{name}.safetensors").items()}
        ids = jnp.asarray(IDS)[None]
        logits = np.asarray(forward(weights, ids, jnp.ones_like(ids), CONFIG))[0]
        rows = {str(place): [round(float(x), 5) for x in logits[place, ::8]] for place in [0, 15, len(IDS) - 1]}
        cases.append({"weights": name, "every": 8, "rows": rows})
    text = json.dumps({"ids": IDS, "cases": cases}, separators=(",", ":"))
    (HERE / "reference.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
