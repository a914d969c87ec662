//! Building a manifest from a directory in the native layout.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

use super::hash::{HashError, Hashes, Look, Plan, Run, chunks, hash_files};
use super::inspect::{self, HeaderError, Inspection};
use super::onnx::external_files;
use super::problem::{Problem, ProblemKind, Warning, WarningKind};
use super::shards::{self, Headers};
use super::walk::{Found, Symlinks, Tree, walk};
use super::{METADATA_FILE, OnProgress};
use crate::content::{FileFormat, SecretFound, find_secrets};
use crate::diff::Contents;
use crate::gguf::GgufHeader;
use crate::json::{self, JsonError};
use crate::kind::{ComponentKind, has_extension};
use crate::manifest::{CHUNK_BYTES, Component, Draft, Manifest, ManifestError, Tensor};
use crate::metadata::Metadata;
use crate::path::ComponentPath;
use crate::safetensors::SafetensorsHeader;

/// Where dependency versions stand in the native layout.
const DEPENDENCIES_FILE: &str = "config/dependencies.json";
/// The largest `config/dependencies.json` that is read.
const DEPENDENCIES_LIMIT: u64 = 4 << 20;
/// Problems listed in the text of an error.
const SHOWN: usize = 10;

/// How to build a manifest.
///
/// ```no_run
/// use llm_version_core::fs::{BuildOptions, Progress, build};
///
/// let show = |p: &Progress<'_>| eprint!("\r{}/{} bytes, {}", p.done_bytes, p.total_bytes, p.current);
/// let built = build("bundles/chat".as_ref(), &BuildOptions::new().progress(&show))?;
/// println!("{}", built.manifest.id());
/// # Ok::<(), llm_version_core::fs::BuildError>(())
/// ```
#[derive(Clone, Copy, Default)]
pub struct BuildOptions<'a> {
    run: Run<'a>,
    symlinks: Symlinks,
    chunks: bool,
    no_tensors: bool,
    allow: Allow,
}

/// What the caller accepts that is refused by default.
#[derive(Debug, Clone, Copy, Default)]
struct Allow {
    pickles: bool,
    secrets: bool,
}

impl<'a> BuildOptions<'a> {
    /// All cores, no chunk digests, no symbolic links.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads to hash on; 0 means one per core.
    #[must_use]
    pub const fn threads(mut self, threads: usize) -> Self {
        self.run.threads = threads;
        self
    }

    /// Calls `progress` while hashing.
    #[must_use]
    pub const fn progress(mut self, progress: OnProgress<'a>) -> Self {
        self.run.progress = Some(progress);
        self
    }

    /// Stops soon after `cancel` becomes true.
    #[must_use]
    pub const fn cancel(mut self, cancel: &'a AtomicBool) -> Self {
        self.run.cancel = Some(cancel);
        self
    }

    /// What to do with symbolic links.
    #[must_use]
    pub const fn symlinks(mut self, symlinks: Symlinks) -> Self {
        self.symlinks = symlinks;
        self
    }

    /// Records digests of 64 MiB chunks of files larger than that, so that ranges of them and one huge file verify on all
    /// cores.
    ///
    /// The digest of a whole file is one chain by the nature of SHA-256, and names the file in every registry and
    /// signature: one core computes it while the others compute those of chunks and tensors. So building a bundle of one
    /// huge file for the first time takes as long as one core needs; verifying it by its chunks does not.
    #[must_use]
    pub const fn chunk_digests(mut self, chunks: bool) -> Self {
        self.chunks = chunks;
        self
    }

    /// Whether to record a digest of every tensor of safetensors files (the default), by which a repack of the same
    /// tensors and changes of single tensors are recognised. It costs hashing those files twice.
    #[must_use]
    pub const fn tensor_digests(mut self, tensors: bool) -> Self {
        self.no_tensors = !tensors;
        self
    }

    /// Accepts files that run code when they are loaded (pickles); they become warnings.
    #[must_use]
    pub const fn allow_pickles(mut self, allow: bool) -> Self {
        self.allow.pickles = allow;
        self
    }

