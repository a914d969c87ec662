//! What every [`Store`] must do, as tests that every implementation runs.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

use super::{Created, GcOptions, Note, Publish, Registry, RegistryError, Store};
use crate::digest::Digest;
use crate::id::VersionId;
use crate::kind::ComponentKind;
use crate::manifest::{Component, Draft, Manifest};
use crate::name::Name;
use crate::version::Version;

/// What a store does wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{rule}: {found}")]
#[non_exhaustive]
pub struct Violation {
    /// The rule.
    pub rule: String,
    /// What was found instead.
    pub found: String,
}

type Outcome = Result<(), Violation>;

fn violation(rule: &str, found: impl std::fmt::Debug) -> Violation {
    Violation {
        rule: rule.to_owned(),
        found: format!("{found:?}"),
    }
}

fn expect<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    rule: &str,
    found: Result<T, E>,
    expected: &T,
) -> Outcome {
    match found {
        Ok(found) if found == *expected => Ok(()),
        other => Err(violation(rule, other)),
    }
}

fn must<T, E: std::fmt::Debug>(rule: &str, found: Result<T, E>) -> Result<T, Violation> {
    found.map_err(|error| violation(rule, error))
}

/// Checks a store. `open` opens the same, initially empty place each time, as another process would.
///
/// ```
/// use llm_version_core::registry::{MemoryStore, conformance};
///
/// let store = MemoryStore::new();
/// conformance::check(|| &store)?;
/// # Ok::<(), conformance::Violation>(())
/// ```
///
/// # Errors
/// The first rule that the store breaks.
pub fn check<S: Store>(open: impl Fn() -> S + Sync) -> Result<(), Violation> {
    objects(&open())?;
    reopened(&open(), &open())?;
    blobs(&open())?;
    races(&open)?;
    registry(&open)
}

fn objects(store: &dyn Store) -> Outcome {
    expect(
        "an object that was never created is not there",
        store.read("a/x"),
        &None,
    )?;
    expect(
        "a listing of nothing is empty",
        store.list("a/"),
        &Vec::new(),
    )?;
    expect(
        "a first creation is new",
        store.create("a/x", b"one"),
        &Created::New,
    )?;
    expect(
        "a second creation is refused",
        store.create("a/x", b"two"),
        &Created::Existed,
    )?;
    expect(
        "a second creation changes nothing",
        store.read("a/x"),
        &Some(b"one".to_vec()),
    )?;
    expect(
        "an empty object can be created",
        store.create("a/b/y", b""),
        &Created::New,
    )?;
    expect(
        "an empty object is there",
        store.read("a/b/y"),
        &Some(Vec::new()),
    )?;
    must("prefixes end in `/`", store.create("ab/z", b"other"))?;
    let keys = ["a/b/y", "a/x"].map(str::to_owned).to_vec();
    expect(
        "a listing is ascending and holds exactly what is below",
        store.list("a/"),
        &keys,
    )?;
    expect("a deletion succeeds", store.delete("a/x"), &())?;
    expect("a deletion of nothing succeeds", store.delete("a/x"), &())?;
    expect("what was deleted is gone", store.read("a/x"), &None)?;
    expect(
        "what was deleted can be created",
        store.create("a/x", b"three"),
        &Created::New,
    )?;
    let large = vec![7; 3 << 20];
    must(
        "large objects can be created",
        store.create("a/large", &large),
    )?;
    expect(
        "large objects are read whole",
        store.read("a/large"),
        &Some(large),
    )?;
    for key in ["a/x", "a/b/y", "a/large", "ab/z"] {
        must("a deletion succeeds", store.delete(key))?;
    }
    Ok(())
}

fn reopened(one: &dyn Store, two: &dyn Store) -> Outcome {
    must("creation", one.create("c/x", b"one"))?;
    expect(
        "others see what was acknowledged",
        two.read("c/x"),
        &Some(b"one".to_vec()),
    )?;
    expect(
        "others cannot create it again",
        two.create("c/x", b"two"),
        &Created::Existed,
    )?;
    must("deletion", two.delete("c/x"))?;
    expect("others see deletions", one.read("c/x"), &None)
}

