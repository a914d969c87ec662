//! What a reader finds of counters that are being written, in every order of the threads.

use super::Recorder;
use super::cell::{ASSIGNED, CLASSES, Cell, DURATION, TOKENS};
use super::ticket::OutcomeClass;
use crate::router::{Decision, Role, VersionSlot};
use crate::sync::{Part, breaks, explore, needs, superfluous};
use llm_rollout::Timestamp;
use loom::thread;
use std::sync::Arc;

fn decision(epoch: u64) -> Decision {
    Decision::new(VersionSlot::new(1), Role::Baseline, epoch, false)
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_000)
}

/// A request ends while somebody reads.
fn read() {
    let cell = Arc::new(Cell::new());
    cell.recycle(decision(1));
    let reader = Arc::clone(&cell);
    let reader = thread::spawn(move || {
        if let Ok(Some((about, totals))) = reader.read() {
            assert_eq!(about, decision(1));
            let found = [CLASSES, TOKENS, DURATION].map(|index| totals.get(index));
            assert!(found == [0; 3] || found == [1; 3], "{found:?}");
        }
    });
    let write = cell.write();
    write.bump(CLASSES, 1);
    write.bump(TOKENS, 1);
    write.bump(DURATION, 1);
    drop(write);
    reader.join().unwrap();
    let (_, totals) = cell.read().unwrap().unwrap();
    assert_eq!(totals.get(TOKENS), 1);
}

/// A cell is used for another epoch while somebody reads.
fn recycled() {
    let cell = Arc::new(Cell::new());
    cell.recycle(decision(1));
    cell.bump(ASSIGNED, 1);
    let reader = Arc::clone(&cell);
    let reader = thread::spawn(move || {
        if let Ok(Some((about, totals))) = reader.read() {
            let expected = u64::from(about == decision(1));
            assert_eq!(totals.get(ASSIGNED), expected, "counts of another epoch");
        }
    });
    cell.recycle(decision(2));
    reader.join().unwrap();
}

#[test]
fn a_reader_sees_whole_writes() {
    explore(3, read);
    explore(3, recycled);
}

#[test]
fn every_part_of_the_order_is_needed() {
    assert_eq!(superfluous(read), []);
}

/// Two that write to the same counters: what a shard for each thread prevents.
#[test]
fn two_writers_at_once_are_found() {
    let model = || {
        let cell = Arc::new(Cell::new());
        cell.recycle(decision(1));
        let other = Arc::clone(&cell);
        let other = thread::spawn(move || other.write().bump(CLASSES, 1));
        cell.write().bump(CLASSES, 1);
        other.join().unwrap();
        assert_eq!(cell.read().unwrap().unwrap().1.get(CLASSES), 2);
    };
    assert!(breaks(model));
}

fn load(recorder: &Recorder) -> Option<(u64, u64, u64)> {
    recorder.registry.load(VersionSlot::new(1)).ok()
}

/// Begun and ended requests of the recorder, if nobody was interrupted.
fn counted(recorder: &Recorder) -> Option<(u64, u64)> {
    let rows = recorder.snapshot().ok()?.rows;
    let sum = |of: fn(&super::Row) -> u64| rows.iter().map(of).sum::<u64>();
    Some((sum(super::Row::assigned), sum(super::Row::finished)))
}

/// A thread records a request and ends, which hands its counters over, while another looks.
fn handed_over() {
    let recorder = Arc::new(Recorder::new(Vec::<String>::new()).unwrap());
    let writer = Arc::clone(&recorder);
    let writer = thread::spawn(move || {
        let ticket = writer.begin(decision(1), now());
        ticket.finish(OutcomeClass::Ok, now());
    });
    let reader = Arc::clone(&recorder);
    let reader = thread::spawn(move || {
        if let Some((begun, ended)) = counted(&reader) {
            assert!(ended <= begun && begun <= 1, "{begun} {ended}");
        }
    });
    writer.join().unwrap();
    reader.join().unwrap();
    let last = counted(&recorder).unwrap();
    assert_eq!(last, (1, 1), "nothing is lost, and nothing counted twice");
}

#[test]
fn what_an_ended_thread_has_counted_is_there_once() {
    explore(2, handed_over);
}

/// A request begins on one thread and ends on another, while somebody asks how many are in flight.
fn in_flight() {
    let recorder = Arc::new(Recorder::new(Vec::<String>::new()).unwrap());
    let ticket = recorder.begin(decision(1), now());
    let writer = thread::spawn(move || ticket.finish(OutcomeClass::Ok, now()));
    let reader = Arc::clone(&recorder);
    let reader = thread::spawn(move || {
        if let Some((begun, ended, _)) = load(&reader) {
            assert!(begun == 1 && ended <= 1, "{begun} {ended}");
        }
    });
    writer.join().unwrap();
    reader.join().unwrap();
    assert_eq!(load(&recorder), Some((1, 1, 0)));
}

#[test]
fn what_is_in_flight_is_never_less_than_nothing() {
    explore(2, in_flight);
}

/// A thread's counters go on to another epoch, which folds what they tell about the load, while another thread looks.
fn folded() {
    let recorder = Arc::new(Recorder::new(Vec::<String>::new()).unwrap());
    let writer = Arc::clone(&recorder);
    let writer = thread::spawn(move || {
        let old = writer.begin(decision(1), now());
        // Two epochs on: the same cell, where a thread keeps two epochs.
        let new = writer.begin(decision(3), now());
        new.finish(OutcomeClass::Ok, now());
        old.finish(OutcomeClass::Ok, now());
    });
    let reader = Arc::clone(&recorder);
    let reader = thread::spawn(move || {
        if let Some((begun, ended, _)) = load(&reader) {
            assert!(begun <= 2 && ended <= begun, "{begun} {ended}");
        }
    });
    writer.join().unwrap();
    reader.join().unwrap();
    assert_eq!(load(&recorder), Some((2, 2, 0)));
}

/// The same, with nothing else going on: one request has ended before, and the one that needs its cell goes on.
fn reused() {
    let recorder = Arc::new(Recorder::new(Vec::<String>::new()).unwrap());
    let looked = thread::spawn(move || {
        let old = recorder.begin(decision(1), now());
        old.finish(OutcomeClass::Ok, now());
        let reader = Arc::clone(&recorder);
        let reader = thread::spawn(move || load(&reader));
        let new = recorder.begin(decision(3), now());
        let looked = reader.join().unwrap();
        new.finish(OutcomeClass::Ok, now());
        looked
    });
    // Checked where no counters are handed over when the check fails.
    if let Some((begun, ended, _)) = looked.join().unwrap() {
        assert!((1..=2).contains(&begun) && ended == 1, "{begun} {ended}");
    }
}

#[test]
fn folding_counts_neither_twice_nor_not_at_all() {
    explore(2, folded);
    explore(3, reused);
}

/// Without the fence a reader finds a load that was neither handed over nor is still in the cell. What else the order needs is
/// needed for whole writes, by the same lock.
#[test]
fn folding_needs_its_fence() {
    assert!(needs(Part::ReleaseFences, reused));
}
