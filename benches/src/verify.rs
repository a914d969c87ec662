//! Group `verify`: building, verifying and comparing bundles.

mod manifests;
mod reference;

use crate::data::Seeded;
use crate::figure::{Figure, Limit};
use crate::measure::{Took, Turn, in_turn, took};
use crate::{Error, Scale};
use llm_version_core::fs::{BuildOptions, METADATA_FILE, VerifyOptions, build, verify};
use reference::Reference;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Its name.
pub const GROUP: &str = "verify";

const MIB: u64 = 1 << 20;
/// What is hashed at a time: the size of the engine's reads.
const BLOCK: usize = 256 << 10;
/// What two threads gain over one by hashing in memory when two processors are free, at the least.
const FREE: f64 = 1.9;
/// How long each comparison takes.
const BUDGET: Duration = Duration::from_secs(10);

/// Measures the group.
///
/// # Errors
/// A tree cannot be written, or does not verify.
pub fn run(scale: Scale) -> Result<Vec<Figure>, Error> {
    let bytes = if scale.full { 2_048 } else { 128 } * MIB;
    let files = if scale.full { 200_000 } else { 20_000 };
    let (mut figures, rate) = in_memory()?;
    figures.extend(large(bytes, rate)?);
    figures.extend(small(files)?);
    figures.extend(manifests::run()?);
    Ok(figures)
}

/// Hashes this many blocks, each of them in the second cache.
fn hash(block: &[u8], blocks: usize) {
    let mut hash = Sha256::new();
    for _ in 0..blocks {
        hash.update(black_box(block));
    }
    black_box(hash.finalize());
}

/// SHA-256 in memory, against `openssl speed`. Also returns the rate of one core, in bytes a second.
fn in_memory() -> Result<(Vec<Figure>, f64), Error> {
    const BLOCKS: usize = 1_024;
    let mut block = vec![0; BLOCK];
    Seeded::new(1).fill(&mut block);
    let (mut own, mut theirs) = (0.0_f64, None);
    for _ in 0..3 {
        // Both by processor time, on average over about a second, in turn.
        let mut spent = 0.0;
        let mut blocks = 0;
        while spent < 1.0 {
            let work = || {
                hash(&block, BLOCKS);
                Ok::<_, Error>(())
            };
            spent += took(work)?.processor;
            blocks += BLOCKS;
        }
        own = own.max(blocks as f64 * BLOCK as f64 / spent);
        theirs = openssl_speed().map(|rate| theirs.map_or(rate, |best: f64| best.max(rate)));
    }
    let name = "SHA-256 in memory, one core, against openssl speed";
    let mut figures = vec![match theirs {
        Some(theirs) => {
            Figure::new(GROUP, name, own / theirs, "x openssl").limit(Limit::AtLeast(0.98))
        }
        None => Figure::missing(GROUP, name, "x openssl", "openssl is not here"),
    }];
    figures.push(Figure::new(
        GROUP,
        "SHA-256 in memory, one core",
        own / 1e9,
        "GB/s",
    ));
    if let Some(theirs) = theirs {
        figures.push(Figure::new(
            GROUP,
            "openssl speed -evp sha256",
            theirs / 1e9,
            "GB/s",
        ));
    }
    Ok((figures, own))
}

