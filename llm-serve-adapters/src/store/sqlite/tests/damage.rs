//! What is damaged is named, and left alone.

use super::*;

#[tokio::test]
async fn a_damaged_entry_is_named_and_the_others_can_be_read() {
    let place = Place::new();
    place.filled(5).await;
    place.sql("UPDATE entries SET entry = CAST('entry 9' AS BLOB) WHERE seq = 3");
    let store = place.open();
    contains(
        &store.read(&chat(), Seq::new(0)).await.unwrap_err(),
        ErrorKind::Permanent,
        &["position 3", "endpoint chat", "damaged"],
    );
    assert_eq!(
        store.read(&chat(), Seq::new(4)).await.unwrap().entries,
        [(Seq::new(4), b"entry 4".to_vec())]
    );
}

#[tokio::test]
async fn a_byte_flipped_on_disk_is_noticed() {
    let place = Place::new();
    place.filled(5).await;
    let mut bytes = fs::read(place.path()).unwrap();
    let at = bytes.windows(7).position(|w| w == b"entry 2").unwrap();
    bytes[at + 2] ^= 0x10;
    fs::write(place.path(), bytes).unwrap();
    let error = place.open().read(&chat(), Seq::new(0)).await.unwrap_err();
    contains(
        &error,
        ErrorKind::Permanent,
        &["position 2", "endpoint chat", "damaged"],
    );
}

#[tokio::test]
async fn a_missing_entry_is_named_wherever_it_is_missing() {
    let place = Place::new();
    place.filled(5).await;
    place.sql("DELETE FROM entries WHERE seq = 1");
    let error = place.open().read(&chat(), Seq::new(0)).await.unwrap_err();
    contains(
        &error,
        ErrorKind::Permanent,
        &["position 1", "endpoint chat", "missing"],
    );

    let place = Place::new();
    place.filled(5).await;
    place.sql("DELETE FROM entries WHERE seq = 4");
    let store = place.open();
    contains(
        &store.acquire(&chat()).await.unwrap_err(),
        ErrorKind::Permanent,
        &["position 4", "endpoint chat"],
    );
    contains(
        &store.read(&chat(), Seq::new(0)).await.unwrap_err(),
        ErrorKind::Permanent,
        &["position 4"],
    );
}

#[tokio::test]
async fn a_damaged_head_gives_no_fence() {
    for damage in [
        "UPDATE endpoints SET fence = 0",
        "UPDATE endpoints SET next = 2",
        "UPDATE endpoints SET split = NULL",
        "DELETE FROM endpoints",
        "UPDATE endpoints SET endpoint = 'chit'",
    ] {
        let place = Place::new();
        place.filled(3).await;
        place.sql(damage);
        let store = place.open();
        let error = store.acquire(&chat()).await.unwrap_err();
        contains(&error, ErrorKind::Permanent, &["endpoint chat", "damaged"]);
        assert!(store.split(&chat()).await.is_err(), "{damage}");
    }
}

#[tokio::test]
async fn a_damaged_router_record_is_named() {
    let place = Place::new();
    let router = RouterId::new("here").unwrap();
    place
        .open()
        .router_memory(&chat(), &router)
        .unwrap()
        .save(b"record")
        .unwrap();
    place.sql("UPDATE routers SET record = CAST('recodr' AS BLOB)");
    let error = place
        .open()
        .router_memory(&chat(), &router)
        .unwrap()
        .load()
        .unwrap_err();
    contains(
        &error,
        ErrorKind::Permanent,
        &["router here", "endpoint chat", "damaged"],
    );
}

#[tokio::test]
async fn a_truncated_file_is_refused_and_left_alone() {
    let place = Place::new();
    place.filled(200).await;
    let whole = fs::metadata(place.path()).unwrap().len();
    for left in [whole / 2, 4_096, 100] {
        fs::OpenOptions::new()
            .write(true)
            .open(place.path())
            .unwrap()
            .set_len(left)
            .unwrap();
        let before = fs::read(place.path()).unwrap();
        let error = place.refusal();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{left}: {error}");
        assert!(
            fs::read(place.path()).unwrap() == before,
            "{left}: the file was changed"
        );
    }
    fs::OpenOptions::new()
        .write(true)
        .open(place.path())
        .unwrap()
        .set_len(0)
        .unwrap();
    contains(
        &place.refusal(),
        ErrorKind::Permanent,
        &["is empty although", "put back a copy"],
    );
    assert_eq!(fs::metadata(place.path()).unwrap().len(), 0);
}

#[tokio::test]
async fn a_damaged_page_is_never_read_as_something_else() {
    let place = Place::new();
    place.filled(200).await;
    let whole = fs::read(place.path()).unwrap();
    let expected: Vec<_> = (0..200)
        .map(|at| (Seq::new(at), format!("entry {at}").into_bytes()))
        .collect();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        fs::write(place.path(), bytes).unwrap();
        let read = match SqliteStore::open(place.path()) {
            Ok(store) => store.read(&chat(), Seq::new(0)).await,
            Err(e) => Err(e),
        };
        match read {
            Ok(page) => assert!(page.entries == expected, "byte {at}"),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Permanent, "byte {at}: {e}");
                refused += 1;
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[tokio::test]
async fn a_torn_write_ahead_log_is_the_log_up_to_an_entry() {
    const ENTRIES: u64 = 12;
    let place = Place::new();
    let store = place.open();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    for at in 0..ENTRIES {
        let entry = format!("entry {at}");
        let (endpoint, split) = (chat(), split(at));
        let appended = store.append(
            &endpoint,
            fence,
            Seq::new(at),
            entry.as_bytes(),
            Some(&split),
        );
        appended.await.unwrap();
    }
    // As a power cut leaves them, of a disk that lies about what it has written.
    let wal_of = |path: PathBuf| path.with_file_name("rollouts.db-wal");
    let (base, wal) = (
        fs::read(place.path()).unwrap(),
        fs::read(wal_of(place.path())).unwrap(),
    );
    let (mut lengths, mut refused) = (std::collections::BTreeSet::new(), 0);
    for cut in (0..=wal.len()).step_by(1_021).chain([wal.len()]) {
        let torn = Place::new();
        fs::write(torn.path(), &base).unwrap();
        fs::write(wal_of(torn.path()), &wal[..cut]).unwrap();
        // Before the tables were laid out there is no store.
        let Ok(store) = SqliteStore::open(torn.path()) else {
            refused += 1;
            continue;
        };
        let page = store.read(&chat(), Seq::new(0)).await.unwrap();
        let length = page.entries.len() as u64;
        for (at, entry) in &page.entries {
            assert_eq!(*entry, format!("entry {at}").into_bytes(), "cut at {cut}");
        }
        let expected = length.checked_sub(1).map(split);
        assert_eq!(
            store.split(&chat()).await.unwrap(),
            expected,
            "cut at {cut}"
        );
        let owned = store.acquire(&chat()).await.unwrap();
        assert_eq!(owned.next, Seq::new(length), "cut at {cut}");
        lengths.insert(length);
    }
    assert!(
        lengths.len() > 6 && lengths.contains(&ENTRIES),
        "{lengths:?}, {refused} refused"
    );
}
