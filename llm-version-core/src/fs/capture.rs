//! Capturing lineage from a git checkout and given files.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::lineage::{CodeRevision, ConfigSnapshot, Lineage};

/// The largest configuration that is kept in a lineage, in bytes.
const CONFIG_LIMIT: u64 = 4 << 20;

/// What to capture.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Capture {
    /// A git work tree: its commit, whether it differs from that commit, and where it came from.
    pub checkout: Option<PathBuf>,
    /// The git program; a bare name is looked up as the system does.
    pub git: PathBuf,
    /// The resolved configuration of the run, such as Hydra's `.hydra/config.yaml`.
    pub config: Option<PathBuf>,
    /// The overrides of the run, such as Hydra's `.hydra/overrides.yaml`: a list with one item a line.
    pub overrides: Option<PathBuf>,
    /// A list of packages as `name==version`, one a line, such as `pip freeze` writes it.
    pub packages: Option<PathBuf>,
}

impl Capture {
    /// Captures nothing yet; git is the program `git`.
    pub fn new() -> Self {
        Self {
            git: PathBuf::from("git"),
            ..Self::default()
        }
    }
}

/// Why lineage could not be captured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// Git could not be run.
    #[error("{program}: {error}")]
    NoGit {
        /// The program.
        program: String,
        /// What the system said.
        error: io::Error,
    },
    /// Git refused: no work tree, no commit yet, or it does not trust the folder.
    #[error("git {command} in {checkout}: {said}")]
    Git {
        /// What was asked.
        command: String,
        /// Where.
        checkout: String,
        /// What git said.
        said: String,
    },
    /// A file cannot be read, is too large or is not text.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        error: String,
    },
}

/// Captures lineage. Fields that `capture` does not name stay empty, to be filled in by the caller.
///
/// # Errors
/// When something that is asked for cannot be captured: a lineage with holes that nobody knows of is worse than none.
pub fn capture_lineage(capture: &Capture) -> Result<Lineage, CaptureError> {
    let mut lineage = Lineage::default();
    if let Some(checkout) = &capture.checkout {
        lineage.code = Some(code(capture, checkout)?);
    }
    if let Some(path) = &capture.config {
        let mut config = ConfigSnapshot::new(text(path)?);
        if let Some(path) = &capture.overrides {
            config.overrides = list(&text(path)?);
        }
        lineage.config = Some(config);
    }
    if let Some(path) = &capture.packages {
        for line in text(path)?.lines().map(str::trim) {
            match line.split_once("==") {
                Some((name, version)) => {
                    lineage
                        .environment
                        .insert(name.trim().to_owned(), version.trim().to_owned());
                }
                None if line.is_empty() || line.starts_with('#') => {}
                // Editable installs and direct references: kept whole, since there is no version.
                None => {
                    lineage
                        .environment
                        .insert(line.to_owned(), "unversioned".to_owned());
                }
            }
        }
    }
    Ok(lineage)
}

fn code(capture: &Capture, checkout: &Path) -> Result<CodeRevision, CaptureError> {
    let commit = git(
        capture,
        checkout,
        &["rev-parse", "--verify", "HEAD^{commit}"],
    )?;
    // Untracked files count too: a script that was never committed is a change like any other.
    let status = git(
        capture,
        checkout,
        &["status", "--porcelain", "--untracked-files=normal"],
    )?;
    let mut code = CodeRevision::new(commit.trim(), !status.trim().is_empty());
    let remote = git(capture, checkout, &["config", "--get", "remote.origin.url"]);
    code.repository = remote.ok().map(|url| without_credentials(url.trim()));
    Ok(code)
}

