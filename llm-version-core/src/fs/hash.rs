//! Hashing many files on several threads: jobs ordered by size, largest first, taken by whichever thread is free.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};

use super::inspect::Inspection;
use super::walk::{Found, Stamp};
use super::{OnProgress, Progress};
use crate::content::SecretSearch;
use crate::digest::Digest;
use crate::manifest::CHUNK_BYTES;

/// Bytes read at once.
const BLOCK: usize = 256 << 10;
/// Bytes between two progress reports of one job.
const REPORT: u64 = 16 << 20;

/// How a file could not be hashed.
#[derive(Debug)]
pub(crate) enum HashError {
    Io(io::Error),
    Changed,
    Cancelled,
}

impl From<io::Error> for HashError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Which digests of a file are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The whole file, looking at its content on the way.
    pub(crate) whole: bool,
    /// Parts, as (start, length).
    pub(crate) regions: Vec<(u64, u64)>,
    /// What to look for on the way.
    pub(crate) look: Look,
}

/// What to look for in a file while it is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Nothing,
    Format,
    FormatAndSecrets,
}

impl Plan {
    /// The whole file and nothing else.
    pub(crate) const WHOLE: Self = Self {
        whole: true,
        regions: Vec::new(),
        look: Look::Nothing,
    };

    /// Nothing: the digest is known already.
    pub(crate) const NOTHING: Self = Self {
        whole: false,
        regions: Vec::new(),
        look: Look::Nothing,
    };
}

/// The chunks of a file of `size` bytes, as (start, length).
pub(crate) fn chunks(size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..size.div_ceil(CHUNK_BYTES)).map(move |n| {
        let start = n * CHUNK_BYTES;
        (start, CHUNK_BYTES.min(size - start))
    })
}

/// The digests of one file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Hashes {
    pub(crate) whole: Option<Digest>,
    /// In the order of the plan.
    pub(crate) regions: Vec<Digest>,
    pub(crate) inspection: Inspection,
}

/// Threads, progress and cancellation of a run.
#[derive(Clone, Copy, Default)]
pub(crate) struct Run<'a> {
    /// 0 means one per core.
    pub(crate) threads: usize,
    pub(crate) progress: Option<OnProgress<'a>>,
    pub(crate) cancel: Option<&'a AtomicBool>,
}

#[derive(Clone, Copy)]
struct Job {
    file: usize,
    /// `None`: the whole file.
    region: Option<usize>,
    start: u64,
    bytes: u64,
    look: Look,
}

struct Shared<'a> {
    files: &'a [Found],
    jobs: &'a [Job],
    next: AtomicUsize,
    done_bytes: AtomicU64,
    done_jobs: AtomicU64,
    total_bytes: u64,
    run: Run<'a>,
}

type Outcome = Result<(Digest, Inspection), HashError>;

/// Hashes `files` as `plans` say. The results are in the order of `files`.
pub(crate) fn hash_files(
    files: &[Found],
    plans: &[Plan],
    run: Run<'_>,
) -> Vec<Result<Hashes, HashError>> {
    let mut jobs = Vec::with_capacity(files.len());
    for (file, (found, plan)) in files.iter().zip(plans).enumerate() {
        if plan.whole {
            jobs.push(Job {
                file,
                region: None,
                start: 0,
                bytes: found.stamp.size,
                look: plan.look,
            });
        }
        for (region, (start, bytes)) in plan.regions.iter().enumerate() {
            jobs.push(Job {
                file,
                region: Some(region),
                start: *start,
                bytes: *bytes,
                look: Look::Nothing,
            });
        }
    }
    // Largest first, so that no thread is left alone with a big file at the end.
    jobs.sort_by_key(|job| (std::cmp::Reverse(job.bytes), job.file, job.region));
    let wanted = match run.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let shared = Shared {
        files,
        jobs: &jobs,
        next: AtomicUsize::new(0),
        done_bytes: AtomicU64::new(0),
        done_jobs: AtomicU64::new(0),
        total_bytes: jobs.iter().map(|j| j.bytes).sum(),
        run,
    };
    let threads = wanted.min(jobs.len()).max(1);
    let finished = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads)
            .map(|_| scope.spawn(|| shared.work()))
            .collect();
        let mut finished = shared.work();
        for worker in workers {
            // A worker panics only if the caller's callback does; that panic goes on to the caller.
            match worker.join() {
                Ok(part) => finished.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        finished
    });
    collect(plans, &jobs, finished)
}