    /// Accepts what looks like a secret; it becomes a warning.
    #[must_use]
    pub const fn allow_secrets(mut self, allow: bool) -> Self {
        self.allow.secrets = allow;
        self
    }
}

impl fmt::Debug for BuildOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildOptions")
            .field("threads", &self.run.threads)
            .field("symlinks", &self.symlinks)
            .field("chunks", &self.chunks)
            .finish_non_exhaustive()
    }
}

/// A manifest, and what was noticed on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Built {
    /// The manifest.
    pub manifest: Manifest,
    /// What is allowed but worth a look, ordered by path.
    pub warnings: Vec<Warning>,
    /// What files are by their content, where that was recognised.
    pub formats: BTreeMap<ComponentPath, FileFormat>,
}

/// Why no manifest could be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The folder itself cannot be listed or resolved.
    #[error("{folder}: {error}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system said.
        error: io::Error,
    },
    /// There is no `metadata.json`.
    #[error(
        "{folder} has no metadata.json; write one with \"format\": \"llm-metadata/1\", \"name\" and \"version\""
    )]
    NoMetadata {
        /// The folder.
        folder: String,
    },
    /// A file that is read for its content is wrong.
    #[error("{path}: {error}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong.
        error: JsonError,
    },
    /// A file that is read for its content cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The tree is unfit; every problem is listed.
    #[error("{}", list(.0))]
    Tree(Vec<Problem>),
    /// What was found has no valid manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

fn list(problems: &[Problem]) -> String {
    let mut text = format!("{} problem(s) in the tree", problems.len());
    for problem in problems.iter().take(SHOWN) {
        let _ = write!(text, "\n  {problem}");
    }
    if problems.len() > SHOWN {
        let _ = write!(text, "\n  and {} more", problems.len() - SHOWN);
    }
    text
}

/// Reads at most `limit` bytes of a small file.
pub(crate) fn read_small(path: &Path, name: &str, limit: u64) -> Result<Vec<u8>, BuildError> {
    let io = |error| BuildError::Io {
        path: name.to_owned(),
        error,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(BuildError::Content {
            path: name.to_owned(),
            error: JsonError::TooLarge {
                found: bytes.len() as u64,
                limit,
            },
        });
    }
    Ok(bytes)
}

/// Reads `metadata.json` below `root`.
pub(crate) fn read_metadata(root: &Path) -> Result<Metadata, BuildError> {
    let bytes = read_small(
        &root.join(METADATA_FILE),
        METADATA_FILE,
        Metadata::MAX_BYTES,
    )?;
    Metadata::parse(&bytes).map_err(|error| BuildError::Content {
        path: METADATA_FILE.to_owned(),
        error,
    })
}

fn read_dependencies(tree: &Tree) -> Result<BTreeMap<String, String>, BuildError> {
    let at = tree
        .files
        .binary_search_by(|f| f.path.as_str().cmp(DEPENDENCIES_FILE));
    let Some(found) = at.ok().and_then(|at| tree.files.get(at)) else {
        return Ok(BTreeMap::new());
    };
    let bytes = read_small(&found.location, DEPENDENCIES_FILE, DEPENDENCIES_LIMIT)?;
    json::from_slice(&bytes, DEPENDENCIES_LIMIT).map_err(|error| BuildError::Content {
        path: DEPENDENCIES_FILE.to_owned(),
        error,
    })
}

/// Turns what went wrong with single files into problems; cancellation wins over all.
pub(crate) fn sort_out(
    files: &[Found],
    results: Vec<Result<Hashes, HashError>>,
    problems: &mut Vec<Problem>,
) -> Result<Vec<Option<Hashes>>, Cancelled> {
    let mut sorted = Vec::with_capacity(files.len());
    for (found, result) in files.iter().zip(results) {
        let kind = match result {
            Ok(hashes) => {
                sorted.push(Some(hashes));
                continue;
            }
            Err(HashError::Cancelled) => return Err(Cancelled),
            Err(HashError::Changed) => ProblemKind::ChangedWhileReading,
            Err(HashError::Io(error)) => ProblemKind::Unreadable {
                error: error.to_string(),
            },
        };
        problems.push(Problem::new(found.path.as_str(), kind));
        sorted.push(None);
    }
    Ok(sorted)
}

