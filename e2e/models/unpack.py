"""Unpacks a GGUF model into a folder as Hugging Face has it, in bfloat16: unpack.py FOLDER FILE TO. TO appears whole or not at all."""

import os
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, file, to = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
config = AutoConfig.from_pretrained(folder, gguf_file=file)
if hasattr(config, "quantization_config"):
    del config.quantization_config
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.load_state_dict(quantised.state_dict())
model.save_pretrained(to + ".part")
tokenizer.save_pretrained(to + ".part")
os.replace(to + ".part", to)
