//! What a file is by its content, and secrets in it; suffixes lie.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a file is by its first bytes (and, for archives, by their list of entries).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FileFormat {
    /// A git-lfs pointer: a few lines of text that stand for a file.
    GitLfsPointer,
    /// GGUF weights.
    Gguf,
    /// A web page, usually an error message in place of a download.
    Html,
    /// An ONNX model.
    Onnx,
    /// A Python pickle, which runs code when it is loaded.
    Pickle,
    /// Safetensors weights.
    Safetensors,
    /// A `TorchServe` model archive.
    TorchServeArchive,
    /// A zip archive that holds a pickle, as `torch.save` writes it.
    TorchZip,
    /// Another zip archive.
    Zip,
    /// Anything else.
    Other,
}

impl FileFormat {
    /// Guesses by the first bytes of a file; a few hundred suffice.
    pub fn of_prefix(prefix: &[u8]) -> Self {
        if prefix.starts_with(b"version https://git-lfs.github.com/spec/") {
            return Self::GitLfsPointer;
        }
        if prefix.starts_with(b"GGUF") {
            return Self::Gguf;
        }
        if prefix.starts_with(b"PK\x03\x04") {
            return Self::Zip;
        }
        if let Some((first, rest)) = prefix.split_first_chunk::<8>() {
            // A header length, then JSON. Lengths such as 0x280 look like a pickle's first bytes.
            if u64::from_le_bytes(*first) <= 100_000_000 && rest.starts_with(b"{\"") {
                return Self::Safetensors;
            }
        }
        if is_pickle(prefix) {
            return Self::Pickle;
        }
        if is_onnx(prefix) {
            return Self::Onnx;
        }
        let text = prefix.trim_ascii_start();
        let starts = |tag: &[u8]| {
            text.get(..tag.len())
                .is_some_and(|t| t.eq_ignore_ascii_case(tag))
        };
        if starts(b"<!doctype html") || starts(b"<html") {
            return Self::Html;
        }
        Self::Other
    }

    /// What an archive is, by the names of its entries.
    pub fn of_archive<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut found = Self::Zip;
        for name in names {
            if name == "MAR-INF/MANIFEST.json" {
                return Self::TorchServeArchive;
            }
            let file = name.rsplit('/').next().unwrap_or(name);
            if ["pkl", "pickle", "pt", "pth"]
                .iter()
                .any(|e| crate::kind::has_extension(file, e))
            {
                found = Self::TorchZip;
            }
        }
        found
    }

    /// Whether loading such a file can run code that it carries.
    pub const fn runs_code(self) -> bool {
        matches!(
            self,
            Self::Pickle | Self::TorchZip | Self::TorchServeArchive
        )
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::GitLfsPointer => "git-lfs pointer",
            Self::Gguf => "GGUF",
            Self::Html => "HTML page",
            Self::Onnx => "ONNX",
            Self::Pickle => "pickle",
            Self::Safetensors => "safetensors",
            Self::TorchServeArchive => "TorchServe archive",
            Self::TorchZip => "PyTorch archive with a pickle",
            Self::Zip => "zip archive",
            Self::Other => "other",
        })
    }
}

/// A pickle's start: the PROTO opcode and a known protocol, then an opcode; or a protocol 0 global or container.
fn is_pickle(prefix: &[u8]) -> bool {
    if let [0x80, protocol @ 2..=5, next, ..] = prefix {
        // FRAME, MARK, GLOBAL, EMPTY_DICT/LIST/TUPLE/SET, LONG1, strings, small ints, NONE, BOOL, STOP and a few more.
        let opcode = b"\x95(c})]\x8f\x8aXKMJNBCU\x88\x89.\x8c\x8d\x8e\x96GT".contains(next);
        return opcode && (*next != 0x95 || *protocol >= 4);
    }
    let line = |bytes: &[u8]| -> Option<usize> {
        let end = bytes.iter().take(200).position(|b| *b == b'\n')?;
        let word = bytes.get(..end)?;
        let identifier = word
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
        (identifier && !word.is_empty()).then_some(end)
    };
    match prefix {
        // GLOBAL or INST: a module and a name on a line each, then more opcodes.
        [b'c', rest @ ..] | [b'(', b'i' | b'c', rest @ ..] => line(rest)
            .and_then(|end| line(rest.get(end + 1..)?))
            .is_some(),
        [b'(', b'd' | b'l', b'p', digit, ..] => digit.is_ascii_digit(),
        _ => false,
    }
}

