//! Commands on registries: `publish`, `alias`, `log`, `check`, `trace`, `fetch`, `gc`.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use examples::terminal::{Bar, Terminal};
use llm_version_core::fs::{FolderSource, Sharing, materialise};
use llm_version_core::registry::{
    Event, GcOptions, LogHead, Publish, RegistryError, Source, StoreError,
};
use llm_version_core::{Component, Name, VersionId};
use serde_json::{Value, json};

use crate::args::Request;
use crate::failure::{Code, Failure};
use crate::folder::described;
use crate::target::{
    Folder, label, manifest_of, note, number, open_registry, parse_name, reference, resolve, size,
    time,
};
use crate::{Done, Outcome};

/// A source that shows how much was read of it.
struct Shown<'a> {
    source: FolderSource<'a>,
    bar: &'a Bar,
    read: AtomicU64,
    total: u64,
}

impl Source for Shown<'_> {
    fn open(&self, component: &Component) -> io::Result<Box<dyn Read + '_>> {
        let bytes = self.source.open(component)?;
        Ok(Box::new(ShownBytes { bytes, shown: self }))
    }

    fn file(&self, component: &Component) -> Option<PathBuf> {
        self.source.file(component)
    }
}

struct ShownBytes<'a> {
    bytes: Box<dyn Read + 'a>,
    shown: &'a Shown<'a>,
}

impl Read for ShownBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        let Shown {
            bar,
            total,
            read: all,
            ..
        } = self.shown;
        let before = all.fetch_add(read as u64, Ordering::Relaxed);
        bar.show(before + read as u64, *total);
        Ok(read)
    }
}

pub(crate) fn publish(request: &Request, terminal: Terminal) -> Done {
    let dir = Path::new(request.word(0));
    let note = note(request)?;
    let registry = open_registry(request)?;
    let mut options = Publish::new();
    options.small_bump = request.value("--small-bump").map(ToOwned::to_owned);
    if let Some(word) = request.value("--previous") {
        options.previous = Some(resolve(&registry, word)?);
    }
    let manifest = manifest_of(dir, terminal)?;
    let known = registry.info(manifest.id()).is_ok();
    let bar = terminal.bar(&format!("store  {}", label(dir)));
    let source = Shown {
        source: FolderSource::new(dir),
        bar: &bar,
        read: AtomicU64::new(0),
        total: manifest.total_size(),
    };
    let id = registry.publish(&manifest, &source, &options, &note)?;
    bar.done();
    let head = registry.head()?;
    let text = format!(
        "{} {}\nlog head  {}",
        if known {
            "was there already:"
        } else {
            "published"
        },
        id,
        head_text(&head)
    );
    Ok(described(Outcome::new(text), &manifest)
        .with("new", !known)
        .with("head", head_text(&head)))
}

pub(crate) fn alias(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let name = parse_name(request.word(0))?;
    if request.positional.len() < 2 {
        if ["--to", "--from", "--at"]
            .iter()
            .any(|o| request.value(o).is_some())
            || request.flag("--clear")
            || request.flag("--history")
        {
            return Err(Failure::usage("say which alias"));
        }
        return all_aliases(&registry, &name);
    }
    let alias = parse_name(request.word(1))?;
    let target = match (request.value("--to"), request.flag("--clear")) {
        (Some(_), true) => return Err(Failure::usage("either --to or --clear")),
        (Some(word), false) => Some(Some(resolve(&registry, word)?)),
        (None, true) => Some(None),
        (None, false) => None,
    };
    if let Some(target) = target {
        return move_alias(request, &registry, &name, &alias, target.as_ref());
    }
    if request.flag("--history") {
        return history(&registry, &name, &alias);
    }
    let found = match request.value("--at") {
        Some(word) => {
            let at = humantime::parse_rfc3339_weak(word)
                .ok()
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
                .and_then(|at| u64::try_from(at.as_millis()).ok())
                .ok_or_else(|| {
                    Failure::usage(format!(
                        "--at {word:?} is not a time such as 2026-01-31T12:00:00Z"
                    ))
                })?;
            registry.alias_at(&name, &alias, at)?
        }
        None => registry.alias(&name, &alias)?,
    };
    Ok(Outcome::new(format!("{name}@{alias}  {}", words(found.as_ref()))).with("to", json!(found)))
}

fn words(id: Option<&VersionId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), ToString::to_string)
}

fn short(id: Option<&VersionId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| id.reference().to_string())
}