/// The run was cancelled.
#[derive(Debug)]
pub(crate) struct Cancelled;

/// Builds the manifest of the bundle directory `dir`.
///
/// The native layout is `model/`, `prompt/` and `config/`, all of it in the digest; `metadata.json` for name, version,
/// contract, licences and lineage; and `tests/`, which is not looked at. The same directory gives the same manifest on
/// every machine, whatever the order of listing, times of modification, permissions or locale.
///
/// # Errors
/// Lists every problem of the tree at once, each with its path and remedy.
pub fn build(dir: &Path, options: &BuildOptions<'_>) -> Result<Built, BuildError> {
    let folder = || dir.display().to_string();
    let mut tree = walk(dir, options.symlinks, &|_| false).map_err(|error| BuildError::Folder {
        folder: folder(),
        error,
    })?;
    if !tree.has_metadata {
        return Err(BuildError::NoMetadata { folder: folder() });
    }
    let metadata = read_metadata(dir)?;
    let kinds = place(&mut tree);
    if !tree.problems.is_empty() {
        return Err(BuildError::Tree(tree.problems));
    }
    let dependencies = read_dependencies(&tree)?;
    let headers = headers(&mut tree, &kinds);
    check_indices(&mut tree, &kinds, &headers)?;
    let by_name: Vec<FileFormat> = tree.files.iter().map(inspect::format_by_name).collect();
    check_models(&mut tree, &by_name, true);
    let plans: Vec<Plan> = tree
        .files
        .iter()
        .zip(&kinds)
        .map(|(f, kind)| plan(f, *kind, headers.get(f.path.as_str()), options))
        .collect();
    let results = hash_files(&tree.files, &plans, options.run);
    let hashes = sort_out(&tree.files, results, &mut tree.problems)
        .map_err(|Cancelled| BuildError::Cancelled)?;
    let metadata_bytes = read_small(&dir.join(METADATA_FILE), METADATA_FILE, Metadata::MAX_BYTES)?;
    let mut seen = Inspection::of_first_block(&metadata_bytes, true);
    seen.secrets = find_secrets(&metadata_bytes);
    judge(
        METADATA_FILE,
        ComponentKind::Other,
        &seen,
        options.allow,
        &mut tree.problems,
        &mut tree.warnings,
    );
    // Models under other names, as their content shows.
    let by_content = hashes
        .iter()
        .zip(by_name)
        .map(|(hashes, named)| match hashes {
            Some(hashes) if named == FileFormat::Other => hashes.inspection.format,
            _ => FileFormat::Other,
        });
    let by_content: Vec<FileFormat> = by_content.collect();
    check_models(&mut tree, &by_content, false);
    for ((found, kind), hashes) in tree.files.iter().zip(&kinds).zip(&hashes) {
        if let Some(hashes) = hashes {
            let path = found.path.as_str();
            judge(
                path,
                *kind,
                &hashes.inspection,
                options.allow,
                &mut tree.problems,
                &mut tree.warnings,
            );
        }
    }
    // Whatever was listed must still be all there is.
    let after = walk(dir, options.symlinks, &|_| false).map_err(|error| BuildError::Folder {
        folder: folder(),
        error,
    })?;
    tree.problems.extend(changes(&tree.files, &after.files));
    if !tree.problems.is_empty() {
        tree.problems.sort_by(|a, b| a.path.cmp(&b.path));
        tree.problems.dedup();
        return Err(BuildError::Tree(tree.problems));
    }
    let mut draft = Draft::new(metadata.name, metadata.version);
    draft.contract = metadata.contract;
    draft.licences = metadata.licences;
    draft.lineage = metadata.lineage;
    draft.dependencies = dependencies;
    let mut formats = BTreeMap::new();
    for ((found, kind), hashes) in tree.files.into_iter().zip(kinds).zip(hashes) {
        let Some((mut hashes, digest)) = hashes.and_then(|h| h.whole.map(|d| (h, d))) else {
            continue;
        };
        if hashes.inspection.format != FileFormat::Other {
            formats.insert(found.path.clone(), hashes.inspection.format);
        }
        let header = headers
            .get(found.path.as_str())
            .filter(|_| !options.no_tensors);
        let count = header.map_or(0, |h| h.tensors.len());
        let tensors = hashes
            .regions
            .split_off(hashes.regions.len().saturating_sub(count));
        let mut component = Component::new(found.path, kind, found.stamp.size, digest);
        component.chunks = hashes.regions;
        if let Some(header) = header {
            let pairs = header.tensors.iter().zip(tensors);
            component.tensors = pairs
                .map(|(t, digest)| Tensor::new(&t.name, &t.dtype, t.shape.clone(), digest))
                .collect();
        }
        draft.components.push(component);
    }
    tree.warnings.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Built {
        manifest: draft.finish()?,
        warnings: tree.warnings,
        formats,
    })
}

