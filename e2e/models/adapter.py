"""Makes a random LoRA adapter for a GGUF model of the Llama family: adapter.py MODEL TO [--rank N] [--strength PART] [--seed N]

It moves the values and outputs of every attention: `strength` is how large the change of a weight matrix is, beside the matrix itself
taken as one of a fresh model. TO is a GGUF file if its name ends so, otherwise a folder as PEFT has it, which holds the same numbers. The
same arguments give the same bytes. TO appears whole or not at all.
"""

import argparse
import json
import os
import shutil

import numpy
from gguf import GGUFReader, GGUFWriter

# What GGUF and PEFT call the matrices. Those of queries and keys lie in another order in GGUF.
MATRICES = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}


def matrices(model, rank, strength, chance):
    """For each matrix its layer, its name, and the two that are multiplied: ranks by inputs, and outputs by ranks."""
    shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in model.tensors}
    layer = 0
    while f"blk.{layer}.attn_v.weight" in shapes:
        for name in MATRICES:
            inputs, outputs = shapes[f"blk.{layer}.{name}.weight"]
            a = chance.normal(0.0, inputs**-0.5, (rank, inputs))
            b = chance.normal(0.0, strength * rank**-0.5, (outputs, rank))
            yield layer, name, a.astype(numpy.float32), b.astype(numpy.float32)
        layer += 1


def to_gguf(to, architecture, rank, pairs):
    out = GGUFWriter(to, architecture)
    out.add_type("adapter")
    out.add_string("adapter.type", "lora")
    # Divided by the rank: the product counts as it is.
    out.add_float32("adapter.lora.alpha", float(rank))
    for layer, name, a, b in pairs:
        out.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a)
        out.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def to_peft(to, rank, pairs):
    from safetensors.numpy import save_file

    shutil.rmtree(to, ignore_errors=True)
    os.makedirs(to)
    tensors = {}
    for layer, name, a, b in pairs:
        matrix = f"base_model.model.model.layers.{layer}.{MATRICES[name]}"
        tensors[f"{matrix}.lora_A.weight"] = a
        tensors[f"{matrix}.lora_B.weight"] = b
    save_file(tensors, os.path.join(to, "adapter_model.safetensors"))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [matrix.rsplit(".", 1)[1] for matrix in MATRICES.values()],
    }
    with open(os.path.join(to, "adapter_config.json"), "w") as file:
        json.dump(config, file, indent=2)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("model")
    args.add_argument("to")
    args.add_argument("--rank", type=int, default=8)
    args.add_argument("--strength", type=float, default=0.5)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()

    model = GGUFReader(args.model)
    chance = numpy.random.default_rng(args.seed)
    pairs = matrices(model, args.rank, args.strength, chance)
    unfinished = f"{args.to}.{os.getpid()}.part"
    if args.to.endswith(".gguf"):
        to_gguf(unfinished, model.fields["general.architecture"].contents(), args.rank, pairs)
    else:
        to_peft(unfinished, args.rank, pairs)
        shutil.rmtree(args.to, ignore_errors=True)
    os.replace(unfinished, args.to)


main()
