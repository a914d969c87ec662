# registry: bundles pushed to a real OCI registry, pulled on another host, served by a real engine
lane() {
  from_debian docker-registry docker-registry || { missing registry "docker-registry cannot be installed"; return; }
  llama_server || { missing registry "llama-server or its models cannot be installed"; return; }
  real registry "$(command docker-registry --version | head -n 1)"
}