/// The kind of each file; what the layout has no room for becomes a problem.
fn place(tree: &mut Tree) -> Vec<ComponentKind> {
    let mut kinds = Vec::with_capacity(tree.files.len());
    for found in &tree.files {
        if let Some(kind) = ComponentKind::of_path(&found.path) {
            kinds.push(kind);
        } else {
            let problem = Problem::new(found.path.as_str(), ProblemKind::OutsideLayout);
            tree.problems.push(problem);
        }
    }
    kinds
}

/// Which digests of a file are wanted: whole, chunks if it is large, tensors if it has some.
fn plan(
    found: &Found,
    kind: ComponentKind,
    header: Option<&SafetensorsHeader>,
    options: &BuildOptions<'_>,
) -> Plan {
    let mut plan = Plan {
        // Vocabularies and index files hold every kind of text.
        look: match kind {
            ComponentKind::Tokenizer | ComponentKind::Weights | ComponentKind::WeightsIndex => {
                Look::Format
            }
            _ => Look::FormatAndSecrets,
        },
        ..Plan::WHOLE
    };
    if options.chunks && found.stamp.size > CHUNK_BYTES {
        plan.regions.extend(chunks(found.stamp.size));
    }
    if let Some(header) = header.filter(|_| !options.no_tensors) {
        plan.regions
            .extend(header.tensors.iter().map(|t| (t.start, t.len)));
    }
    plan
}

/// The headers of all safetensors files among weights and adapters; malformed ones become problems.
fn headers(tree: &mut Tree, kinds: &[ComponentKind]) -> Headers {
    let mut headers = Headers::new();
    for (found, kind) in tree.files.iter().zip(kinds) {
        let path = found.path.as_str();
        tree.problems.extend(inspect::by_name(found));
        let weights = matches!(kind, ComponentKind::Weights | ComponentKind::Adapter);
        if !weights || !has_extension(found.path.file_name(), "safetensors") {
            continue;
        }
        let problem = match inspect::safetensors_header(found) {
            Ok(header) => {
                headers.insert(path.to_owned(), header);
                continue;
            }
            Err(HeaderError::Malformed(_)) if is_stand_in(found) => continue,
            Err(HeaderError::Malformed(error)) => ProblemKind::Safetensors(error),
            Err(HeaderError::Hash(error)) => unread(error),
        };
        tree.problems.push(Problem::new(path, problem));
    }
    headers
}

/// Checks what GGUF and ONNX files say of themselves: their tensors must lie where they should. What merely begins like
/// an ONNX file, without being `named` so, may be something else.
fn check_models(tree: &mut Tree, formats: &[FileFormat], named: bool) {
    for (found, format) in tree.files.iter().zip(formats) {
        let path = found.path.as_str();
        let size = found.stamp.size;
        let open = |problems: &mut Vec<Problem>| {
            let opened = File::open(&found.location).map_err(HashError::Io);
            match opened.and_then(|file| found.same(&file).map(|()| file)) {
                Ok(file) => Some(file),
                Err(error) => {
                    problems.push(Problem::new(path, unread(error)));
                    None
                }
            }
        };
        match format {
            FileFormat::Gguf | FileFormat::Onnx if is_stand_in(found) => {}
            FileFormat::Gguf => {
                let Some(file) = open(&mut tree.problems) else {
                    continue;
                };
                if let Err(error) = GgufHeader::read(&mut BufReader::new(file), size) {
                    let problem = Problem::new(path, ProblemKind::Gguf(error));
                    tree.problems.push(problem);
                }
            }
            FileFormat::Onnx => {
                let Some(file) = open(&mut tree.problems) else {
                    continue;
                };
                match external_files(file, size) {
                    Ok(files) => {
                        let kinds = files.into_iter().filter_map(|(location, needed)| {
                            external_problem(found, location, needed, &tree.files)
                        });
                        let problems = kinds.map(|kind| Problem::new(path, kind));
                        tree.problems.extend(problems);
                    }
                    Err(error) if named => {
                        let problem = Problem::new(path, ProblemKind::Onnx(error));
                        tree.problems.push(problem);
                    }
                    Err(_) => {}
                }
            }
            _ => {}
        }
    }
}

