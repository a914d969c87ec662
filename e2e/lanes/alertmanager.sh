# alertmanager: pages as alerts of a real Alertmanager
lane() {
  from_debian prometheus-alertmanager prometheus-alertmanager || { missing alertmanager "prometheus-alertmanager cannot be installed"; return; }
  real alertmanager "$(prometheus-alertmanager --version 2>&1 | grep -oE 'version [0-9.]+' | head -n 1)"
}
