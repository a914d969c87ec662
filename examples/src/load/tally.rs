//! What the load generator has counted, second by second, in memory and in a
//! file that outlives the process.

use super::histogram::Histogram;
use super::reply::Seen;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// The version of a reply that did not say which it is, since it never came.
pub const UNKNOWN: &str = "unknown";

/// Seconds that are kept one by one; older ones only count in the totals.
const SECONDS: usize = 3_600;

/// Why a tally file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TallyError {
    /// The file could not be read or written.
    #[error("tally {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A whole line is not what this program writes.
    #[error("tally {}, line {line}: {message}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
}

/// What was counted of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Counts {
    /// Requests that ended, however they did.
    pub replies: u64,
    /// Those that failed, by how: a status other than 200, an error event, a
    /// cut body, a missing end, a time-out, no connection.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, u64>,
    /// Whole replies of a form that no program could use.
    #[serde(default)]
    pub bad_format: u64,
    /// Whole replies of the right form with a wrong value.
    #[serde(default)]
    pub wrong: u64,
    /// Times from the request to the first piece of content.
    #[serde(default)]
    pub first: Histogram,
    /// Times from the request to the end of the reply, of whole replies.
    #[serde(default)]
    pub total: Histogram,
}

impl Counts {
    /// Requests that failed.
    pub fn faulted(&self) -> u64 {
        self.faults
            .values()
            .fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Requests that failed, or whose reply failed the check of its form.
    pub fn harmed(&self) -> u64 {
        self.faulted().saturating_add(self.bad_format)
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        self.replies = self.replies.saturating_add(other.replies);
        for (fault, n) in &other.faults {
            let sum = self.faults.entry(fault.clone()).or_default();
            *sum = sum.saturating_add(*n);
        }
        self.bad_format = self.bad_format.saturating_add(other.bad_format);
        self.wrong = self.wrong.saturating_add(other.wrong);
        self.first.merge(&other.first);
        self.total.merge(&other.total);
    }

    fn add(&mut self, seen: &Seen) {
        self.replies += 1;
        if let Some(first) = seen.first {
            self.first.add(first);
        }
        if let Some(fault) = seen.fault {
            *self.faults.entry(fault.to_string()).or_default() += 1;
        } else {
            self.total.add(seen.total);
            self.bad_format += u64::from(!seen.format_ok);
            self.wrong += u64::from(seen.format_ok && !seen.correct);
        }
    }
}

/// What was counted in one second; also one line of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Second {
    /// Which second, since the Unix epoch.
    pub at: u64,
    /// Which start of the load generator on this file, from 1.
    pub life: u64,
    /// By version, as the replies named it (see [`UNKNOWN`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, Counts>,
    /// Sessions that were moved: from, to, how many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flips: Vec<(String, String, u64)>,
    /// Requests that were due and not sent, since too many were outstanding.
    #[serde(default)]
    pub skipped: u64,
}

impl Second {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.flips.is_empty() && self.skipped == 0
    }

    pub(super) fn add(&mut self, seen: &Seen) {
        let version = seen.version.as_deref().unwrap_or(UNKNOWN);
        self.versions
            .entry(version.to_owned())
            .or_default()
            .add(seen);
    }

    pub(super) fn flip(&mut self, from: &str, to: &str) {
        self.flips_add(from, to, 1);
    }

    fn flips_add(&mut self, from: &str, to: &str, count: u64) {
        let known = self.flips.iter_mut().find(|(a, b, _)| a == from && b == to);
        match known {
            Some((_, _, sum)) => *sum = sum.saturating_add(count),
            None => self.flips.push((from.to_owned(), to.to_owned(), count)),
        }
    }

    fn merge(&mut self, other: &Self) {
        for (version, counts) in &other.versions {
            self.versions
                .entry(version.clone())
                .or_default()
                .merge(counts);
        }
        for (from, to, count) in &other.flips {
            self.flips_add(from, to, *count);
        }
        self.skipped = self.skipped.saturating_add(other.skipped);
    }
}

/// Everything that was counted on one file, over all its lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    all: Second,
    seconds: VecDeque<Second>,
}