/// What is wrong with a file in which tensors of `model` lie. A place outside the bundle counts as missing.
fn external_problem(
    model: &Found,
    location: String,
    needed: u64,
    files: &[Found],
) -> Option<ProblemKind> {
    let folder = model.path.as_str().rsplit_once('/').map_or("", |(f, _)| f);
    let path = format!("{folder}/{}", location.trim_start_matches("./"));
    let at = files.binary_search_by(|f| f.path.as_str().cmp(&path));
    match at.ok().and_then(|at| files.get(at)) {
        None => Some(ProblemKind::MissingExternalData { location }),
        Some(file) if file.stamp.size < needed => Some(ProblemKind::ExternalDataTooShort {
            location,
            needed,
            found: file.stamp.size,
        }),
        Some(_) => None,
    }
}

fn unread(error: HashError) -> ProblemKind {
    match error {
        HashError::Io(error) => ProblemKind::Unreadable {
            error: error.to_string(),
        },
        HashError::Changed | HashError::Cancelled => ProblemKind::ChangedWhileReading,
    }
}

/// Whether something stands in place of the file that is named as such when its content is looked at.
fn is_stand_in(found: &Found) -> bool {
    let mut prefix = Vec::new();
    let opened = File::open(&found.location);
    opened.is_ok_and(|file| file.take(512).read_to_end(&mut prefix).is_ok())
        && matches!(
            FileFormat::of_prefix(&prefix),
            FileFormat::GitLfsPointer | FileFormat::Html
        )
}

fn check_indices(
    tree: &mut Tree,
    kinds: &[ComponentKind],
    headers: &Headers,
) -> Result<(), BuildError> {
    for (found, kind) in tree.files.iter().zip(kinds) {
        if *kind != ComponentKind::WeightsIndex {
            continue;
        }
        let bytes = read_small(&found.location, found.path.as_str(), shards::INDEX_LIMIT)?;
        let (problems, warnings) = (&mut tree.problems, &mut tree.warnings);
        if let Err(error) = shards::check(found, &bytes, &tree.files, headers, problems, warnings) {
            let error = error.to_string();
            let problem = Problem::new(found.path.as_str(), ProblemKind::BadIndex { error });
            tree.problems.push(problem);
        }
    }
    Ok(())
}

/// Turns what was seen in a file into problems or warnings.
fn judge(
    path: &str,
    kind: ComponentKind,
    seen: &Inspection,
    allow: Allow,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Warning>,
) {
    let format = seen.format;
    let weights = matches!(kind, ComponentKind::Weights | ComponentKind::Adapter);
    if format == FileFormat::GitLfsPointer {
        let size = seen.pointer.as_ref().map_or(0, |p| p.size);
        problems.push(Problem::new(path, ProblemKind::GitLfsPointer { size }));
    } else if format == FileFormat::Html && weights {
        problems.push(Problem::new(path, ProblemKind::WebPage));
    } else if format.runs_code() && allow.pickles {
        warnings.push(Warning::new(path, WarningKind::Pickle { format }));
    } else if format.runs_code() {
        problems.push(Problem::new(path, ProblemKind::Pickle { format }));
    }
    for SecretFound { line, what } in &seen.secrets {
        let (line, what) = (*line, *what);
        if allow.secrets {
            warnings.push(Warning::new(path, WarningKind::Secret { what, line }));
        } else {
            problems.push(Problem::new(path, ProblemKind::Secret { what, line }));
        }
    }
}