fn all_aliases(registry: &Folder, name: &Name) -> Done {
    let (aliases, versions) = (registry.aliases(name)?, registry.versions(name)?);
    let mut text = String::new();
    for (alias, to) in &aliases {
        let _ = writeln!(text, "{:<24} {to}", format!("{name}@{alias}"));
    }
    let _ = writeln!(text, "\n{} version(s) here", versions.len());
    for id in &versions {
        let _ = writeln!(text, "  {}", id.reference());
    }
    let pairs = aliases.iter().map(|(a, to)| (a.to_string(), json!(to)));
    Ok(Outcome::new(text.trim_start())
        .with("aliases", Value::Object(pairs.collect()))
        .with("versions", json!(versions)))
}

fn move_alias(
    request: &Request,
    registry: &Folder,
    name: &Name,
    alias: &Name,
    to: Option<&VersionId>,
) -> Done {
    let note = note(request)?;
    let from = match request.value("--from") {
        Some("nothing") => None,
        Some(word) => Some(resolve(registry, word)?),
        None => registry.alias(name, alias)?,
    };
    registry.move_alias(name, alias, from.as_ref(), to, &note)?;
    let text = format!("{name}@{alias}  {} -> {}", short(from.as_ref()), short(to));
    Ok(Outcome::new(text)
        .with("from", json!(from))
        .with("to", json!(to)))
}

fn history(registry: &Folder, name: &Name, alias: &Name) -> Done {
    let moves = registry.alias_history(name, alias)?;
    let mut text = String::new();
    let mut rows = Vec::new();
    for m in &moves {
        let _ = writeln!(
            text,
            "{}  {} -> {}  by {}{}",
            time(m.note.at),
            short(m.from.as_ref()),
            short(m.to.as_ref()),
            m.note.by,
            because(&m.note.why)
        );
        rows.push(json!({"from": m.from, "to": m.to, "note": m.note, "seq": m.seq}));
    }
    if moves.is_empty() {
        text = format!("{name}@{alias} was never moved");
    }
    Ok(Outcome::new(text).with("moves", rows))
}

pub(crate) fn because(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    }
}

/// A head as one word that can be kept and given back.
fn head_text(head: &LogHead) -> String {
    format!("{}:{}", head.entries, head.digest)
}

fn parse_head(word: &str) -> Option<LogHead> {
    let (entries, digest) = word.split_once(':')?;
    let entries: u64 = entries.parse().ok()?;
    serde_json::from_value(json!({"entries": entries, "digest": digest})).ok()
}

/// The head that `--known` names.
fn known_head(request: &Request) -> Result<Option<LogHead>, Failure> {
    let Some(word) = request.value("--known") else {
        return Ok(None);
    };
    let wrong = || {
        Failure::usage(format!(
            "--known {word:?} is not a head such as `log` prints it"
        ))
    };
    parse_head(word).map(Some).ok_or_else(wrong)
}

/// Everything that can be wrong with what a registry holds, all at once.
pub(crate) fn check(request: &Request, terminal: Terminal) -> Done {
    let known = known_head(request)?;
    let registry = open_registry(request)?;
    let entries = registry.verify_log(known.as_ref())?.len();
    let mut ids = Vec::new();
    for name in registry.names()? {
        ids.extend(registry.versions(&name)?);
    }
    let (mut problems, mut bytes) = (Vec::new(), 0_u64);
    let bar = terminal.bar("check  versions");
    for (n, id) in ids.iter().enumerate() {
        bar.show(n as u64, ids.len() as u64);
        match registry.verify_version(id) {
            Ok(()) => bytes += registry.manifest(id)?.total_size(),
            Err(error @ RegistryError::Store(StoreError::Io { .. })) => return Err(error.into()),
            Err(error) => problems.push(format!("{}: {error}", id.reference())),
        }
        for record in registry.records(id)? {
            if let Err(error) = registry.read_record(&record) {
                problems.push(format!("{} of {}: {error}", record.kind, id.reference()));
            }
        }
    }
    bar.done();
    for digest in registry.store().writable_blobs()? {
        problems.push(format!(
            "blob {digest} can be edited in place; take its write permission away"
        ));
    }
    if !problems.is_empty() {
        let message = format!("{} problem(s)\n  {}", problems.len(), problems.join("\n  "));
        return Err(Failure::new(Code::Check, message).with("problems", json!(problems)));
    }
    let head = head_text(&registry.head()?);
    let text = format!(
        "{entries} log entries, {} version(s), {} read: all as the log says\nhead {head}",
        ids.len(),
        size(bytes)
    );
    Ok(Outcome::new(text)
        .with("entries", entries)
        .with("versions", ids.len())
        .with("bytes", bytes)
        .with("head", head))
}

