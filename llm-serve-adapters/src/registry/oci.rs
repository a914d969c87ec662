//! Bundles in an OCI registry: pushed from one host, pulled and verified on another.

mod auth;
mod client;
mod error;
#[cfg(test)]
mod tests;
mod transfer;

pub use error::{OciCode, OciRegistryError};

use crate::host::{self, Manifests};
use crate::http_client::Authorities;
use async_trait::async_trait;
use auth::Credentials;
use client::Client;
use llm_version_core::fs::{MANIFEST_FILE, OciArtifact, OciError, OciFiles, OciSource};
use llm_version_core::{Digest, Manifest, VersionId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

type Result<T> = std::result::Result<T, OciRegistryError>;

/// The most bytes of one artifact that are pulled, unless told otherwise: 1 TiB.
const MOST: u64 = 1 << 40;

/// A repository of an OCI registry (distribution specification 1.1), for bundles as CNCF `ModelPack` artifacts.
///
/// Every file of a bundle is one blob, named by its SHA-256, as in the image layouts that
/// [`export_oci`](llm_version_core::fs::export_oci) writes: what ORAS, `modctl` and others push is pulled here and the other way round. Blobs
/// are streamed, a few blocks of 256 KiB at a time in memory; what the registry has is not sent again, what the folder has
/// is not fetched again, and every digest is checked on both ways.
///
/// ```no_run
/// use llm_serve_adapters::registry::OciRepository;
/// # async fn example(dir: &std::path::Path, manifest: &llm_version_core::Manifest) -> Result<(), Box<dyn std::error::Error>> {
/// let models = OciRepository::open("https://registry.example/models/chat")?.password("ci", "...")?;
/// // Here: under its tag 1.2.3-<hash>, and another one.
/// let pushed = models.push(dir, manifest, &["stable"]).await?;
/// // On another host. By the digest nothing can be another one; a tag may move.
/// let pulled = models.pull(&format!("sha256:{}", pushed.digest), "bundles/chat".as_ref()).await?;
/// assert_eq!(pulled.version.as_ref(), Some(manifest.id()));
/// # Ok(())
/// # }
/// ```
///
/// # What it speaks
/// - Authentication: none, a password (`Basic`), or a token that is got for the password, or without one, where the registry says so
///   (`Bearer` challenge). Neither shows up in errors or debug output, nor goes to the hosts of redirects.
/// - `https` by the system's certificates, or `http` in networks that are trusted.
/// - Refusals are typed by the specification's codes ([`OciCode`]). What may pass (429, 5xx, a broken connection) is tried again, three
///   times in all, after what `Retry-After` asks for, if it is at most a minute.
/// - Each request is given up if nothing moves for [`patience`](Self::patience), one minute unless told otherwise.
///
/// It pushes each blob in one request, as registries behind proxies that limit the size of requests may refuse; it does not delete.
/// All calls need a tokio runtime.
///
/// As [`Manifests`] it finds the manifest of a version by its tag.
#[derive(Debug)]
pub struct OciRepository {
    client: Client,
    mount_from: Vec<String>,
    most: u64,
}

/// What a push has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// The digest of the artifact's manifest, by which it can be pulled.
    pub digest: Digest,
    /// Blobs that were sent.
    pub sent: usize,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Blobs that were there already, or were mounted from another repository.
    pub there: usize,
}

/// What a pull has done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pulled {
    /// The digest of the artifact's manifest.
    pub digest: Digest,
    /// The version, verified; none for an artifact that holds no manifest of ours.
    pub version: Option<VersionId>,
    /// Bytes that were fetched.
    pub received_bytes: u64,
    /// Bytes that were there already, of a pull that was interrupted, or twice in the artifact.
    pub kept_bytes: u64,
}

impl OciRepository {
    /// The repository at this address: a registry and a name, such as `https://registry.example/models/chat`. Does not
    /// connect.
    ///
    /// # Errors
    /// [`OciRegistryError::Address`] for what is no such address.
    pub fn open(address: &str) -> Result<Self> {
        Ok(Self {
            client: Client::open(address)?,
            mount_from: Vec::new(),
            most: MOST,
        })
    }

