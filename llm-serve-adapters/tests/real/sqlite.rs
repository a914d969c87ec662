//! The store in a file of a file system that is full.

use llm_rollout::{EndpointId, Epoch, RouterId, Seq, Split};
use llm_serve_adapters::host::{ErrorKind, StateStore as _};
use llm_serve_adapters::store::SqliteStore;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A file system of one megabyte, in memory.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(place: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "llm-e2e"])
            .arg(place)
            .output();
        mounted.ok()?.status.success().then_some(Self(place))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _still_there_if_busy = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn split(epoch: u64) -> Split {
    let version = format!("chat/v1.0.0-{}", "ab".repeat(32)).parse().unwrap();
    Split::steady(None, version, Epoch::new(epoch))
}

#[tokio::test]
#[ignore = "needs the right to mount: e2e/run sqlite"]
async fn a_full_disk_loses_nothing_and_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("small");
    fs::create_dir(&place).unwrap();
    let small =
        Small::mount(&place).expect("a file system cannot be mounted: e2e/run sqlite says why");
    let chat = EndpointId::new("chat").unwrap();
    let path = place.join("rollouts.db");
    let store = SqliteStore::open(&path).unwrap();
    let router = store
        .router_memory(&chat, &RouterId::new("one").unwrap())
        .unwrap();
    router.save(b"before").unwrap();
    let fence = store.acquire(&chat).await.unwrap().fence;
    let entry = vec![7; 50_000];
    let mut at = 0;
    let error = loop {
        let appended = store
            .append(&chat, fence, Seq::new(at), &entry, Some(&split(at)))
            .await;
        match appended {
            Ok(()) => at += 1,
            Err(error) => break error,
        }
        assert!(at < 1_000, "it never fills");
    };
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("disk is full"), "{error}");
    println!("ok      full after {at} entries of 50 kB: {error}");
    let whole = async |store: &SqliteStore| {
        let (mut next, mut found) = (Seq::new(0), 0);
        loop {
            let page = store.read(&chat, next).await.unwrap();
            assert!(page.entries.iter().all(|(_, read)| *read == entry));
            found += page.entries.len() as u64;
            next = Seq::new(found);
            if !page.more {
                break;
            }
        }
        assert_eq!(
            found, at,
            "what was acknowledged is there, and nothing else"
        );
        assert_eq!(store.split(&chat).await.unwrap(), Some(split(at - 1)));
    };
    whole(&store).await;
    // Whoever starts again on the full disk sees the same, and may not make up anything.
    drop((store, router));
    fs::write(place.join("filler"), vec![0; 1 << 20]).unwrap_err();
    match SqliteStore::open(&path) {
        Ok(store) => whole(&store).await,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            println!("ok      opened while full: {error}");
        }
    }
    fs::remove_file(place.join("filler")).unwrap();
    let grown = Command::new("mount")
        .args(["-o", "remount,size=8m"])
        .arg(&place)
        .status();
    assert!(grown.unwrap().success());
    let store = SqliteStore::open(&path).unwrap();
    whole(&store).await;
    let owned = store.acquire(&chat).await.unwrap();
    assert!(owned.fence > fence && owned.next == Seq::new(at));
    store
        .append(&chat, owned.fence, owned.next, &entry, Some(&split(at)))
        .await
        .unwrap();
    let router = store
        .router_memory(&chat, &RouterId::new("one").unwrap())
        .unwrap();
    assert_eq!(router.load().unwrap().as_deref(), Some(&b"before"[..]));
    println!(
        "ok      with room again: it goes on at position {}",
        owned.next
    );
    drop((store, router));
    drop(small);
    crate::verified("sqlite", "SQLite", rusqlite::version());
}