pub(crate) fn log(request: &Request) -> Done {
    let known = known_head(request)?;
    let registry = open_registry(request)?;
    let entries = registry.verify_log(known.as_ref())?;
    let head = registry.head()?;
    let mut text = String::new();
    for entry in &entries {
        let _ = writeln!(
            text,
            "{:>6}  {}  {:<12} {}{}",
            entry.seq,
            time(entry.note.at),
            entry.note.by,
            event(&entry.event),
            because(&entry.note.why)
        );
    }
    let _ = write!(
        text,
        "{} entries, each bound to the one before{}\nhead {}",
        entries.len(),
        if known.is_some() {
            ", the known head among them"
        } else {
            ""
        },
        head_text(&head)
    );
    Ok(Outcome::new(text)
        .with("entries", json!(entries))
        .with("head", head_text(&head)))
}

/// An event in words.
fn event(event: &Event) -> String {
    match event {
        Event::AliasMoved {
            alias,
            from,
            name,
            to,
        } => {
            format!(
                "{name}@{alias}: {} -> {}",
                short(from.as_ref()),
                short(to.as_ref())
            )
        }
        Event::Collected {
            blobs,
            bytes,
            versions,
        } => format!(
            "collected {} version(s) and {blobs} blob(s), {}",
            versions.len(),
            size(*bytes)
        ),
        Event::FloorSet { floor, name } => format!("no {name} below {floor} may serve"),
        Event::Pinned { holder, id } => format!("{} held by {holder}", id.reference()),
        Event::Published { id, small_bump, .. } if small_bump.is_empty() => {
            format!("published {}", id.reference())
        }
        Event::Published { id, small_bump, .. } => {
            format!(
                "published {}, with a small step because: {small_bump}",
                id.reference()
            )
        }
        Event::Recorded { digest, kind, .. } => format!("{kind} of {}", digest.short(12)),
        Event::Revoked { id } => format!("revoked {}", id.reference()),
        Event::Staged { id, .. } => format!("began to upload {}", id.reference()),
        Event::Tagged { id, key, value } => format!(
            "{} {key} = {}",
            id.reference(),
            value.as_deref().unwrap_or("nothing")
        ),
        Event::Unpinned { holder, id } => format!("{} let go by {holder}", id.reference()),
        other => format!("{other:?}"),
    }
}

pub(crate) fn trace(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let id = resolve(&registry, request.word(0))?;
    let trace = registry.trace(&reference(&id.reference_with(64).to_string())?)?;
    let lineages = trace.lineages.iter();
    let lineages = lineages.map(|(id, lineage)| (id.to_string(), json!(lineage)));
    Ok(Outcome::new(trace.to_string())
        .with("root", json!(trace.root))
        .with("lineages", Value::Object(lineages.collect()))
        .with("unknown", json!(trace.unknown)))
}

pub(crate) fn fetch(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let id = resolve(&registry, request.word(0))?;
    let dir = Path::new(request.word(1));
    // Files that can be edited without harm to the registry.
    let done = materialise(&registry, &id, dir, Sharing::Separate)?;
    let files = done.reflinked + done.hard_linked + done.copied;
    let text = format!("{id}\n{files} files in {}, verified", dir.display());
    Ok(described(Outcome::new(text), &registry.manifest(&id)?))
}

pub(crate) fn gc(request: &Request) -> Done {
    let registry = open_registry(request)?;
    let mut options = GcOptions::default();
    options.dry_run = request.flag("--dry-run");
    options.keep_latest = number(request, "--keep-latest")?;
    options.keep_previous = number(request, "--keep-previous")?.unwrap_or(options.keep_previous);
    let report = registry.gc(&options, &note(request)?)?;
    let verb = if options.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let mut text = String::new();
    for id in &report.versions {
        let _ = writeln!(text, "{verb} {}", id.reference());
    }
    let _ = write!(
        text,
        "{verb} {} version(s), {} manifest(s), {} blob(s) of {}; kept {} blob(s) of {}",
        report.versions.len(),
        report.manifests.len(),
        report.blobs.len(),
        size(report.bytes),
        report.kept_blobs,
        size(report.kept_bytes)
    );
    Ok(Outcome::new(text)
        .with("dry_run", options.dry_run)
        .with("versions", json!(report.versions))
        .with("blobs", json!(report.blobs))
        .with("bytes", report.bytes)
        .with("kept_blobs", report.kept_blobs)
        .with("kept_bytes", report.kept_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_read_back() {
        let head = LogHead::empty();
        assert_eq!(parse_head(&head_text(&head)), Some(head));
        assert_eq!(parse_head("1"), None);
        assert_eq!(parse_head("1:xyz"), None);
    }
}
