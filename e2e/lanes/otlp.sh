# otlp: metrics to a real OpenTelemetry sink (rotel)
lane() {
  local site
  from_pypi rotel==0.0.1a15 || { missing otlp "rotel cannot be installed"; return; }
  export LLM_E2E_ROTEL=$site/rotel/rotel-agent
  chmod +x "$LLM_E2E_ROTEL"
  real otlp "$("$LLM_E2E_ROTEL" --version)"
}
