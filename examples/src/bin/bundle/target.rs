//! What words on the command line mean: folders, manifests, versions of a registry; who acts, and when.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use examples::terminal::Terminal;
use llm_version_core::fs::{
    BuildOptions, Built, FolderStore, MANIFEST_FILE, Progress, Symlinks, VerifyOptions, build,
    verify,
};
use llm_version_core::registry::{Note, Registry};
use llm_version_core::{
    BundleRef, Component, Contents, Manifest, Name, Version, VersionId, diff_contents,
};

use crate::args::Request;
use crate::failure::{Code, Failure};

pub(crate) type Folder = Registry<FolderStore>;

/// A version that was found, and where its files are.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) manifest: Manifest,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Registry(Folder),
    /// A manifest alone: nothing to read contents from.
    Nowhere,
}

impl Contents for Target {
    fn read(&self, component: &Component) -> Option<Vec<u8>> {
        match &self.place {
            Place::Folder(dir) => {
                // One byte more than there should be, so that a longer content shows by its digest.
                let mut bytes = Vec::new();
                let file = std::fs::File::open(dir.join(component.path.as_str())).ok()?;
                let limit = component.size.saturating_add(1);
                file.take(limit).read_to_end(&mut bytes).ok()?;
                Some(bytes)
            }
            Place::Registry(registry) => Contents::read(registry, component),
            Place::Nowhere => None,
        }
    }
}

impl Target {
    /// Finds what `word` means. The files of a folder are read and checked against its manifest, or hashed where there is
    /// none.
    pub(crate) fn find(word: &str, request: &Request, terminal: Terminal) -> Result<Self, Failure> {
        let path = Path::new(word);
        if path.is_dir() {
            let manifest = manifest_of(path, terminal)?;
            let place = Place::Folder(path.to_owned());
            return Ok(Self { manifest, place });
        }
        if path.is_file() {
            let place = Place::Nowhere;
            let manifest = read_manifest(path)?;
            return Ok(Self { manifest, place });
        }
        if request.value("--registry").is_none() {
            return Err(Failure::usage(format!(
                "{word:?} is neither a folder nor a file; versions of a registry need --registry"
            )));
        }
        let registry = open_registry(request)?;
        let id = resolve(&registry, word)?;
        let manifest = registry.manifest(&id)?;
        let place = Place::Registry(registry);
        Ok(Self { manifest, place })
    }

    /// What changed from here to `newer`, contents included.
    pub(crate) fn diff(&self, newer: &Self) -> llm_version_core::Diff {
        diff_contents(&self.manifest, &newer.manifest, self, newer)
    }

    /// The registry that it comes from, if it does.
    pub(crate) const fn registry(&self) -> Option<&Folder> {
        match &self.place {
            Place::Registry(registry) => Some(registry),
            _ => None,
        }
    }
}

