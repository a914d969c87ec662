# triton: versions loaded, tried on some users and unloaded by a real NVIDIA Triton
lane() {
  # The Triton of NVIDIA's own wheel, with its backend for models in Python; that needs numpy.
  from_pypi nvidia-pytriton==0.7.0 numpy==1.26.4 || { missing triton "nvidia-pytriton cannot be installed"; return; }
  local server=$site/pytriton/tritonserver python
  python=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  cp -f "$server/python_backend_stubs/$python/triton_python_backend_stub" "$server/backends/python/" 2>"$work/triton.log" ||
    { missing triton "this Triton has no stub for Python $python"; return; }
  chmod +x "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub"
  export LLM_E2E_TRITON=$server LLM_E2E_TRITON_PYTHON=$venv/bin LLM_E2E_TRITON_SITE=$site
  real triton "nvidia-pytriton 0.7.0" 2
}