impl Tally {
    /// Sums a file up. A missing file is an empty tally; a last line that was
    /// torn by the end of a process is left out.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a line before the last is damaged.
    pub fn read(path: &Path) -> Result<Self, TallyError> {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(path, &bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(io(path, source)),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TallyError> {
        let mut tally = Self::default();
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .and_then(|end| bytes.get(..end))
            .unwrap_or_default();
        for (line, number) in whole.split(|&byte| byte == b'\n').zip(1..) {
            if line.is_empty() {
                continue;
            }
            let second = serde_json::from_slice(line).map_err(|error| TallyError::Damaged {
                path: path.to_owned(),
                line: number,
                message: error.to_string(),
            })?;
            tally.push(second);
        }
        Ok(tally)
    }

    pub(super) fn push(&mut self, second: Second) {
        self.all.merge(&second);
        self.all.life = self.all.life.max(second.life);
        self.all.at = self.all.at.max(second.at);
        match self.seconds.back_mut() {
            Some(last) if last.at == second.at && last.life == second.life => last.merge(&second),
            _ => self.seconds.push_back(second),
        }
        if self.seconds.len() > SECONDS {
            self.seconds.pop_front();
        }
    }

    /// How often a load generator has been started on the file.
    pub fn lives(&self) -> u64 {
        self.all.life
    }

    /// By version, over all lives.
    pub fn versions(&self) -> &BTreeMap<String, Counts> {
        &self.all.versions
    }

    /// What was counted of a version (as `x-llm-version` names it).
    pub fn version(&self, version: &str) -> Counts {
        self.all.versions.get(version).cloned().unwrap_or_default()
    }

    /// Failed requests of every other version, those that nobody answered
    /// included: of people who were not on this one.
    pub fn failed_elsewhere(&self, version: &str) -> u64 {
        let others = self
            .all
            .versions
            .iter()
            .filter(|(name, _)| *name != version);
        others.fold(0, |sum, (_, counts)| sum.saturating_add(counts.faulted()))
    }

    /// Requests that ended, of all versions.
    pub fn replies(&self) -> u64 {
        let all = self.all.versions.values();
        all.fold(0, |sum, counts| sum.saturating_add(counts.replies))
    }

    /// How many sessions were moved from one version to another in their
    /// middle.
    pub fn flips(&self, from: &str, to: &str) -> u64 {
        let mut all = self.all.flips.iter();
        all.find(|(a, b, _)| a == from && b == to)
            .map_or(0, |(_, _, count)| *count)
    }

    /// How many sessions were moved in their middle, by whatever cause.
    pub fn all_flips(&self) -> u64 {
        let all = self.all.flips.iter();
        all.fold(0, |sum, (_, _, count)| sum.saturating_add(*count))
    }

    /// Requests that were due and not sent, since too many were outstanding.
    pub fn skipped(&self) -> u64 {
        self.all.skipped
    }

    /// The newest hour, second by second.
    pub fn seconds(&self) -> impl Iterator<Item = &Second> {
        self.seconds.iter()
    }

    /// What was counted from one second (since the Unix epoch) to before
    /// another, within the newest hour of counting.
    #[must_use]
    pub fn between(&self, from: u64, to: u64) -> Self {
        let mut part = Self::default();
        for second in &self.seconds {
            if (from..to).contains(&second.at) {
                part.push(second.clone());
            }
        }
        part
    }

    /// A quantile of a version's latency over time, in milliseconds, at the
    /// middle of each `width` seconds since `from` that had a reply.
    pub fn latency(
        &self,
        version: &str,
        q: f64,
        from: u64,
        width: u64,
        of: Latency,
    ) -> Vec<(f64, f64)> {
        let width = width.max(1);
        let mut buckets: BTreeMap<u64, Histogram> = BTreeMap::new();
        for second in self.seconds.iter().filter(|second| second.at >= from) {
            if let Some(counts) = second.versions.get(version) {
                let histogram = match of {
                    Latency::First => &counts.first,
                    Latency::Total => &counts.total,
                };
                let bucket = (second.at - from) / width;
                buckets.entry(bucket).or_default().merge(histogram);
            }
        }
        let points = buckets.into_iter().filter_map(|(bucket, histogram)| {
            let middle = (bucket as f64 + 0.5) * width as f64;
            Some((middle, histogram.quantile(q)?.as_secs_f64() * 1e3))
        });
        points.collect()
    }
}

/// Which latency is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the two that a tally counts")]
pub enum Latency {
    /// To the first piece of content.
    First,
    /// To the end of the reply.
    Total,
}

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Opens a file for a new life, cuts a torn last line off, and gives what
    /// the lives before have counted.
    pub(super) fn open(path: &Path) -> Result<(Self, Tally), TallyError> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|source| io(path, source))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|source| io(path, source))?;
        let tally = Tally::parse(path, &bytes)?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)
                .map_err(|source| io(path, source))?;
            file.seek(SeekFrom::End(0))
                .map_err(|source| io(path, source))?;
        }
        let path = path.to_owned();
        Ok((Self { path, file }, tally))
    }

    /// Adds a line. A crash of the process, though not of the machine, leaves
    /// it whole or torn at its end.
    pub(super) fn append(&mut self, second: &Second) -> Result<(), TallyError> {
        let mut line = serde_json::to_vec(second).map_err(|error| io(&self.path, error.into()))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.flush())
            .map_err(|source| io(&self.path, source))
    }
}