/// Bytes a second of processor time; none if there is no such tool, or it says something else.
fn openssl_speed() -> Option<f64> {
    let block = BLOCK.to_string();
    let output = Command::new("openssl")
        .args([
            "speed", "-mr", "-seconds", "1", "-bytes", &block, "-evp", "sha256",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    speed(&String::from_utf8_lossy(&output.stdout))
}

/// The rate in the machine-readable output of `openssl speed`.
fn speed(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("+F:"))?;
    let rate: f64 = line.rsplit(':').next()?.trim().parse().ok()?;
    (rate > 0.0).then_some(rate)
}

/// A bundle of `files` files with `bytes` bytes in all, a folder for each 200. It lies in the page cache afterwards.
fn tree(files: usize, bytes: u64) -> Result<TempDir, Error> {
    let root = tempfile::Builder::new().prefix("bench-tree-").tempdir()?;
    fs::write(
        root.path().join(METADATA_FILE),
        r#"{"format": "llm-metadata/1", "name": "bench", "version": "1.0.0"}"#,
    )?;
    let mut block = vec![0; BLOCK];
    let each = bytes / files as u64;
    for n in 0..files {
        let folder = root.path().join(format!("model/data/{:04}", n / 200));
        if n % 200 == 0 {
            fs::create_dir_all(&folder)?;
        }
        let mut file = File::create(folder.join(format!("{n:06}.dat")))?;
        let mut seeded = Seeded::new(n as u64);
        // No format is recognised by accident.
        let head = b"bench\n";
        file.write_all(head)?;
        let mut left = each.saturating_sub(head.len() as u64);
        while left > 0 {
            let size = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let part = block.get_mut(..size).unwrap_or_default();
            seeded.fill(part);
            file.write_all(part)?;
            left -= size as u64;
        }
    }
    Ok(root)
}

/// From the page cache: many files, and a single one with chunk digests.
fn large(bytes: u64, rate: f64) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    let mut block = vec![0; BLOCK];
    Seeded::new(1).fill(&mut block);
    for (files, what, by) in [
        (16, "many files", "files"),
        (1, "one file by chunks", "shards"),
    ] {
        let root = tree(files, bytes)?;
        let dir = root.path();
        let options = BuildOptions::new().chunk_digests(files == 1);
        let manifest = build(dir, &options)?.manifest;
        let record = manifest.record_digest();
        let checked = |threads| -> Result<(), Error> {
            let options = VerifyOptions::new().threads(threads);
            let options = if files == 1 {
                options.by_chunks(record)
            } else {
                options
            };
            verify(dir, &manifest, &options)?;
            Ok(())
        };
        let built = || -> Result<(), Error> {
            build(dir, &BuildOptions::new().threads(1))?;
            Ok(())
        };
        let half = usize::try_from(bytes)? / BLOCK / 2;
        let mut turns: [Turn<'_, Error>; 4] = [
            Box::new(|| checked(1)),
            Box::new(|| checked(2)),
            Box::new(|| {
                hash(&block, 2 * half);
                Ok(())
            }),
            Box::new(|| {
                std::thread::scope(|scope| {
                    scope.spawn(|| hash(&block, half));
                    hash(&block, half);
                });
                Ok(())
            }),
        ];
        let gain = |one: Took, two: Took| one.wall / two.wall;
        let took = in_turn(&mut turns, BUDGET, |best| match *best {
            [.., one, two] => gain(one, two) >= FREE,
            _ => true,
        })?;
        let [one, two, free_one, free_two] = *took.as_slice() else {
            return Err("a measurement is missing".into());
        };
        let (gain, free) = (gain(one, two), gain(free_one, free_two));
        let mut turns: [Turn<'_, Error>; 1] = [Box::new(built)];
        let took = in_turn(&mut turns, Duration::from_secs(1), |_| true)?;
        let [built] = *took.as_slice() else {
            return Err("a measurement is missing".into());
        };
        let size = bytes as f64;
        figures.push(scaling(
            &format!("verify {what}, two threads over one"),
            gain,
            free,
        ));
        figures.push(Figure::new(
            GROUP,
            format!("the same work in memory, two threads over one, beside {what}"),
            free,
            "x",
        ));
        figures.push(
            Figure::new(
                GROUP,
                format!("verify {what} from page cache, per core, against in memory"),
                size / one.processor / rate,
                "x",
            )
            .limit(Limit::AtLeast(0.85)),
        );
        figures.push(
            Figure::new(
                GROUP,
                format!("build {what} from page cache, per core, against in memory"),
                size / built.processor / rate,
                "x",
            )
            .limit(Limit::AtLeast(0.85)),
        );
        figures.push(Figure::new(
            GROUP,
            format!("verify {what}, one thread"),
            size / one.wall / 1e9,
            "GB/s",
        ));
        figures.push(Figure::new(
            GROUP,
            format!("verify {what}, two threads"),
            size / two.wall / 1e9,
            "GB/s",
        ));
        let hashing = format!("model-signing hashing {by}");
        figures.extend(against_reference(
            &format!("verify {what}, against {hashing}"),
            by,
            dir,
            size,
            free,
            || checked(0),
        )?);
    }
    Ok(figures)
}

/// Against the reference implementation of model signing, which hashes the same tree in turn with us: by processor time, and on
/// all cores where the machine has them to give.
fn against_reference(
    name: &str,
    by: &str,
    dir: &Path,
    size: f64,
    free: f64,
    own: impl FnMut() -> Result<(), Error>,
) -> Result<Vec<Figure>, Error> {
    const UNIT: &str = "x model-signing";
    let Some(mut reference) = Reference::start(by) else {
        let why = format!(
            "install model-signing and set {} to its Python",
            reference::PYTHON
        );
        return Ok(vec![Figure::missing(GROUP, name, UNIT, &why)]);
    };
    let mut least = f64::INFINITY;
    let mut turns: [Turn<'_, Error>; 2] = [
        Box::new(own),
        Box::new(|| {
            least = least.min(reference.hash(dir)?);
            Ok(())
        }),
    ];
    let took = in_turn(&mut turns, BUDGET, |_| true)?;
    drop(turns);
    let [own, theirs] = *took.as_slice() else {
        return Err("a measurement is missing".into());
    };
    let gain = theirs.wall / own.wall;
    let all = format!("{name}, on all cores");
    Ok(vec![
        Figure::new(
            GROUP,
            format!("{name}, per core"),
            least / own.processor,
            UNIT,
        )
        .limit(Limit::AtLeast(1.0)),
        if free < FREE {
            let why = format!("the machine had no two processors free: {gain:.2} x");
            Figure::missing(GROUP, &all, UNIT, &why)
        } else {
            Figure::new(GROUP, &all, gain, UNIT).limit(Limit::AtLeast(1.0))
        },
        Figure::new(
            GROUP,
            format!("model-signing hashing {by}, all cores"),
            size / theirs.wall / 1e9,
            "GB/s",
        ),
    ])
}

/// What two threads gain over one, where the machine had two processors to give: where plain hashing in memory did not gain
/// either, others were using it, and nothing can be said.
fn scaling(name: &str, gain: f64, free: f64) -> Figure {
    if free < FREE {
        let why = format!(
            "the machine had no two processors free: {gain:.2} x, and in memory {free:.2} x"
        );
        return Figure::missing(GROUP, name, "x", &why);
    }
    Figure::new(GROUP, name, gain, "x").limit(Limit::AtLeast(1.85))
}

/// Many small files, against reading them with `find` and `cat`.
fn small(files: usize) -> Result<Vec<Figure>, Error> {
    let root = tree(files, files as u64 * 1_024)?;
    let dir = root.path();
    let name = format!("manifest of {files} small files, against find -exec cat");
    if find_cat(dir).is_err() {
        let why = "find and cat are not here";
        return Ok(vec![Figure::missing(GROUP, &name, "x find", why)]);
    }
    let mut turns: [Turn<'_, Error>; 3] = [
        Box::new(|| {
            build(dir, &BuildOptions::new())?;
            Ok(())
        }),
        Box::new(|| find_cat(dir)),
        Box::new(|| {
            build(dir, &BuildOptions::new().threads(1))?;
            Ok(())
        }),
    ];
    let took = in_turn(&mut turns, BUDGET, |_| true)?;
    let [own, theirs, one] = *took.as_slice() else {
        return Err("a measurement is missing".into());
    };
    let millis = |name: String, took: Took| Figure::new(GROUP, name, took.wall * 1e3, "ms");
    let what = format!("manifest of {files} small files");
    Ok(vec![
        Figure::new(GROUP, &name, own.wall / theirs.wall, "x find").limit(Limit::Below(2.0)),
        millis(format!("{what}, one thread"), one),
        millis(what, own),
        millis(format!("find -exec cat of {files} small files"), theirs),
    ])
}

fn find_cat(dir: &Path) -> Result<(), Error> {
    let status = Command::new("find")
        .args([".", "-type", "f", "-exec", "cat", "{}", "+"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("find: {status}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_openssl_is_found() {
        let text =
            "+DT:sha256:1:262144\n+R:7021:sha256:1.000000\n+H:262144\n+F:22:sha256:1840513024.00\n";
        assert_eq!(speed(text), Some(1_840_513_024.0));
        assert_eq!(speed("+H:16\n"), None);
        assert_eq!(speed("+F:22:sha256:nan\n"), None);
    }

    #[test]
    fn nothing_is_said_of_scaling_on_a_busy_machine() {
        assert!(scaling("two", 1.9, 1.98).pass());
        assert!(!scaling("two", 1.7, 1.98).pass());
        let busy = scaling("two", 1.0, 1.1);
        assert!(busy.value.is_none() && busy.limit.is_none() && busy.name.contains("1.10 x"));
    }

    #[test]
    fn trees_have_the_size_asked_for_and_verify() {
        for (files, bytes) in [(3, 3 * 300_000), (401, 401 * 100)] {
            let root = tree(files, bytes).unwrap();
            let built = build(root.path(), &BuildOptions::new()).unwrap();
            assert_eq!(built.manifest.components().len(), files);
            let sum: u64 = built.manifest.components().iter().map(|c| c.size).sum();
            assert_eq!(sum, bytes);
            assert!(built.warnings.is_empty());
            verify(root.path(), &built.manifest, &VerifyOptions::new()).unwrap();
        }
    }
}