/// A protobuf that begins as ONNX models do: `ir_version` as a small number, then a producer name or an opset import.
fn is_onnx(prefix: &[u8]) -> bool {
    match prefix {
        [0x08, 1..=20, 0x12, length, name @ ..] => {
            let name = name.get(..usize::from(*length).min(name.len()));
            name.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_graphic))
        }
        [0x08, 1..=20, 0x3a | 0x42, ..] => true,
        _ => false,
    }
}

/// The content of a git-lfs pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LfsPointer {
    /// SHA-256 of the file that it stands for.
    pub digest: crate::digest::Digest,
    /// That file's size.
    pub size: u64,
}

impl LfsPointer {
    /// The largest pointer file, in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Reads a pointer; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > Self::MAX_BYTES {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        if lines.next()? != "version https://git-lfs.github.com/spec/v1" {
            return None;
        }
        let (mut digest, mut size) = (None, None);
        for line in lines {
            match line.split_once(' ') {
                Some(("oid", value)) => digest = value.strip_prefix("sha256:")?.parse().ok(),
                Some(("size", value)) => size = value.parse().ok(),
                _ => {}
            }
        }
        Some(Self {
            digest: digest?,
            size: size?,
        })
    }
}

/// Something that looks like a secret. It holds where and what kind, never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretFound {
    /// Line, from 1.
    pub line: usize,
    /// What it looks like.
    pub what: &'static str,
}

/// A prefix, the characters that follow, and how many of them there must be at least.
struct Pattern {
    prefix: &'static str,
    least: usize,
    dash: bool,
    what: &'static str,
}

const fn pattern(prefix: &'static str, least: usize, dash: bool, what: &'static str) -> Pattern {
    Pattern {
        prefix,
        least,
        dash,
        what,
    }
}

impl Pattern {
    fn matches(&self, text: &[u8]) -> bool {
        let Some(rest) = text.strip_prefix(self.prefix.as_bytes()) else {
            return false;
        };
        let run = rest
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || (self.dash && matches!(b, b'-' | b'_')));
        let (mut length, mut digits) = (0, 0);
        for byte in run {
            length += 1;
            digits += usize::from(byte.is_ascii_digit());
        }
        length >= self.least && digits > 0
    }
}

const PATTERNS: [Pattern; 14] = [
    pattern("AKIA", 16, false, "AWS access key"),
    pattern("ASIA", 16, false, "AWS session key"),
    pattern("AIza", 35, true, "Google API key"),
    pattern("ghp_", 36, false, "GitHub token"),
    pattern("gho_", 36, false, "GitHub token"),
    pattern("ghs_", 36, false, "GitHub token"),
    pattern("github_pat_", 50, true, "GitHub token"),
    pattern("glpat-", 20, true, "GitLab token"),
    pattern("hf_", 30, false, "Hugging Face token"),
    pattern("sk-", 32, true, "API key"),
    pattern("xoxb-", 20, true, "Slack token"),
    pattern("xoxp-", 20, true, "Slack token"),
    pattern("npm_", 36, false, "npm token"),
    pattern("pypi-", 50, true, "PyPI token"),
];

/// Looks for secrets in a text by the forms that providers give their keys; at most 16 are reported.
pub fn find_secrets(text: &[u8]) -> Vec<SecretFound> {
    let mut search = SecretSearch::default();
    search.block(text);
    search.finish()
}