fn collect(
    plans: &[Plan],
    jobs: &[Job],
    finished: Vec<(usize, Outcome)>,
) -> Vec<Result<Hashes, HashError>> {
    let mut results: Vec<Result<Hashes, HashError>> = plans
        .iter()
        .map(|plan| {
            Ok(Hashes {
                regions: vec![Digest::new([0; 32]); plan.regions.len()],
                ..Hashes::default()
            })
        })
        .collect();
    for (job, outcome) in finished {
        let Some(job) = jobs.get(job) else { continue };
        let Some(slot) = results.get_mut(job.file) else {
            continue;
        };
        match (outcome, slot.as_mut()) {
            (Ok((digest, inspection)), Ok(hashes)) => match job.region {
                None => {
                    hashes.whole = Some(digest);
                    hashes.inspection = inspection;
                }
                Some(region) => {
                    if let Some(slot) = hashes.regions.get_mut(region) {
                        *slot = digest;
                    }
                }
            },
            (Err(error), Ok(_)) => *slot = Err(error),
            (_, Err(_)) => {}
        }
    }
    results
}

impl Shared<'_> {
    fn cancelled(&self) -> bool {
        self.run.cancel.is_some_and(|c| c.load(Ordering::Relaxed))
    }

    fn work(&self) -> Vec<(usize, Outcome)> {
        let mut block = vec![0_u8; BLOCK];
        let mut finished = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.jobs.get(at) else {
                return finished;
            };
            let Some(found) = self.files.get(job.file) else {
                return finished;
            };
            let outcome = self.hash(found, job, &mut block);
            self.done_jobs.fetch_add(1, Ordering::Relaxed);
            self.report(found, 0);
            finished.push((at, outcome));
        }
    }

    fn report(&self, found: &Found, bytes: u64) {
        let before = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(progress) = self.run.progress {
            progress(&Progress {
                done_bytes: before + bytes,
                total_bytes: self.total_bytes,
                done_parts: self.done_jobs.load(Ordering::Relaxed),
                total_parts: self.jobs.len() as u64,
                current: &found.path,
            });
        }
    }

    fn hash(&self, found: &Found, job: &Job, block: &mut [u8]) -> Outcome {
        if self.cancelled() {
            return Err(HashError::Cancelled);
        }
        let mut file = File::open(&found.location)?;
        found.same(&file)?;
        if job.start > 0 {
            file.seek(SeekFrom::Start(job.start))?;
        }
        let mut hash = Sha256::new();
        let mut inspection = Inspection::default();
        let mut secrets = SecretSearch::default();
        let (mut left, mut unreported) = (job.bytes, 0);
        while left > 0 {
            let most = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match file.read(&mut block[..most]) {
                Ok(0) => return Err(HashError::Changed),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            hash.update(&block[..read]);
            if job.look != Look::Nothing && left == job.bytes {
                inspection = Inspection::of_first_block(&block[..read], read as u64 == left);
            }
            if job.look == Look::FormatAndSecrets {
                secrets.block(&block[..read]);
            }
            left -= read as u64;
            unreported += read as u64;
            if unreported >= REPORT {
                self.report(found, unreported);
                unreported = 0;
                if self.cancelled() {
                    return Err(HashError::Cancelled);
                }
            }
        }
        if job.look != Look::Nothing {
            inspection.secrets = secrets.finish();
            inspection.look_at_end(&mut file, found.stamp.size)?;
        }
        // Nothing may have been appended or replaced meanwhile.
        found.same(&file)?;
        self.done_bytes.fetch_add(unreported, Ordering::Relaxed);
        Ok((Digest::new(hash.finalize().into()), inspection))
    }
}

