# torchserve: promotion sets the default version of a real TorchServe, and a return sets it back
lane() {
  command -v java >/dev/null || from_debian java openjdk-17-jre-headless || { missing torchserve "java cannot be installed"; return; }
  from_pypi torchserve==0.12.0 torch-model-archiver==0.12.0 packaging==26.3 pillow==13.0.0 psutil==7.2.2 PyYAML==6.0.3 setuptools==80.9.0 ||
    { missing torchserve "torchserve cannot be installed"; return; }
  # Its workers ask torch only whether a reply is a tensor: these lines stand for gigabytes that nobody needs here.
  [ -d "$site/torch" ] || printf 'class Tensor:\n    pass\n\n\ndef is_tensor(value):\n    return False\n' >"$site/torch.py"
  export LLM_E2E_TORCHSERVE_PYTHON=$venv/bin LLM_E2E_TORCHSERVE_SITE=$site LLM_E2E_TORCHSERVE_VERSION=0.12.0
  real torchserve "TorchServe 0.12.0"
}
