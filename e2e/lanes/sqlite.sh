# sqlite: the store in a file, on a disk that is full
lane() {
  # The folder goes with the run.
  mkdir -p "$work/mount" && mount -t tmpfs -o size=64k llm-e2e "$work/mount" 2>"$work/mount.log" ||
    { missing sqlite "a small file system cannot be mounted here ($(head -n 1 "$work/mount.log"))"; return; }
  umount "$work/mount"
  real sqlite "SQLite, built in"
}