/// Files that came, went or changed between two listings.
fn changes(before: &[Found], after: &[Found]) -> Vec<Problem> {
    let key = |f: &Found| (f.path.clone(), f.stamp);
    let state = |files: &[Found]| files.iter().map(key).collect::<BTreeMap<_, _>>();
    let (before, after) = (state(before), state(after));
    before
        .iter()
        .filter(|(path, stamp)| after.get(*path) != Some(*stamp))
        .chain(after.iter().filter(|(path, _)| !before.contains_key(*path)))
        .map(|(path, _)| Problem::new(path.as_str(), ProblemKind::ChangedWhileReading))
        .collect()
}

/// The contents of a bundle directory, for [`diff_contents`](crate::diff_contents).
#[derive(Debug, Clone, Copy)]
pub struct Folder<'a>(&'a Path);

impl<'a> Folder<'a> {
    /// The bundle directory `dir`.
    pub const fn new(dir: &'a Path) -> Self {
        Self(dir)
    }
}

impl Contents for Folder<'_> {
    fn read(&self, component: &Component) -> Option<Vec<u8>> {
        let path = component.path.as_str();
        read_small(&self.0.join(path), path, component.size).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(files: &[(&str, &[u8])]) -> Vec<Problem> {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model/weights");
        std::fs::create_dir_all(&weights).unwrap();
        let metadata = r#"{"format":"llm-metadata/1","name":"chat","version":"1.0.0"}"#;
        std::fs::write(folder.path().join(METADATA_FILE), metadata).unwrap();
        for (name, bytes) in files {
            std::fs::write(weights.join(name), bytes).unwrap();
        }
        match build(folder.path(), &BuildOptions::new()) {
            Ok(_) => Vec::new(),
            Err(BuildError::Tree(problems)) => problems,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn gguf_files_are_whole_whatever_they_are_called() {
        let file = crate::gguf::tests::file(&[("a", 3), ("b", 100)]);
        let cut = file.split_last().unwrap().1;
        assert_eq!(problems(&[("m.gguf", &file), ("m.bin", &file)]), []);
        for name in ["m.gguf", "m.bin"] {
            let found = problems(&[(name, cut)]);
            let [problem] = &found[..] else {
                panic!("{found:?}")
            };
            assert!(problem.path.ends_with(name));
            let truncated = matches!(&problem.kind, ProblemKind::Gguf(crate::GgufError::Truncated { tensor, .. }) if tensor == "b");
            assert!(truncated, "{problem}");
        }
        let found = problems(&[("m.gguf", b"something else")]);
        assert!(matches!(found[0].kind, ProblemKind::Gguf(_)), "{found:?}");
    }

    #[test]
    fn onnx_models_have_all_their_files() {
        let model = super::super::onnx::tests::model(&[("m.data", 64, 100), ("./m.data", 0, 8)]);
        let (whole, short) = ([0; 164], [0; 163]);
        assert_eq!(problems(&[("m.onnx", &model), ("m.data", &whole)]), []);
        let kind = |files: &[(&str, &[u8])]| problems(files).remove(0).kind;
        for name in ["m.onnx", "m.pb"] {
            assert!(matches!(
                kind(&[(name, &model)]),
                ProblemKind::MissingExternalData { .. }
            ));
        }
        assert_eq!(
            kind(&[("m.onnx", &model), ("m.data", &short)]),
            ProblemKind::ExternalDataTooShort {
                location: "m.data".to_owned(),
                needed: 164,
                found: 163
            }
        );
        for outside in ["../../metadata.json", "/etc/hostname"] {
            let model = super::super::onnx::tests::model(&[(outside, 0, 1)]);
            let missing = kind(&[("m.onnx", &model)]);
            assert!(matches!(missing, ProblemKind::MissingExternalData { .. }));
        }
        let cut = model.split_last().unwrap().1;
        assert!(matches!(kind(&[("m.onnx", cut)]), ProblemKind::Onnx(_)));
    }
}
