"""tensors.py FOLDER: the same tensors saved until the bytes differ, as a.safetensors and b.safetensors; then
c.safetensors with one number changed, and parts d-1, d-2 that hold them in two files with an index."""

import json
import pathlib
import sys

import numpy
from safetensors.numpy import save, save_file

folder = pathlib.Path(sys.argv[1])
numbers = numpy.random.default_rng(7)
tensors = {f"layer.{n}.weight": numbers.standard_normal((16, 16)).astype("float32") for n in range(4)}
notes = {"format": "pt", "author": "ana", "date": "2026-01-31", "step": "100"}
first = save(tensors, metadata=notes)
other = next(again for again in (save(tensors, metadata=notes) for _ in range(1000)) if again != first)
(folder / "a.safetensors").write_bytes(first)
(folder / "b.safetensors").write_bytes(other)
tuned = {name: value.copy() for name, value in tensors.items()}
tuned["layer.2.weight"][3, 3] += 1
save_file(tuned, folder / "c.safetensors", metadata=notes)
names = sorted(tensors)
halves = {"d-1.safetensors": names[:2], "d-2.safetensors": names[2:]}
for file, held in halves.items():
    save_file({name: tensors[name] for name in held}, folder / file)
index = {"metadata": {"total_size": 4 * 16 * 16 * 4},
         "weight_map": {name: file for file, held in halves.items() for name in held}}
(folder / "d.index.json").write_text(json.dumps(index))
