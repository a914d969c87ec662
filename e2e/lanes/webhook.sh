# webhook: notices whose signature a receiver in Python checks
lane() {
  command -v python3 >/dev/null || { missing webhook "there is no python3"; return; }
  export LLM_E2E_WEBHOOK=$PWD/e2e/webhook/receiver.py
  real webhook "$(python3 --version)"
}
