# prometheus: windows from a real Prometheus
lane() {
  from_debian prometheus prometheus || { missing prometheus "prometheus cannot be installed"; return; }
  real prometheus "$(command prometheus --version 2>&1 | grep -oE 'version [0-9.]+' | head -n 1)" 5
}
