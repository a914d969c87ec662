# evals: evaluators on real models of a real llama-server
lane() {
  llama_server || { missing evals "llama-server and its models cannot be installed"; return; }
  real evals "llama.cpp $LLM_E2E_LLAMA_VERSION"
}
