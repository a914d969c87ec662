"""Makes another model of a GGUF model: requantise.py FROM TO [--noise PART] [--seed N]

Every quantised tensor is written anew as Q8_0: another file with nearly the same answers. With noise, each of its weights is
moved at random by so many standard deviations of its tensor: 0.08 is a little worse, 0.35 is damaged beyond use. The same arguments
give the same bytes. TO appears whole or not at all.
"""

import argparse
import os

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants

PLAIN = {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
TARGET = GGMLQuantizationType.Q8_0


def copy_fields(model, out):
    """All that the model says of itself, but how it is quantised."""
    for name, field in model.fields.items():
        # The writer says these itself.
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = field.contents()
        if name == "general.file_type":
            value = int(LlamaFileType.MOSTLY_Q8_0)
        out.add_key_value(name, value, kind, sub_type=inner)


def requantised(tensor, noise, chance):
    """The bytes of a tensor, and their type."""
    if tensor.tensor_type in PLAIN:
        return numpy.array(tensor.data), tensor.tensor_type
    weights = quants.dequantize(tensor.data, tensor.tensor_type)
    if noise:
        moved = chance.normal(0.0, noise * float(weights.std()), weights.shape)
        weights = weights + moved.astype(numpy.float32)
    return quants.quantize(weights.astype(numpy.float32), TARGET), TARGET


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("source")
    args.add_argument("target")
    args.add_argument("--noise", type=float, default=0.0)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()

    model = GGUFReader(args.source)
    unfinished = f"{args.target}.{os.getpid()}.part"
    out = GGUFWriter(unfinished, model.fields["general.architecture"].contents())
    copy_fields(model, out)
    chance = numpy.random.default_rng(args.seed)
    for tensor in model.tensors:
        data, kind = requantised(tensor, args.noise, chance)
        out.add_tensor(tensor.name, data, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.replace(unfinished, args.target)


main()