impl Found {
    /// The open file must be the listed one, unchanged: this also catches a link put in its place.
    pub(crate) fn same(&self, file: &File) -> Result<(), HashError> {
        if Stamp::of(&file.metadata()?) == self.stamp {
            Ok(())
        } else {
            Err(HashError::Changed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::ComponentPath;

    fn found(folder: &std::path::Path, name: &str, bytes: &[u8]) -> Found {
        let location = folder.join(name);
        std::fs::write(&location, bytes).unwrap();
        let stamp = Stamp::of(&std::fs::symlink_metadata(&location).unwrap());
        Found {
            path: ComponentPath::new(name).unwrap(),
            location,
            stamp,
        }
    }

    #[test]
    fn every_thread_count_gives_the_digests_of_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = [0, 1, 63, 64, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]
            .iter()
            .map(|n| {
                (0..*n)
                    .map(|i| u8::try_from(i * 7 % 251).unwrap())
                    .collect()
            })
            .collect();
        let files: Vec<Found> = contents
            .iter()
            .enumerate()
            .map(|(n, bytes)| found(folder.path(), &n.to_string(), bytes))
            .collect();
        for threads in [1, 2, 7] {
            let run = Run {
                threads,
                ..Run::default()
            };
            let plans: Vec<Plan> = contents
                .iter()
                .map(|bytes| {
                    let (size, half) = (bytes.len() as u64, bytes.len() as u64 / 2);
                    Plan {
                        whole: true,
                        regions: vec![(0, half), (half, size - half), (0, 0)],
                        look: Look::FormatAndSecrets,
                    }
                })
                .collect();
            let results = hash_files(&files, &plans, run);
            for (bytes, result) in contents.iter().zip(results) {
                let hashes = result.unwrap();
                let (left, right) = bytes.split_at(bytes.len() / 2);
                assert_eq!(hashes.whole, Some(Digest::of(bytes)));
                assert_eq!(hashes.regions, [left, right, &[]].map(Digest::of));
            }
        }
    }

    #[test]
    fn chunks_of_a_large_sparse_file() {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("big");
        let file = File::create(&location).unwrap();
        file.set_len(CHUNK_BYTES + 5).unwrap();
        let listed = Found {
            path: ComponentPath::new("big").unwrap(),
            stamp: Stamp::of(&file.metadata().unwrap()),
            location,
        };
        let plan = Plan {
            whole: true,
            regions: chunks(CHUNK_BYTES + 5).collect(),
            look: Look::Nothing,
        };
        let result = hash_files(&[listed], &[plan], Run::default());
        let hashes = result.into_iter().next().unwrap().unwrap();
        let zeros = vec![0; usize::try_from(CHUNK_BYTES).unwrap()];
        assert_eq!(hashes.regions, [Digest::of(&zeros), Digest::of(&[0; 5])]);
        let whole = Sha256::new_with_prefix(&zeros)
            .chain_update([0; 5])
            .finalize();
        assert_eq!(hashes.whole, Some(Digest::new(whole.into())));
    }

    #[test]
    fn a_file_that_changed_since_it_was_listed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let listed = found(folder.path(), "a", b"before");
        std::fs::write(&listed.location, b"after!").unwrap();
        std::fs::write(&listed.location, b"longer than before").unwrap();
        let result = hash_files(&[listed], &[Plan::WHOLE], Run::default());
        assert!(matches!(result[0], Err(HashError::Changed)));
    }

    #[test]
    fn cancelling_stops_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let listed = found(folder.path(), "a", b"x");
        let cancel = AtomicBool::new(true);
        let run = Run {
            cancel: Some(&cancel),
            ..Run::default()
        };
        assert!(matches!(
            hash_files(&[listed], &[Plan::WHOLE], run)[0],
            Err(HashError::Cancelled)
        ));
    }
}
