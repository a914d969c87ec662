# mlflow: an alias of a real MLflow that follows promotion and rollback (opt-in: 850 MB)
lane() {
  local venv=${E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llm-rollout-e2e}/mlflow
  # With all it needs, unlike what `from_pypi` installs.
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" >"$work/pip.log" 2>&1 || { missing mlflow "no Python environment can be made"; return; }
  "$venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: mlflow==3.17.2 >"$work/pip.log" 2>&1 || { missing mlflow "mlflow cannot be installed"; return; }
  export LLM_E2E_MLFLOW=$venv/bin/mlflow
  real mlflow "$("$LLM_E2E_MLFLOW" --version 2>/dev/null | tail -n 1)"
}
