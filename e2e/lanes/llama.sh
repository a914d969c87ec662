# llama: rollouts on real models served by a real llama-server
lane() {
  llama_server || { missing llama "llama-server and its models cannot be installed"; return; }
  real llama "llama.cpp $LLM_E2E_LLAMA_VERSION" 2
}
