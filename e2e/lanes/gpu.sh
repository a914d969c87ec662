# gpu: versions on an NVIDIA GPU, by vLLM if it is installed, else by a small PyTorch server (opt-in; skipped without a GPU)
lane() {
  if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >"$work/gpus" 2>&1 || ! grep -q '^GPU ' "$work/gpus"; then
    # Asked for by name on a machine that cannot have it: said, and no failure.
    skipped=$((skipped + 1))
    printf 'SKIPPED: gpu: this machine has no NVIDIA GPU\n'
    return
  fi
  local python=${LLM_E2E_PYTHON:-python3} gpu
  gpu=$(sed -n '1s/^GPU 0: \(.*\) (UUID.*/\1/p' "$work/gpus")
  "$python" -c 'import torch; assert torch.cuda.is_available()' 2>"$work/torch.log" ||
    { missing gpu "PyTorch with CUDA is not installed for $python (LLM_E2E_PYTHON names another)"; return; }
  gpu_rollouts cuda "$gpu, PyTorch $("$python" -c 'import torch; print(torch.__version__)')"
  # The same lane that runs on a CPU, with what is installed here.
  if command -v vllm >/dev/null; then
    lane_named vllm
  else
    printf '        vLLM is not installed here\n'
  fi
}

# The bundles that the quickstart builds, served by the PyTorch server on this device.
gpu_rollouts() { # gpu_rollouts DEVICE TEXT
  build quickstart
  "$quickstart" --json --seconds 10 --dir "$work/bundles" >"$work/bundles.json" ||
    { verdict gpu no "the quickstart has written no bundles"; return; }
  LLM_E2E_BUNDLES=$work/bundles/bundles/desk LLM_E2E_GPU_SERVER=$PWD/e2e/gpu/serve.py LLM_E2E_GPU_DEVICE=$1 LLM_E2E_PYTHON=${LLM_E2E_PYTHON:-python3}
  export LLM_E2E_BUNDLES LLM_E2E_GPU_SERVER LLM_E2E_GPU_DEVICE LLM_E2E_PYTHON
  real gpu "$2"
}
