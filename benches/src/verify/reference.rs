//! The reference implementation of model signing, hashing the same tree.

use crate::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Names the Python that has `model-signing`; without it, the Python of `model_signing` on the path is taken.
pub(super) const PYTHON: &str = "MODEL_SIGNING_PYTHON";

/// Hashes the tree of every line it reads, with SHA-256 and as many threads as the reference thinks best; answers with the
/// seconds of processor time that this took.
const SCRIPT: &str = r#"
import sys, time
from model_signing.hashing import Config
config = Config()
if sys.argv[1] == "shards":
    config.use_shard_serialization()
else:
    config.use_file_serialization()
print(0, flush=True)
for line in sys.stdin:
    begun = time.process_time()
    config.hash(line.rstrip("\n"))
    print(time.process_time() - begun, flush=True)
"#;

/// A running reference: starting Python and importing it are not measured.
#[derive(Debug)]
pub(super) struct Reference {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// The Python of a script, by the script's first line.
fn interpreter(first: &str) -> Option<PathBuf> {
    let path = first.strip_prefix("#!")?.trim();
    (!path.is_empty() && !path.contains(' ')).then(|| path.into())
}

fn python() -> Option<PathBuf> {
    if let Some(python) = std::env::var_os(PYTHON) {
        return Some(python.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|folder| {
        let mut first = String::new();
        let script = File::open(folder.join("model_signing")).ok()?;
        BufReader::new(script).read_line(&mut first).ok()?;
        interpreter(&first)
    })
}

impl Reference {
    /// Starts it, to hash by `files` or by `shards`; none where it is not installed.
    pub(super) fn start(by: &str) -> Option<Self> {
        let mut child = Command::new(python()?)
            .args(["-c", SCRIPT, by])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let (input, output) = (child.stdin.take(), child.stdout.take()?);
        let mut reference = Self {
            child,
            input,
            output: BufReader::new(output),
        };
        reference.answer().ok()?;
        Some(reference)
    }

    fn answer(&mut self) -> Result<f64, Error> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let seconds = line.trim_end().parse();
        seconds.map_err(|_| "model-signing failed".into())
    }

    /// Hashes a tree; the seconds of processor time that this took.
    ///
    /// # Errors
    /// It failed.
    pub(super) fn hash(&mut self, tree: &Path) -> Result<f64, Error> {
        let input = self.input.as_mut().ok_or("model-signing has ended")?;
        writeln!(input, "{}", tree.display())?;
        input.flush()?;
        self.answer()
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // Its loop ends with its input.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_stand_in_the_first_line() {
        assert_eq!(
            interpreter("#!/opt/venv/bin/python3\n"),
            Some("/opt/venv/bin/python3".into())
        );
        assert_eq!(interpreter("#!/usr/bin/env python3\n"), None);
        assert_eq!(interpreter("\x7fELF"), None);
    }
}
