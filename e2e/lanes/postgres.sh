# postgres: the store in a real PostgreSQL, stopped and started
lane() {
  [ -x "$(echo /usr/lib/postgresql/*/bin/initdb | tr ' ' '\n' | tail -n 1)" ] || from_debian /usr/bin/psql postgresql
  local bin
  bin=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -n 1)
  [ -x "$bin/initdb" ] || { missing postgres "postgresql cannot be installed"; return; }
  real postgres "$("$bin/postgres" --version)" 4
}