fn read_blob(store: &dyn Store, digest: &Digest) -> Result<Option<Vec<u8>>, Violation> {
    let Some(mut blob) = must("a blob opens", store.open_blob(digest))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    must("a blob is read", blob.read_to_end(&mut bytes))?;
    Ok(Some(bytes))
}

fn blobs(store: &dyn Store) -> Outcome {
    for bytes in [Vec::new(), b"blob".to_vec(), vec![1; 1 << 20]] {
        let digest = Digest::of(&bytes);
        expect(
            "a blob that was never put is not there",
            store.blob_size(&digest),
            &None,
        )?;
        if read_blob(store, &digest)?.is_some() {
            return Err(violation("a blob that was never put does not open", digest));
        }
        let wrong = Digest::of(b"something else");
        if store.put_blob(&wrong, &mut &bytes[..]).is_ok() {
            return Err(violation("bytes with another digest are refused", digest));
        }
        expect(
            "nothing is left of refused bytes",
            store.blob_size(&wrong),
            &None,
        )?;
        must("a blob is put", store.put_blob(&digest, &mut &bytes[..]))?;
        must(
            "a blob is put again",
            store.put_blob(&digest, &mut &bytes[..]),
        )?;
        expect(
            "a blob has its size",
            store.blob_size(&digest),
            &Some(bytes.len() as u64),
        )?;
        if read_blob(store, &digest)?.as_ref() != Some(&bytes) {
            return Err(violation("a blob is read whole", digest));
        }
        expect(
            "blobs are listed",
            store.blobs(),
            &vec![(digest, bytes.len() as u64)],
        )?;
        must("a blob is deleted", store.delete_blob(&digest))?;
        must("a blob is deleted again", store.delete_blob(&digest))?;
        expect("a deleted blob is gone", store.blob_size(&digest), &None)?;
    }
    let broken = Digest::of(b"broken");
    if store.put_blob(&broken, &mut Broken).is_ok() {
        return Err(violation("a reader that fails is an error", broken));
    }
    expect(
        "nothing is left of a reader that fails",
        store.blob_size(&broken),
        &None,
    )
}

/// A reader that fails after some bytes.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("broken on purpose"))
    }
}

const WRITERS: u8 = 4;
const ROUNDS: u32 = 20;

fn races<S: Store>(open: &(impl Fn() -> S + Sync)) -> Outcome {
    for round in 0..ROUNDS {
        let (wins, key) = (AtomicU32::new(0), format!("race/{round}"));
        let winner = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|n| {
                    let (wins, key) = (&wins, &key);
                    scope.spawn(move || {
                        let created = open().create(key, &[n; 1000]);
                        if matches!(created, Ok(Created::New)) {
                            wins.fetch_add(1, Ordering::Relaxed);
                            return Some(n);
                        }
                        None
                    })
                })
                .collect();
            writers
                .into_iter()
                .filter_map(|w| w.join().ok().flatten())
                .next_back()
        });
        let won = wins.load(Ordering::Relaxed);
        if won != 1 {
            return Err(violation("of racing creations exactly one is new", won));
        }
        let bytes = winner.map(|n| vec![n; 1000]);
        expect("what the winner wrote is there", open().read(&key), &bytes)?;
        must("deletion", open().delete(&key))?;
    }
    Ok(())
}

fn manifest(version: Version, prompt: &[u8]) -> Result<Manifest, Violation> {
    let mut draft = Draft::new(must("name", Name::new("conformance"))?, version);
    let path = must("path", "prompt/system.txt".parse())?;
    let (size, digest) = (prompt.len() as u64, Digest::of(prompt));
    draft
        .components
        .push(Component::new(path, ComponentKind::Prompt, size, digest));
    must("manifest", draft.finish())
}

