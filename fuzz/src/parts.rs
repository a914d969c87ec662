//! Inputs of several files that name each other by digest.

use llm_version_core::Digest;

/// Between two parts.
pub(crate) const BETWEEN: &[u8] = b"\n%%\n";

/// Parts of an input, with `$n$` replaced by the digest of part n and `#n#` by its size, for parts that come later. Without
/// this no fuzzer would ever meet a digest that holds. `bytes` are those of a part that count.
pub(crate) fn parts(input: &[u8], bytes: fn(&[u8]) -> &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut rest = input;
    while let Some(at) = find(rest, BETWEEN) {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + BETWEEN.len()..];
        // Nine can be named.
        if parts.len() == 9 {
            break;
        }
    }
    parts.push(rest.to_vec());
    for n in (1..parts.len()).rev() {
        let (before, part) = parts.split_at_mut(n);
        let part = bytes(&part[0]);
        let (digest, size) = (Digest::of(part).to_string(), part.len().to_string());
        for earlier in before {
            replace(earlier, format!("${n}$").as_bytes(), digest.as_bytes());
            replace(earlier, format!("#{n}#").as_bytes(), size.as_bytes());
        }
    }
    parts
}

/// The first place of `needle`.
pub(crate) fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|w| w == needle)
}

/// Replaces at most four times, so that what comes out is proportional to what went in.
pub(crate) fn replace(text: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    for _ in 0..4 {
        let Some(at) = find(text, from) else {
            return;
        };
        text.splice(at..at + from.len(), to.iter().copied());
    }
}

/// A line and what follows it: the path of a file and its bytes.
pub(crate) fn file(part: &[u8]) -> Option<(&str, &[u8])> {
    let at = part.iter().position(|b| *b == b'\n')?;
    let path = std::str::from_utf8(&part[..at]).ok()?;
    Some((path, &part[at + 1..]))
}