    /// Trusts these certificate authorities beside those of the system.
    ///
    /// # Errors
    /// [`OciRegistryError::Address`] if no client can be made of them.
    pub fn trust(mut self, authorities: &Authorities) -> Result<Self> {
        self.client.trust(authorities)?;
        Ok(self)
    }

    /// With a user and a password, or the token that the registry takes for one.
    ///
    /// # Errors
    /// [`OciRegistryError::Address`] for what no header can hold.
    pub fn password(mut self, user: &str, password: &str) -> Result<Self> {
        self.client.credentials = Some(Credentials::new(user, password)?);
        Ok(self)
    }

    /// Looks for blobs in this repository of the same registry too, such as that of the base model, and takes them over from there.
    ///
    /// # Errors
    /// [`OciRegistryError::Address`] for a name that no repository can have.
    pub fn mount_from(mut self, repository: &str) -> Result<Self> {
        client::check_name(repository)?;
        self.client
            .also
            .push(format!("repository:{repository}:pull"));
        self.mount_from.push(repository.to_owned());
        Ok(self)
    }

    /// How long nothing may move until a request is given up: 60 seconds unless told otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.client.patience = patience;
        self
    }

    /// The most bytes of one artifact that are pulled: 1 TiB unless told otherwise. A larger one is refused before
    /// anything is fetched.
    #[must_use]
    pub fn most_bytes(mut self, bytes: u64) -> Self {
        self.most = bytes;
        self
    }

    /// Pushes the bundle in `dir`, which must verify against `manifest`, under the tag of its version
    /// ([`VersionId::to_oci_tag`]) and these tags. The tags are set last: nobody finds half an artifact.
    ///
    /// # Errors
    /// When the bundle does not verify or changes meanwhile, or the registry refuses or cannot be reached. What was sent until then stays,
    /// and is not sent again.
    pub async fn push(&self, dir: &Path, manifest: &Manifest, tags: &[&str]) -> Result<Pushed> {
        for tag in tags {
            OciArtifact::check_tag(tag)?;
        }
        let (folder, listed) = (dir.to_owned(), manifest.clone());
        let artifact = transfer::aside(move || OciArtifact::pack(&folder, &listed)).await??;
        let mut pushed = Pushed {
            digest: *artifact.digest(),
            sent: 0,
            sent_bytes: 0,
            there: 0,
        };
        let mut known = BTreeSet::new();
        for blob in artifact.blobs() {
            if !known.insert(blob.digest) {
                continue;
            }
            let put = self.client.patiently(|| {
                self.client
                    .put_blob(&blob.digest, blob.size, &blob.source, &self.mount_from)
            });
            if put.await? {
                pushed.sent += 1;
                pushed.sent_bytes += blob.size;
            } else {
                pushed.there += 1;
            }
        }
        let own = manifest.id().to_oci_tag();
        for tag in std::iter::once(own.as_str()).chain(tags.iter().copied()) {
            let put = self.client.patiently(|| {
                let (bytes, digest) = (artifact.manifest(), artifact.digest());
                self.client.put_manifest(tag, bytes, digest)
            });
            put.await?;
        }
        Ok(pushed)
    }

    /// Pulls an artifact, by its tag or `sha256:` digest, into the folder `dir`, which must not exist, or hold this very version already.
    ///
    /// Files are fetched into a folder beside it, `<dir>.<digest>.partial`, and it becomes `dir` once all are verified. A pull
    /// that was interrupted goes on there, in the middle of a file too.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached, or what it has is not what the digests say.
    pub async fn pull(&self, reference: &str, dir: &Path) -> Result<Pulled> {
        let (digest, files) = self.files(reference).await?;
        let total = files
            .iter()
            .try_fold(0, |sum: u64, (_, _, size)| sum.checked_add(size));
        if total.is_none_or(|total| total > self.most) {
            return Err(OciRegistryError::TooLarge {
                what: format!("artifact {reference}"),
                limit: self.most,
            });
        }
        let mut pulled = Pulled {
            digest,
            version: None,
            received_bytes: 0,
            kept_bytes: 0,
        };
        if dir.exists() {
            let (files, folder) = (files.clone(), dir.to_owned());
            pulled.version = transfer::aside(move || files.verify(&folder)).await??;
            pulled.kept_bytes = total.unwrap_or_default();
            return match &pulled.version {
                Some(_) => Ok(pulled),
                None => Err(OciRegistryError::Exists {
                    path: dir.display().to_string(),
                }),
            };
        }
        let staging = Staging::open(dir, &digest)?;
        let mut there: BTreeMap<Digest, PathBuf> = BTreeMap::new();
        for (path, digest, size) in files.iter() {
            let target = staging.folder.join(path.as_str());
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(error::io(parent))?;
            }
            if let Some(same) = there.get(digest) {
                let (from, to) = (same.clone(), target.clone());
                let copied = transfer::aside(move || fs::copy(&from, &to)).await?;
                pulled.kept_bytes += copied.map_err(error::io(&target))?;
                continue;
            }
            let received = self
                .client
                .patiently(|| self.client.get_blob(digest, size, &target));
            let received = received.await?;
            pulled.received_bytes += received;
            pulled.kept_bytes += size.saturating_sub(received);
            there.insert(*digest, target);
        }
        let folder = staging.folder.clone();
        pulled.version = transfer::aside(move || files.verify(&folder)).await??;
        fs::rename(&staging.folder, dir).map_err(error::io(dir))?;
        Ok(pulled)
    }

    /// The files of an artifact, and its digest.
    async fn files(&self, reference: &str) -> Result<(Digest, OciFiles)> {
        let got = self
            .client
            .patiently(|| self.client.get_manifest(reference));
        let (digest, bytes) = got.await?;
        Ok((digest, OciFiles::parse(reference, &bytes)?))
    }

    async fn find(&self, version: &VersionId) -> Result<Option<Manifest>> {
        let tag = version.to_oci_tag();
        let (_, files) = match self.files(&tag).await {
            Err(OciRegistryError::Refused {
                code: OciCode::ManifestUnknown | OciCode::NameUnknown,
                ..
            }) => return Ok(None),
            found => found?,
        };
        let Some((_, digest, size)) = files
            .iter()
            .find(|(path, _, _)| path.as_str() == MANIFEST_FILE)
        else {
            return Ok(None);
        };
        if size > Manifest::MAX_BYTES {
            return Err(OciRegistryError::TooLarge {
                what: format!("{MANIFEST_FILE} of {tag}"),
                limit: Manifest::MAX_BYTES,
            });
        }
        let bytes = self
            .client
            .patiently(|| self.client.get_small_blob(digest, size));
        let manifest = Manifest::parse(&bytes.await?).map_err(OciError::from)?;
        // The tag holds only the start of the digest.
        Ok(Some(manifest).filter(|m| m.id() == version))
    }
}

#[async_trait]
impl Manifests for OciRepository {
    async fn manifest(&self, version: &VersionId) -> host::Result<Option<Manifest>> {
        self.find(version)
            .await
            .map_err(|e| host::Error::new(e.kind(), e.to_string()).because(e))
    }
}

/// Where files are until all have come; one pull at a time.
#[derive(Debug)]
struct Staging {
    folder: PathBuf,
    /// Locked for as long as it is open.
    _lock: Option<File>,
}

impl Staging {
    fn open(dir: &Path, digest: &Digest) -> Result<Self> {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", digest.short(12)));
        let folder = dir.with_file_name(name);
        fs::create_dir_all(&folder).map_err(error::io(&folder))?;
        // Not every system opens folders; there nobody sees who else pulls, and the last one to verify wins.
        let lock = File::open(&folder).ok();
        if let Some(Err(fs::TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
            return Err(OciRegistryError::Busy {
                path: folder.display().to_string(),
            });
        }
        Ok(Self {
            folder,
            _lock: lock,
        })
    }
}

/// What a blob is sent from.
fn source_path(source: &OciSource) -> String {
    match source {
        OciSource::File(path) => path.display().to_string(),
        OciSource::Bytes(_) => "a document of the bundle".to_owned(),
    }
}