fn publish<S: Store>(
    registry: &Registry<S>,
    minor: u32,
    note: &Note,
) -> Result<VersionId, Violation> {
    let prompt = format!("prompt {minor}").into_bytes();
    let manifest = manifest(Version::new(1, minor, 0), &prompt)?;
    let source = |_: &Component| -> std::io::Result<Box<dyn Read>> {
        Ok(Box::new(std::io::Cursor::new(prompt.clone())))
    };
    must(
        "a version is published",
        registry.publish(&manifest, &source, &Publish::new(), note),
    )
}

/// The rules of the registry on this store: writers race, nothing is lost, and another process sees it all.
fn registry<S: Store>(open: &(impl Fn() -> S + Sync)) -> Outcome {
    let registry = must("the registry opens", Registry::open(open()))?;
    let note = Note::new(1_000, "conformance");
    let mut ids = Vec::new();
    for minor in 0..=u32::from(WRITERS) {
        ids.push(publish(&registry, minor, &note)?);
    }
    let name = must("name", Name::new("conformance"))?;
    let alias = must("name", Name::new("production"))?;
    // Each writer moves the alias a number of times, from wherever it points to its own version.
    let moved = std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=WRITERS)
            .map(|n| {
                let (name, alias, ids) = (&name, &alias, &ids);
                scope.spawn(move || race_for_alias(&open(), name, alias, ids, n))
            })
            .collect();
        let joined = writers.into_iter().map(|w| w.join().ok().unwrap_or(Ok(0)));
        joined.sum::<Result<usize, Violation>>()
    })?;
    let history = must(
        "an alias has a history",
        registry.alias_history(&name, &alias),
    )?;
    if history.len() != moved || moved == 0 {
        return Err(violation(
            "every acknowledged move is in the history",
            (history.len(), moved),
        ));
    }
    let linked = history.windows(2).all(|w| w[0].to == w[1].from);
    if !linked {
        return Err(violation(
            "every move starts where the one before it ended",
            history,
        ));
    }
    must("the log is whole", registry.verify_log(None))?;
    for id in &ids {
        must("every version is whole", registry.verify_version(id))?;
    }
    let options = GcOptions {
        keep_latest: Some(0),
        keep_previous: 0,
        ..GcOptions::default()
    };
    let report = must("garbage is collected", registry.gc(&options, &note))?;
    let current = must("an alias is read", registry.alias(&name, &alias))?;
    let left: BTreeSet<VersionId> = must("versions", registry.versions(&name))?
        .into_iter()
        .collect();
    if left != current.iter().cloned().collect() || report.blobs.len() != usize::from(WRITERS) {
        return Err(violation(
            "exactly what the alias holds is left",
            (left, report),
        ));
    }
    let again = must("the registry opens again", Registry::open(open()))?;
    if let Some(id) = &current {
        must("what an alias holds is whole", again.verify_version(id))?;
    }
    expect(
        "another process sees the same log",
        again.head(),
        &must("head", registry.head())?,
    )
}

fn race_for_alias<S: Store>(
    store: &S,
    name: &Name,
    alias: &Name,
    ids: &[VersionId],
    writer: u8,
) -> Result<usize, Violation> {
    let registry = must("the registry opens", Registry::open(store))?;
    let mut moved = 0;
    for round in 0..ROUNDS {
        let at = u64::from(round);
        let note = Note::new(1_000 + at, format!("writer {writer}"));
        let seen = must("an alias is read", registry.alias(name, alias))?;
        let target = ids.get(usize::from(writer));
        match registry.move_alias(name, alias, seen.as_ref(), target, &note) {
            Ok(()) => moved += 1,
            Err(RegistryError::AliasMoved { .. }) => {}
            Err(error) => return Err(violation("a move succeeds or loses the race", error)),
        }
    }
    Ok(moved)
}
