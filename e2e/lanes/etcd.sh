# etcd: the store in a real etcd, killed, stopped, full
lane() {
  from_debian etcd etcd-server || { missing etcd "etcd cannot be installed"; return; }
  real etcd "$(command etcd --version | head -n 1)"
}