/// Reads a manifest file, whole and in its one spelling.
pub(crate) fn read_manifest(path: &Path) -> Result<Manifest, Failure> {
    let io = |error| Failure::io(path.display(), &error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(Manifest::MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let named = |error| Failure::new(Code::Check, format!("{}: {error}", path.display()));
    Manifest::parse(&bytes).map_err(named)
}

/// The manifest of a folder whose every byte was just read: the one that lies in it, or a new one.
pub(crate) fn manifest_of(dir: &Path, terminal: Terminal) -> Result<Manifest, Failure> {
    let file = dir.join(MANIFEST_FILE);
    if !file.is_file() {
        return Ok(hash(dir, BuildOptions::new(), terminal)?.manifest);
    }
    let manifest = read_manifest(&file)?;
    check(dir, &manifest, VerifyOptions::new(), terminal)?;
    Ok(manifest)
}

/// Builds a manifest, with a bar.
pub(crate) fn hash(
    dir: &Path,
    options: BuildOptions<'_>,
    terminal: Terminal,
) -> Result<Built, Failure> {
    let bar = terminal.bar(&format!("build  {}", label(dir)));
    let show = |p: &Progress<'_>| bar.show(p.done_bytes, p.total_bytes);
    let built = build(dir, &options.progress(&show))?;
    bar.done();
    Ok(built)
}

/// Verifies a folder, with a bar.
pub(crate) fn check(
    dir: &Path,
    manifest: &Manifest,
    options: VerifyOptions<'_>,
    terminal: Terminal,
) -> Result<VersionId, Failure> {
    let bar = terminal.bar(&format!("verify {}", label(dir)));
    let show = |p: &Progress<'_>| bar.show(p.done_bytes, p.total_bytes);
    let id = verify(dir, manifest, &options.progress(&show))?;
    bar.done();
    Ok(id)
}

/// The last part of a folder's name.
pub(crate) fn label(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or(dir.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The registry that `--registry` names.
pub(crate) fn open_registry(request: &Request) -> Result<Folder, Failure> {
    let root = request
        .value("--registry")
        .ok_or_else(|| Failure::usage("give --registry FOLDER"))?;
    // Only a publication may make one: a mistyped path is not an empty registry.
    let store = match request.command.name {
        "publish" => FolderStore::open(root)?,
        _ => FolderStore::open_existing(root)?,
    };
    Ok(Registry::open(store)?)
}

/// A version of a registry: `NAME/vX.Y.Z-HASH`, a whole id, or `NAME@ALIAS`.
pub(crate) fn resolve(registry: &Folder, word: &str) -> Result<VersionId, Failure> {
    if let Some((name, alias)) = word.split_once('@') {
        let (name, alias) = (parse_name(name)?, parse_name(alias)?);
        let nowhere = || Failure::new(Code::Refused, format!("{word} points nowhere"));
        return registry.alias(&name, &alias)?.ok_or_else(nowhere);
    }
    Ok(registry.resolve(&reference(word)?)?)
}

/// `NAME/vX.Y.Z-HASH` with 12 to 64 digits.
pub(crate) fn reference(word: &str) -> Result<BundleRef, Failure> {
    word.parse()
        .map_err(|error| Failure::usage(format!("{word:?}: {error}")))
}

/// A name of a bundle or alias.
pub(crate) fn parse_name(word: &str) -> Result<Name, Failure> {
    word.parse()
        .map_err(|error| Failure::usage(format!("{word:?}: {error}")))
}

/// `--name` and `--version`, or the folder's name and 0.1.0.
pub(crate) fn name_and_version(request: &Request, dir: &Path) -> Result<(Name, Version), Failure> {
    let name = match request.value("--name") {
        Some(name) => parse_name(name)?,
        None => parse_name(&label(dir))
            .map_err(|e| Failure::usage(format!("{}; give --name", e.message)))?,
    };
    let version = request.value("--version").unwrap_or("0.1.0");
    let version = version
        .parse()
        .map_err(|error| Failure::usage(format!("--version {version}: {error}")))?;
    Ok((name, version))
}

/// A whole number behind an option.
pub(crate) fn number(request: &Request, option: &str) -> Result<Option<usize>, Failure> {
    let Some(word) = request.value(option) else {
        return Ok(None);
    };
    let wrong = |_| Failure::usage(format!("{option} needs a whole number, not {word:?}"));
    word.parse().map(Some).map_err(wrong)
}

/// Links as `--links` says.
pub(crate) fn links(request: &Request) -> Symlinks {
    if request.flag("--links") {
        Symlinks::InsideOnly
    } else {
        Symlinks::Refuse
    }
}

/// Who acts now, and why.
pub(crate) fn note(request: &Request) -> Result<Note, Failure> {
    let user = || {
        let names = ["USER", "LOGNAME", "USERNAME"].into_iter();
        let mut set = names.filter_map(|name| std::env::var(name).ok());
        set.find(|name| !name.is_empty())
    };
    let by = request.value("--by").map(ToOwned::to_owned).or_else(user);
    let by = by.ok_or_else(|| Failure::usage("say with --by who acts; it is kept in the log"))?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Failure::new(Code::Environment, "the clock stands before 1970"))?;
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Ok(Note::new(now, by).because(request.value("--why").unwrap_or_default()))
}

/// A time of the log as people read it.
pub(crate) fn time(millis: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(millis))
        .filter(|_| millis < 253_402_300_800_000) // the year 10000
        .map_or_else(
            || format!("{millis} ms"),
            |at| humantime::format_rfc3339_millis(at).to_string(),
        )
}

/// A size as people read it.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 40), "5.0 TiB");
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(u64::MAX), format!("{} ms", u64::MAX));
    }
}