/// A search for secrets in a text that comes in blocks; memory is bounded whatever the length of lines.
#[derive(Debug, Default)]
pub(crate) struct SecretSearch {
    /// The end of the last block, whose line goes on.
    rest: Vec<u8>,
    /// Lines before `rest`.
    lines: usize,
    found: Vec<SecretFound>,
    /// Not a text: a zero byte was seen.
    binary: bool,
}

impl SecretSearch {
    /// Secrets reported at most.
    const MOST: usize = 16;
    /// Bytes of an unfinished line that are kept; every secret is shorter.
    const KEPT: usize = 4096;

    /// Searches the next block.
    pub(crate) fn block(&mut self, block: &[u8]) {
        self.binary |= block.contains(&0);
        if self.binary || self.found.len() >= Self::MOST {
            return;
        }
        let mut lines = block.split(|b| *b == b'\n');
        // The first line goes on from the block before; the last may go on in the next.
        let first = lines.next().unwrap_or_default();
        let mut line = std::mem::take(&mut self.rest);
        line.extend_from_slice(first);
        self.line(&line);
        for next in lines {
            self.lines += 1;
            self.line(next);
            line.clear();
            line.extend_from_slice(next);
        }
        self.rest = line.split_off(line.len().saturating_sub(Self::KEPT));
    }

    fn line(&mut self, line: &[u8]) {
        if self.found.len() >= Self::MOST {
            return;
        }
        let Some(what) = secret_in(line) else { return };
        let found = SecretFound {
            line: self.lines + 1,
            what,
        };
        // A line is seen again where it goes on in the next block.
        if !self.found.contains(&found) {
            self.found.push(found);
        }
    }

    /// What was found.
    pub(crate) fn finish(self) -> Vec<SecretFound> {
        self.found
    }
}

fn secret_in(line: &[u8]) -> Option<&'static str> {
    if contains(line, b"-----BEGIN ") && contains(line, b"PRIVATE KEY-----") {
        return Some("private key");
    }
    for (at, byte) in line.iter().enumerate() {
        if !matches!(byte, b'A' | b'g' | b'h' | b's' | b'x' | b'n' | b'p') {
            continue;
        }
        // A word that merely ends in the prefix is no key.
        if at > 0 && line.get(at - 1).is_some_and(u8::is_ascii_alphanumeric) {
            continue;
        }
        let rest = line.get(at..).unwrap_or_default();
        if let Some(pattern) = PATTERNS.iter().find(|p| p.matches(rest)) {
            return Some(pattern.what);
        }
    }
    if positions(line, b"://").any(|at| has_password(line.get(at + 3..).unwrap_or_default())) {
        return Some("password in a URL");
    }
    None
}

/// `user:password@` before the end of a URL's authority. A variable such as `${PASSWORD}` is no secret.
fn has_password(authority: &[u8]) -> bool {
    let end = authority
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#' | b'"' | b'\'') || b.is_ascii_whitespace());
    let authority = authority
        .get(..end.unwrap_or(authority.len()))
        .unwrap_or_default();
    let Some(at) = authority.iter().rposition(|b| *b == b'@') else {
        return false;
    };
    let user = authority.get(..at).unwrap_or_default();
    user.iter().position(|b| *b == b':').is_some_and(|colon| {
        let password = user.get(colon + 1..).unwrap_or_default();
        !password.is_empty()
            && !password.contains(&b'$')
            && !password.contains(&b'{')
            && !password.contains(&b'<')
    })
}

fn positions<'a>(line: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    line.windows(needle.len())
        .enumerate()
        .filter(move |(_, window)| *window == needle)
        .map(|(at, _)| at)
}

