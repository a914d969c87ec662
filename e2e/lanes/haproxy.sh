# haproxy: splits served by a real HAProxy
lane() {
  from_debian haproxy haproxy || { missing haproxy "haproxy cannot be installed"; return; }
  real haproxy "$(command haproxy -v | head -n 1 | cut -d' ' -f1-3)" 3
}