fn io(path: &Path, source: std::io::Error) -> TallyError {
    TallyError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::Fault;
    use super::*;
    use std::time::Duration;

    fn good(version: &str) -> Seen {
        Seen {
            version: Some(version.to_owned()),
            fault: None,
            first: Some(Duration::from_millis(3)),
            total: Duration::from_millis(9),
            format_ok: true,
            correct: true,
        }
    }

    fn second(at: u64, life: u64) -> Second {
        let mut second = Second {
            at,
            life,
            ..Second::default()
        };
        second.add(&good("a"));
        second.add(&Seen {
            correct: false,
            ..good("a")
        });
        second.add(&Seen {
            format_ok: false,
            correct: false,
            ..good("b")
        });
        second.add(&Seen {
            fault: Some(Fault::Status(503)),
            ..good("b")
        });
        second.add(&Seen {
            version: None,
            fault: Some(Fault::Transport),
            first: None,
            ..good("")
        });
        second.flip("a", "b");
        second
    }

    #[test]
    fn harm_is_a_fault_or_an_unusable_reply() {
        let mut tally = Tally::default();
        tally.push(second(1, 1));
        tally.push(second(2, 1));
        let (a, b) = (tally.version("a"), tally.version("b"));
        assert_eq!((a.replies, a.harmed(), a.wrong), (4, 0, 2));
        assert_eq!((b.replies, b.harmed(), b.faulted()), (4, 4, 2));
        assert_eq!(b.faults["status 503"], 2);
        assert_eq!(tally.failed_elsewhere("b"), 2, "the unanswered ones");
        assert_eq!((tally.flips("a", "b"), tally.flips("b", "a")), (2, 0));
        assert_eq!(tally.between(2, 3).version("b").replies, 2);
        assert_eq!(
            tally.latency("a", 0.5, 1, 5, Latency::Total).len(),
            1,
            "one bucket"
        );
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tally.jsonl");
        assert_eq!(Tally::read(&path).unwrap(), Tally::default());
        let (mut writer, before) = Writer::open(&path).unwrap();
        assert_eq!(before.lives(), 0);
        writer.append(&second(1, 1)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for torn in 1..whole.len() {
            let mut bytes = whole.clone();
            bytes.extend_from_slice(&whole[..torn]);
            bytes.pop();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Tally::read(&path).unwrap().version("a").replies, 2);
        }
        let (mut writer, before) = Writer::open(&path).unwrap();
        assert_eq!(before.lives(), 1);
        writer.append(&second(2, 2)).unwrap();
        let tally = Tally::read(&path).unwrap();
        assert_eq!((tally.lives(), tally.version("a").replies), (2, 4));
    }

    #[test]
    fn a_damaged_line_is_named_and_nothing_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tally.jsonl");
        let (mut writer, _) = Writer::open(&path).unwrap();
        writer.append(&second(1, 1)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"at\":oops}\n{\"at\":3");
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            Tally::read(&path),
            Err(TallyError::Damaged { line: 2, .. })
        ));
        assert!(Writer::open(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn memory_is_bounded_and_totals_are_not() {
        let mut tally = Tally::default();
        for at in 0..2 * SECONDS as u64 {
            tally.push(second(at, 1));
        }
        assert_eq!(tally.seconds().count(), SECONDS);
        assert_eq!(tally.version("a").replies, 4 * SECONDS as u64);
    }
}