fn contains(line: &[u8], needle: &[u8]) -> bool {
    positions(line, needle).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pickles_by_content() {
        // `python3 -c 'import pickle; print(pickle.dumps(X, P))'` for several X and P.
        let pickles: [&[u8]; 8] = [
            b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.",
            b"\x80\x02}q\x00.",
            b"\x80\x03]q\x00.",
            b"\x80\x05N.",
            b"\x80\x02cposix\nsystem\nq\x00",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02",
            b"cposix\nsystem\np0\n(Vtrue\np1\ntp2\nRp3\n.",
            b"(lp0\n.",
        ];
        for bytes in pickles {
            assert_eq!(
                FileFormat::of_prefix(bytes),
                FileFormat::Pickle,
                "{bytes:?}"
            );
        }
        for bytes in [
            &b"could be\ntext\n"[..],
            b"(list)",
            b"",
            b"\x80",
            b"\x80\x02\x00\x00\x00\x00\x00\x00{\"a",
        ] {
            assert_ne!(
                FileFormat::of_prefix(bytes),
                FileFormat::Pickle,
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn other_formats() {
        assert_eq!(FileFormat::of_prefix(b"GGUF\x03\0\0\0"), FileFormat::Gguf);
        assert_eq!(
            FileFormat::of_prefix(b"\x08\x07\x12\x07pytorch"),
            FileFormat::Onnx
        );
        assert_eq!(
            FileFormat::of_prefix(b"\n<!DOCTYPE html><html>"),
            FileFormat::Html
        );
        assert_eq!(
            FileFormat::of_prefix(&crate::safetensors::tests::file(&[("a", &[1.0])], 0)),
            FileFormat::Safetensors
        );
        assert_eq!(
            FileFormat::of_archive(["model/data.pkl", "model/data/0"]),
            FileFormat::TorchZip
        );
        assert_eq!(
            FileFormat::of_archive(["a.pkl", "MAR-INF/MANIFEST.json"]),
            FileFormat::TorchServeArchive
        );
        assert_eq!(FileFormat::of_archive(["a.npy"]), FileFormat::Zip);
    }

    #[test]
    fn lfs_pointers() {
        let hex = "ab".repeat(32);
        let text =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{hex}\nsize 12345\n");
        let pointer = LfsPointer::parse(text.as_bytes()).unwrap();
        assert_eq!((pointer.digest.to_string(), pointer.size), (hex, 12345));
        assert_eq!(
            FileFormat::of_prefix(text.as_bytes()),
            FileFormat::GitLfsPointer
        );
        assert_eq!(
            LfsPointer::parse(
                b"version https://git-lfs.github.com/spec/v1\noid sha256:zz\nsize 1\n"
            ),
            None
        );
    }

    #[test]
    fn secrets_are_located_and_never_shown() {
        // Keys are put together here so that no scanner takes this file for a leak.
        let key = format!("sk{}{}", "-proj-", "a1B2".repeat(10));
        let text = format!(
            "You are helpful.\nUse {key} to log in.\npostgres://u:pw123@db/x\n-----BEGIN RSA PRIVATE KEY-----"
        );
        let found = find_secrets(text.as_bytes());
        assert_eq!(
            found.iter().map(|s| (s.line, s.what)).collect::<Vec<_>>(),
            [(2, "API key"), (3, "password in a URL"), (4, "private key")]
        );
        assert!(!format!("{found:?}").contains(&key));
        for harmless in [
            "ask-everything-you-want-to-know-about-it-please-do",
            "https://example.org/a:b@c",
            "postgres://u:${PASSWORD}@db",
            "the hf_ prefix and sk-short1",
        ] {
            assert_eq!(find_secrets(harmless.as_bytes()), [], "{harmless}");
        }
    }

    proptest! {
        #[test]
        fn blocks_of_any_size_find_what_the_whole_shows(before in "[a-z \n]{0,60}", after in "[a-z \n]{0,60}", size in 1..90_usize) {
            let key = format!("sk{}{}", "-proj-", "a1B2".repeat(10));
            let text = format!("{before} {key} {after}");
            let mut search = SecretSearch::default();
            text.as_bytes().chunks(size).for_each(|block| search.block(block));
            prop_assert_eq!(search.finish(), find_secrets(text.as_bytes()));
            prop_assert_eq!(find_secrets(text.as_bytes()).len(), 1);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (FileFormat::of_prefix(&bytes), LfsPointer::parse(&bytes), find_secrets(&bytes));
        }
    }
}
