//! A store in a folder: a file for each entry of a log, a lock for each endpoint.

use async_trait::async_trait;
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use llm_serve_adapters::host::{Error, Owned, Page, Result, RouterMemory, StateStore};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Any number of processes of one machine may use the folder at a time. It blocks for as long as a file takes to be written; a
/// store behind a network would be asked asynchronously.
#[derive(Debug, Clone)]
pub(crate) struct FolderStore(PathBuf);

/// An entry as it is kept: beside the split that it puts into force, so that they are written in one go.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    entry: Vec<u8>,
    split: Option<Split>,
}

/// The most entries of a page, and bytes after which it ends.
const PAGE: (usize, usize) = (256, 1 << 20);

impl FolderStore {
    pub(crate) fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The endpoint's folder, and a lock on it that ends with the file.
    fn locked(&self, endpoint: &EndpointId) -> io::Result<(PathBuf, File)> {
        let folder = self.0.join(endpoint.as_str());
        fs::create_dir_all(folder.join("log"))?;
        let mut options = File::options();
        let lock = options.create(true).truncate(false).write(true);
        let lock = lock.open(folder.join("lock"))?;
        lock.lock()?;
        Ok((folder, lock))
    }
}

fn entry(folder: &Path, at: Seq) -> PathBuf {
    folder.join("log").join(format!("{:020}.json", at.get()))
}

fn next(folder: &Path) -> io::Result<Seq> {
    Ok(Seq::new(fs::read_dir(folder.join("log"))?.count() as u64))
}

fn fence(folder: &Path) -> io::Result<Fence> {
    match fs::read_to_string(folder.join("fence")) {
        Ok(text) => {
            let number = text.trim().parse().map_err(io::Error::other)?;
            Ok(Fence::new(number))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Fence::default()),
        Err(e) => Err(e),
    }
}

/// Whole or not at all, and durable when it returns. What is half written lies beside the folder of entries, not in it.
pub(crate) fn replace(folder: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    let half = folder.join("half");
    let mut new = File::create(&half)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&half, file)?;
    match file.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn kept(endpoint: &EndpointId, folder: &Path, at: Seq) -> Result<Kept> {
    let file = entry(folder, at);
    let bytes = fs::read(&file).map_err(|e| unreachable_folder(&file, e))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let place = file.display();
        Error::permanent(format!(
            "entry {at} of endpoint {endpoint} is damaged: restore {place}"
        ))
        .because(e)
    })
}

fn unreachable_folder(path: &Path, cause: io::Error) -> Error {
    let path = path.display();
    Error::transient(format!(
        "{path} cannot be used: check that it may be written and that there is room"
    ))
    .because(cause)
}

#[async_trait]
impl StateStore for FolderStore {
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned> {
        let own = || {
            let (folder, _lock) = self.locked(endpoint)?;
            let fence = fence(&folder)?.next();
            replace(&folder, &folder.join("fence"), fence.to_string().as_bytes())?;
            Ok(Owned {
                fence,
                next: next(&folder)?,
            })
        };
        own().map_err(|e| unreachable_folder(&self.0, e))
    }

    async fn append(
        &self,
        endpoint: &EndpointId,
        by: Fence,
        at: Seq,
        bytes: &[u8],
        split: Option<&Split>,
    ) -> Result<()> {
        let failed = |e| unreachable_folder(&self.0, e);
        let (folder, _lock) = self.locked(endpoint).map_err(failed)?;
        let (newest, next) = (
            fence(&folder).map_err(failed)?,
            next(&folder).map_err(failed)?,
        );
        if by < newest {
            return Err(Error::fenced(format!(
                "endpoint {endpoint} is owned by fence {newest} now, not {by}"
            )));
        }
        if by > newest || newest == Fence::default() {
            return Err(Error::permanent(format!(
                "fence {by} of endpoint {endpoint} was never given: acquire first"
            )));
        }
        if at != next {
            return Err(Error::permanent(format!(
                "the next entry of endpoint {endpoint} is {next}, not {at}: read the log again"
            )));
        }
        let kept = Kept {
            entry: bytes.to_vec(),
            split: split.cloned(),
        };
        let kept = serde_json::to_vec(&kept)
            .map_err(|e| Error::permanent("an entry cannot be written as JSON").because(e))?;
        replace(&folder, &entry(&folder, at), &kept).map_err(failed)
    }

    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page> {
        let (folder, _lock) = self
            .locked(endpoint)
            .map_err(|e| unreachable_folder(&self.0, e))?;
        let next = next(&folder).map_err(|e| unreachable_folder(&folder, e))?;
        let mut page = Page::default();
        let (mut at, mut bytes) = (from, 0);
        while at < next && page.entries.len() < PAGE.0 && bytes < PAGE.1 {
            let entry = kept(endpoint, &folder, at)?.entry;
            bytes += entry.len();
            page.entries.push((at, entry));
            at = at.next();
        }
        page.more = at < next;
        Ok(page)
    }

    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>> {
        let (folder, _lock) = self
            .locked(endpoint)
            .map_err(|e| unreachable_folder(&self.0, e))?;
        let next = next(&folder).map_err(|e| unreachable_folder(&folder, e))?;
        // The newest that an entry has put into force.
        for at in (0..next.get()).rev() {
            if let Some(split) = kept(endpoint, &folder, Seq::new(at))?.split {
                return Ok(Some(split));
            }
        }
        Ok(None)
    }

    fn router_memory(
        &self,
        endpoint: &EndpointId,
        router: &RouterId,
    ) -> Option<Arc<dyn RouterMemory>> {
        let folder = self.0.join(endpoint.as_str()).join("routers");
        Some(Arc::new(RouterFile(folder.join(router.as_str()))))
    }
}

/// What a router must remember.
#[derive(Debug)]
struct RouterFile(PathBuf);

impl RouterMemory for RouterFile {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        match fs::read(&self.0) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(unreachable_folder(&self.0, e)),
        }
    }

    fn save(&self, record: &[u8]) -> Result<()> {
        let save = || {
            let folder = self.0.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            replace(folder, &self.0, record)
        };
        save().map_err(|e| unreachable_folder(&self.0, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_keeps_to_the_rules() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::new(folder.path());
        llm_serve_adapters::testing::store::suite(async || {
            Ok(Arc::new(store.clone()) as Arc<dyn StateStore>)
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_damaged_entry_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::new(folder.path());
        let chat = EndpointId::new("chat").unwrap();
        let owned = store.acquire(&chat).await.unwrap();
        store
            .append(&chat, owned.fence, owned.next, b"entry", None)
            .await
            .unwrap();
        fs::write(entry(&folder.path().join("chat"), owned.next), b"{").unwrap();
        let error = store.read(&chat, Seq::default()).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("entry 0 of endpoint chat is damaged"),
            "{error}"
        );
    }
}
