//! Looking at files while they are hashed: format by content, archives by their list of entries, secrets in text.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::hash::HashError;
use super::problem::{Problem, ProblemKind};
use super::walk::Found;
use crate::content::{FileFormat, LfsPointer, SecretFound};
use crate::safetensors::{SafetensorsError, SafetensorsHeader};

/// The end of a zip archive and the longest comment after it.
const ZIP_END: u64 = 22 + 65_535;
/// Bytes of an archive's list of entries that are read.
const ZIP_LIST: u64 = 4 << 20;

/// What a file is and holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspection {
    pub(crate) format: FileFormat,
    pub(crate) pointer: Option<LfsPointer>,
    pub(crate) secrets: Vec<SecretFound>,
    /// The file has been seen whole and is no archive.
    no_archive: bool,
}

impl Default for Inspection {
    fn default() -> Self {
        Self {
            format: FileFormat::Other,
            pointer: None,
            secrets: Vec::new(),
            no_archive: false,
        }
    }
}

impl Inspection {
    /// Looks at the first block, which may be the whole file.
    pub(crate) fn of_first_block(block: &[u8], whole: bool) -> Self {
        Self {
            format: FileFormat::of_prefix(block),
            pointer: LfsPointer::parse(block),
            secrets: Vec::new(),
            no_archive: whole && !block.windows(4).any(|w| w == b"PK\x05\x06"),
        }
    }

    /// Looks for a zip archive at the end of the file, whatever its start says: loaders find it there.
    pub(crate) fn look_at_end(&mut self, file: &mut File, size: u64) -> Result<(), HashError> {
        if self.no_archive {
            return Ok(());
        }
        let Some(names) = zip_names(file, size)? else {
            return Ok(());
        };
        let archive = FileFormat::of_archive(names.iter().map(String::as_str));
        if archive.runs_code() || self.format == FileFormat::Zip {
            self.format = archive;
        }
        Ok(())
    }
}

fn read_at(file: &mut File, start: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn le(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    Some(field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// The names in a zip archive at the end of the file; `None` where there is no archive.
fn zip_names(file: &mut File, size: u64) -> io::Result<Option<Vec<String>>> {
    let start = size.saturating_sub(ZIP_END);
    let tail = read_at(file, start, ZIP_END)?;
    let Some(end) = tail.windows(22).rposition(|w| w.starts_with(b"PK\x05\x06")) else {
        return Ok(None);
    };
    // Size and place of the list of entries; archives above 4 GiB say so in a further record.
    let mut list = (le(&tail, end + 12, 4), le(&tail, end + 16, 4));
    if list.0 == Some(0xffff_ffff) || list.1 == Some(0xffff_ffff) {
        let locator = end
            .checked_sub(20)
            .filter(|at| tail[*at..].starts_with(b"PK\x06\x07"));
        let place = locator.and_then(|at| le(&tail, at + 8, 8));
        let record = match place {
            Some(place) => read_at(file, place, 56)?,
            None => return Ok(Some(Vec::new())),
        };
        list = (le(&record, 40, 8), le(&record, 48, 8));
    }
    let (Some(length), Some(_)) = list else {
        return Ok(Some(Vec::new()));
    };
    // Readers tolerate bytes before the archive, so the list is where it ends: right before its end record.
    let before_end = start + end as u64;
    let place = match list.1 {
        Some(place) if place.saturating_add(length) <= before_end && at_list(file, place)? => place,
        _ => before_end.saturating_sub(length),
    };
    let bytes = read_at(file, place, length.min(ZIP_LIST))?;
    let (mut at, mut names) = (0, Vec::new());
    while bytes.get(at..at + 4) == Some(b"PK\x01\x02") {
        let field = |offset| le(&bytes, at + offset, 2).and_then(|n| usize::try_from(n).ok());
        let (Some(name), Some(extra), Some(comment)) = (field(28), field(30), field(32)) else {
            break;
        };
        let Some(text) = bytes.get(at + 46..at + 46 + name) else {
            break;
        };
        names.push(String::from_utf8_lossy(text).into_owned());
        at += 46 + name + extra + comment;
    }
    Ok(Some(names))
}

fn at_list(file: &mut File, place: u64) -> io::Result<bool> {
    Ok(read_at(file, place, 4)? == b"PK\x01\x02")
}

/// Why the header of a safetensors file could not be had.
pub(crate) enum HeaderError {
    Hash(HashError),
    Malformed(SafetensorsError),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Hash(HashError::Io(error))
    }
}

/// Reads and checks the header of a safetensors file.
pub(crate) fn safetensors_header(found: &Found) -> Result<SafetensorsHeader, HeaderError> {
    let malformed = HeaderError::Malformed;
    let size = found.stamp.size;
    let mut file = File::open(&found.location)?;
    found.same(&file).map_err(HeaderError::Hash)?;
    let first = read_at(&mut file, 0, 8)?;
    let Ok(first) = <[u8; 8]>::try_from(first) else {
        return Err(malformed(SafetensorsError::TruncatedHeader {
            size,
            needed: 8,
        }));
    };
    let length = SafetensorsHeader::length(first, size).map_err(malformed)?;
    let header = read_at(&mut file, 8, length)?;
    if header.len() as u64 != length {
        return Err(HeaderError::Hash(HashError::Changed));
    }
    SafetensorsHeader::parse(&header, size).map_err(malformed)
}

/// The format that a file's name promises, where that is checked before hours of hashing.
pub(crate) fn format_by_name(found: &Found) -> FileFormat {
    let is = |extension| crate::kind::has_extension(found.path.file_name(), extension);
    if is("gguf") {
        FileFormat::Gguf
    } else if is("onnx") {
        FileFormat::Onnx
    } else {
        FileFormat::Other
    }
}

/// Suffixes of downloads that have not finished.
const PARTIAL: [&str; 7] = [
    "incomplete",
    "part",
    "partial",
    "crdownload",
    "download",
    "aria2",
    "tmp",
];

/// Problems that a name alone shows.
pub(crate) fn by_name(found: &Found) -> Option<Problem> {
    let name = found.path.file_name();
    PARTIAL
        .iter()
        .any(|suffix| crate::kind::has_extension(name, suffix))
        .then(|| Problem::new(found.path.as_str(), ProblemKind::PartialDownload))
}