fn git(capture: &Capture, checkout: &Path, arguments: &[&str]) -> Result<String, CaptureError> {
    let output = Command::new(&capture.git)
        .arg("-C")
        .arg(checkout)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| CaptureError::NoGit {
            program: capture.git.display().to_string(),
            error,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(CaptureError::Git {
        command: arguments.join(" "),
        checkout: checkout.display().to_string(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// `https://user:token@host/x` as `https://host/x`; secrets never enter a lineage.
fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit('@').next().unwrap_or(authority);
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}

fn text(path: &Path) -> Result<String, CaptureError> {
    let failed = |error: String| CaptureError::File {
        path: path.display().to_string(),
        error,
    };
    let name = path.display().to_string();
    let bytes =
        super::build::read_small(path, &name, CONFIG_LIMIT).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))
}

/// The items of a flat YAML list, as `PyYAML` writes it, or of plain lines. Long items go on in indented lines.
fn list(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in text.lines() {
        let words = line.trim();
        if words.is_empty() || words.starts_with('#') || words == "[]" {
            continue;
        }
        match (words.strip_prefix("- "), items.last_mut()) {
            (Some(item), _) => items.push(item.trim_start().to_owned()),
            (None, Some(item)) if line.starts_with([' ', '\t']) => {
                item.push(' ');
                item.push_str(words);
            }
            (None, _) => items.push(words.to_owned()),
        }
    }
    items.iter().map(|item| unquoted(item)).collect()
}

/// A scalar in single quotes, in which a quote is written twice, as what it stands for.
fn unquoted(item: &str) -> String {
    let inside = item.strip_prefix('\'').and_then(|i| i.strip_suffix('\''));
    inside.map_or_else(|| item.to_owned(), |inside| inside.replace("''", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_left_out() {
        assert_eq!(
            without_credentials("https://u:t@h.example/a/b"),
            "https://h.example/a/b"
        );
        assert_eq!(
            without_credentials("https://h.example/a@b"),
            "https://h.example/a@b"
        );
        assert_eq!(
            without_credentials("git@h.example:a/b"),
            "git@h.example:a/b"
        );
    }

    #[test]
    fn overrides_read_as_they_were_given() {
        // `python3 -c 'import yaml; print(yaml.dump([...]))'`
        let text = "- lr=1e-5\n- 'prompt=Say: it''s fine'\n- +note=one two three four five six seven eight nine\n  ten eleven\n- ''\n";
        assert_eq!(
            list(text),
            [
                "lr=1e-5",
                "prompt=Say: it's fine",
                "+note=one two three four five six seven eight nine ten eleven",
                ""
            ]
        );
        assert_eq!(list("[]\n"), [""; 0]);
        assert_eq!(list("a=1\n# b\nc=2\n"), ["a=1", "c=2"]);
    }

    #[test]
    fn a_checkout_and_files_are_captured_in_one_call() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let git = |arguments: &[&str]| {
            let identity = [
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@example.org",
                "-c",
                "commit.gpgsign=false",
            ];
            let status = Command::new("git")
                .arg("-C")
                .arg(root)
                .args(identity)
                .args(arguments)
                .output();
            assert!(status.unwrap().status.success());
        };
        git(&["init", "-q"]);
        let mut capture = Capture::new();
        capture.checkout = Some(root.to_owned());
        assert!(
            matches!(capture_lineage(&capture), Err(CaptureError::Git { .. })),
            "no commit yet"
        );
        std::fs::write(root.join("config.yaml"), "lr: 1e-5\n").unwrap();
        std::fs::write(root.join("overrides.yaml"), "- lr=1e-5\n- seed=3\n").unwrap();
        std::fs::write(root.join("freeze.txt"), "torch==2.7.0\n# x\n-e git+x\n").unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "x"]);
        capture.config = Some(root.join("config.yaml"));
        capture.overrides = Some(root.join("overrides.yaml"));
        capture.packages = Some(root.join("freeze.txt"));
        let lineage = capture_lineage(&capture).unwrap();
        let code = lineage.code.unwrap();
        assert_eq!((code.commit.len(), code.dirty), (40, false));
        let config = lineage.config.unwrap();
        assert_eq!(config.overrides, ["lr=1e-5", "seed=3"]);
        assert_eq!(config.digest, crate::Digest::of(b"lr: 1e-5\n"));
        assert_eq!(lineage.environment["torch"], "2.7.0");
        std::fs::write(root.join("new.py"), "x").unwrap();
        assert!(capture_lineage(&capture).unwrap().code.unwrap().dirty);
        capture.git = root.join("no-such-git");
        assert!(matches!(
            capture_lineage(&capture),
            Err(CaptureError::NoGit { .. })
        ));
    }
}
