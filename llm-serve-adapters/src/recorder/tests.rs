use super::*;
use crate::host::{Cursor, ErrorKind, MetricSource, Query, Reading};
use crate::router::tests::{at, version};
use crate::router::{Role, Slice};
use llm_gates::{Counts, Increment};
use llm_rollout::MetricDef;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

fn decision(role: Role, epoch: u64, of: u32) -> Decision {
    let slot = VersionSlot::intern(&version(of)).unwrap();
    Decision::new(slot, role, epoch, false)
}

fn metrics() -> BTreeMap<String, MetricDef> {
    BTreeMap::from([
        ("errors".to_owned(), MetricDef::Fault {}),
        (
            "slow-start".to_owned(),
            MetricDef::FirstTokenOver(Duration::from_millis(500)),
        ),
        (
            "slow".to_owned(),
            MetricDef::DurationOver(Duration::from_secs(2)),
        ),
        (
            "format".to_owned(),
            MetricDef::Flag("bad_format".to_owned()),
        ),
    ])
}

struct World {
    recorder: Recorder,
    metrics: BTreeMap<String, MetricDef>,
    epoch: u64,
    candidate: VersionId,
    baseline: VersionId,
}

impl World {
    /// Each test has versions of its own, since load is counted over a recorder's life.
    fn new() -> Self {
        Self {
            recorder: Recorder::new(["thumbs_down", "bad_format"]).unwrap(),
            metrics: metrics(),
            epoch: 1,
            candidate: version(2),
            baseline: version(1),
        }
    }

    fn query(&self) -> Query<'_> {
        Query {
            metrics: &self.metrics,
            epoch: Epoch::new(self.epoch),
            candidate: &self.candidate,
            baseline: &self.baseline,
        }
    }

    fn open(&self, ms: u64) -> Cursor {
        block(self.recorder.open(self.query(), at(ms))).unwrap()
    }

    fn read(&self, cursor: &Cursor, ms: u64) -> Result<Reading> {
        block(self.recorder.read(self.query(), cursor, at(ms)))
    }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn arms(reading: &Reading, metric: &str) -> (Counts, Counts) {
    match &reading.window.metrics[metric] {
        Increment::Binary {
            candidate,
            baseline,
        } => (*candidate, *baseline),
        other => panic!("{other:?}"),
    }
}

#[test]
fn windows_hold_what_happened_since_the_cursor() {
    let world = World::new();
    let recorder = &world.recorder;
    recorder
        .begin(decision(Role::Candidate, 1, 2), at(0))
        .finish(OutcomeClass::Timeout, at(1));
    let cursor = world.open(10);
    let mut ticket = recorder.begin(decision(Role::Candidate, 1, 2), at(10));
    ticket.first_token(at(1_000));
    assert!(ticket.flag("bad_format") && !ticket.flag("no such flag"));
    ticket.finish(OutcomeClass::MidStreamError, at(3_000));
    recorder
        .begin(decision(Role::Candidate, 1, 2), at(10))
        .finish(OutcomeClass::Ok, at(20));
    recorder
        .begin(decision(Role::Baseline, 1, 1), at(10))
        .finish(OutcomeClass::ClientError, at(20));
    // Of another epoch, and still running: neither counts.
    recorder
        .begin(decision(Role::Candidate, 2, 2), at(10))
        .finish(OutcomeClass::Timeout, at(20));
    let running = recorder.begin(decision(Role::Baseline, 1, 1), at(10));
    let reading = world.read(&cursor, 3_000).unwrap();
    assert_eq!(
        (reading.window.epoch, reading.window.from, reading.window.to),
        (1, 10, 3_000)
    );
    for metric in ["errors", "slow-start", "slow", "format"] {
        assert_eq!(
            arms(&reading, metric),
            (Counts::new(2, 1), Counts::new(1, 0)),
            "{metric}"
        );
    }
    let next = world.read(&reading.cursor, 4_000).unwrap();
    assert_eq!(
        arms(&next, "errors"),
        (Counts::default(), Counts::default())
    );
    assert_eq!(next.window.from, 3_000);
    drop(running);
}

#[test]
fn every_class_is_a_fault_or_not() {
    for (overload, faults) in [(false, 4), (true, 5)] {
        let mut world = World::new();
        world.recorder = world.recorder.overload_is_fault(overload);
        let cursor = world.open(0);
        for class in OutcomeClass::ALL {
            world
                .recorder
                .begin(decision(Role::Candidate, 1, 2), at(0))
                .finish(class, at(1));
        }
        let reading = world.read(&cursor, 10).unwrap();
        assert_eq!(arms(&reading, "errors").0, Counts::new(9, faults));
    }
}

#[test]
fn a_control_arm_is_what_the_candidate_is_compared_with() {
    let world = World::new();
    let cursor = world.open(0);
    for (role, class) in [
        (Role::Baseline, OutcomeClass::Timeout),
        (Role::Control, OutcomeClass::Ok),
        (Role::Candidate, OutcomeClass::Ok),
    ] {
        let slot = VersionSlot::intern(&version(1)).unwrap();
        let decision = Decision::new(slot, role, 1, true);
        world.recorder.begin(decision, at(0)).finish(class, at(1));
    }
    let reading = world.read(&cursor, 10).unwrap();
    assert_eq!(arms(&reading, "errors").1, Counts::new(1, 0));
}

#[test]
fn only_what_chance_assigned_is_evidence() {
    let world = World::new();
    let cursor = world.open(0);
    let pinned = decision(Role::Candidate, 1, 2).evidence_if(false);
    world
        .recorder
        .begin(pinned, at(0))
        .finish(OutcomeClass::Timeout, at(1));
    let reading = world.read(&cursor, 10).unwrap();
    assert_eq!(arms(&reading, "errors").0, Counts::default());
    // But it is exposure, and it is shown.
    assert_eq!(reading.heartbeat.unwrap().exposed, 1);
    let snapshot = world.recorder.snapshot().unwrap();
    let row = snapshot.version(pinned.slot(), Role::Candidate).unwrap();
    assert_eq!(
        (row.assigned(), row.faults(), row.randomised()),
        (1, 1, false)
    );
}

#[test]
fn waiting_in_vain_is_waiting() {
    let world = World::new();
    let cursor = world.open(0);
    // Given up after 800 ms without a token, after 100 ms, and failed at once.
    for (class, end) in [
        (OutcomeClass::ClientCancel, 800),
        (OutcomeClass::ClientCancel, 100),
        (OutcomeClass::UpstreamError, 1),
    ] {
        world
            .recorder
            .begin(decision(Role::Candidate, 1, 2), at(0))
            .finish(class, at(end));
    }
    let reading = world.read(&cursor, 1_000).unwrap();
    assert_eq!(arms(&reading, "slow-start").0, Counts::new(3, 1));
    let row = world.recorder.snapshot().unwrap().rows.remove(0);
    assert_eq!(
        row.first_token(0.5),
        None,
        "a quick failure is no quick first token"
    );
    assert_eq!(
        (row.ended(OutcomeClass::ClientCancel), row.cancelled_early()),
        (2, 2)
    );
}

#[test]
fn a_hung_candidate_is_seen_although_it_finishes_nothing() {
    let world = World::new();
    let cursor = world.open(0);
    let mut hung = world.recorder.begin(decision(Role::Candidate, 1, 2), at(5));
    let _baseline = world.recorder.begin(decision(Role::Baseline, 1, 1), at(0));
    let beat = world.read(&cursor, 90_005).unwrap().heartbeat.unwrap();
    assert_eq!((beat.exposed, beat.waiting), (1, Duration::from_secs(90)));
    assert_eq!(world.recorder.in_flight(&version(2)), 1);
    hung.first_token(at(90_010));
    assert_eq!(
        world
            .read(&cursor, 90_020)
            .unwrap()
            .heartbeat
            .unwrap()
            .waiting,
        Duration::ZERO
    );
    assert_eq!(world.recorder.in_flight(&version(2)), 1);
    drop(hung);
    assert_eq!(world.recorder.in_flight(&version(2)), 0);
}

#[test]
fn a_dropped_ticket_is_an_abandoned_request() {
    let world = World::new();
    drop(world.recorder.begin(decision(Role::Candidate, 1, 2), at(0)));
    let mut started = world.recorder.begin(decision(Role::Candidate, 1, 2), at(0));
    started.first_token(at(10));
    drop(started);
    let row = world.recorder.snapshot().unwrap().rows.remove(0);
    assert_eq!(
        (
            row.finished(),
            row.ended(OutcomeClass::ClientCancel),
            row.cancelled_early()
        ),
        (2, 2, 1)
    );
    assert_eq!(row.duration(0.5), None, "nobody told how long it took");
}

#[test]
fn a_cursor_that_does_not_fit_is_refused() {
    let mut world = World::new();
    let cursor = world.open(0);
    let kind = |r: Result<Reading>| r.unwrap_err().kind();
    assert_eq!(kind(world.read(&cursor, 0)), ErrorKind::Transient);
    assert_eq!(
        kind(world.read(&Cursor::new("7"), 10)),
        ErrorKind::Permanent
    );
    assert_eq!(
        kind(World::new().read(&cursor, 10)),
        ErrorKind::Permanent,
        "another life"
    );
    world.epoch = 2;
    assert_eq!(kind(world.read(&cursor, 10)), ErrorKind::Permanent);
    world.epoch = 1;
    world.metrics.insert(
        "other".to_owned(),
        MetricDef::Flag("thumbs_down".to_owned()),
    );
    assert_eq!(kind(world.read(&cursor, 10)), ErrorKind::Permanent);
    world
        .metrics
        .insert("other".to_owned(), MetricDef::Flag("unknown".to_owned()));
    let error = block(world.recorder.open(world.query(), at(0))).unwrap_err();
    assert!(error.kind() == ErrorKind::Permanent && error.to_string().contains("unknown"));
}

#[test]
fn an_epoch_that_has_been_forgotten_gives_an_error_and_no_window() {
    let world = World::new();
    world
        .recorder
        .begin(decision(Role::Candidate, 1, 2), at(0))
        .finish(OutcomeClass::Ok, at(1));
    let cursor = world.open(10);
    let old = world.recorder.begin(decision(Role::Candidate, 1, 2), at(0));
    world
        .recorder
        .begin(decision(Role::Candidate, 5, 2), at(10))
        .finish(OutcomeClass::Ok, at(11));
    assert_eq!(
        world.read(&cursor, 20).unwrap_err().kind(),
        ErrorKind::Permanent
    );
    old.finish(OutcomeClass::Ok, at(30));
    assert_eq!(world.recorder.snapshot().unwrap().late, 1);
    assert_eq!(
        world.recorder.in_flight(&version(2)),
        0,
        "it is not in flight for ever"
    );
}

#[test]
fn flags_are_checked_when_it_is_built() {
    assert!(Recorder::new((0..17).map(|n| n.to_string())).is_err());
    assert!(Recorder::new(["a", "a"]).is_err());
    assert!(Recorder::new([""]).is_err());
    let recorder = Recorder::new((0..16).map(|n| n.to_string())).unwrap();
    let mut ticket = recorder.begin(decision(Role::Candidate, 1, 2), at(0));
    assert!(ticket.flag("15"));
    ticket.raise(1);
    ticket.finish(OutcomeClass::Ok, at(1));
    let row = recorder.snapshot().unwrap().rows.remove(0);
    let raised = (0..16)
        .filter(|n| row.flagged(&n.to_string()) == Some(1))
        .collect::<Vec<_>>();
    assert_eq!((raised, row.flagged("none")), (vec![0, 15], None));
}

#[test]
fn nothing_is_lost_when_threads_end_or_tickets_move_between_them() {
    const THREADS: u64 = 8;
    const EACH: u64 = 2_000;
    let world = World::new();
    let cursor = world.open(0);
    let (send, receive) = std::sync::mpsc::channel::<Ticket>();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (send, recorder) = (send.clone(), &world.recorder);
            scope.spawn(move || {
                for n in 0..EACH {
                    let mut ticket = recorder.begin(decision(Role::Candidate, 1, 2), at(n));
                    ticket.first_token(at(n + 1));
                    ticket.tokens(3);
                    if n % 2 == 0 {
                        ticket.finish(OutcomeClass::Ok, at(n + 10));
                    } else {
                        send.send(ticket).unwrap();
                    }
                    if thread == 0 && n % 100 == 0 {
                        let snapshot = recorder.snapshot().unwrap();
                        let row = &snapshot.rows[0];
                        let (assigned, finished) = (row.assigned(), row.finished());
                        assert!(
                            finished <= assigned && assigned <= THREADS * EACH,
                            "{assigned} {finished}"
                        );
                    }
                }
            });
        }
        drop(send);
        scope.spawn(move || {
            for ticket in receive {
                ticket.finish(OutcomeClass::Timeout, at(100_000));
            }
        });
    });
    let reading = world.read(&cursor, 200_000).unwrap();
    assert_eq!(
        arms(&reading, "errors").0,
        Counts::new(THREADS * EACH, THREADS * EACH / 2)
    );
    assert_eq!(world.recorder.in_flight(&version(2)), 0);
    let row = world.recorder.snapshot().unwrap().rows.remove(0);
    assert_eq!(
        (row.assigned(), row.started()),
        (THREADS * EACH, THREADS * EACH)
    );
    assert_eq!(row.tokens(), THREADS * EACH * 3);
}

#[test]
fn a_ticket_may_outlive_its_recorder() {
    let recorder = Recorder::new(["a"]).unwrap();
    let one = recorder.begin(decision(Role::Candidate, 1, 2), at(0));
    let two = recorder.begin(decision(Role::Candidate, 1, 2), at(0));
    drop(recorder);
    one.finish(OutcomeClass::Ok, at(1));
    std::thread::spawn(move || drop(two)).join().unwrap();
}

#[test]
fn requests_are_counted_when_the_thread_is_already_ending() {
    struct Last(Option<Ticket>);
    impl Drop for Last {
        fn drop(&mut self) {
            if let Some(ticket) = self.0.take() {
                ticket.finish(OutcomeClass::Ok, at(9));
            }
        }
    }
    thread_local! {
        static LAST: std::cell::RefCell<Last> = const { std::cell::RefCell::new(Last(None)) };
    }
    let world = World::new();
    for first in [true, false] {
        std::thread::scope(|scope| {
            let recorder = &world.recorder;
            let thread = scope.spawn(move || {
                // Whichever of the two is torn down first.
                if first {
                    LAST.with(|last| last.borrow_mut().0 = None);
                }
                let ticket = recorder.begin(decision(Role::Candidate, 1, 2), at(0));
                LAST.with(|last| last.borrow_mut().0 = Some(ticket));
            });
            // Only an explicit join waits for what a thread tears down.
            thread.join().unwrap();
        });
    }
    let row = world.recorder.snapshot().unwrap().rows.remove(0);
    assert_eq!((row.assigned(), row.ended(OutcomeClass::Ok)), (2, 2));
}

proptest! {
    #[test]
    fn disjoint_windows_add_up(
        requests in proptest::collection::vec((0..9_usize, 0..5_000_u64, any::<bool>(), any::<bool>(), any::<bool>()), 1..80),
    ) {
        let world = World::new();
        let (mut cursor, mut time) = (world.open(0), 0);
        let mut sums: BTreeMap<String, [Counts; 2]> = BTreeMap::new();
        let (mut n, mut slow, mut faults) = (0, 0, 0);
        for (class, ms, started, flagged, look) in requests {
            let class = OutcomeClass::ALL[class];
            let mut ticket = world.recorder.begin(decision(Role::Candidate, 1, 2), at(time));
            if started { ticket.first_token(at(time + ms / 2)); }
            if flagged { ticket.flag("bad_format"); }
            ticket.finish(class, at(time + ms));
            n += 1;
            slow += u64::from(ms > 2_100);
            faults += u64::from(class.is_fault());
            time += ms + 1;
            if look {
                let reading = world.read(&cursor, time).unwrap();
                for metric in world.metrics.keys() {
                    let (candidate, baseline) = arms(&reading, metric);
                    prop_assert!(candidate.check().is_ok() && baseline.check().is_ok());
                    let sum = sums.entry(metric.clone()).or_default();
                    *sum = [sum[0].plus(candidate).unwrap(), sum[1].plus(baseline).unwrap()];
                }
                cursor = reading.cursor;
            }
        }
        let last = world.read(&cursor, time + 1).unwrap();
        let whole = |metric: &str| {
            let seen = sums.get(metric).map_or(Counts::default(), |s| s[0]);
            seen.plus(arms(&last, metric).0).unwrap()
        };
        prop_assert_eq!(whole("errors"), Counts::new(n, faults));
        prop_assert!(whole("slow").k >= slow);
    }
}

#[test]
fn pieces_tell_the_time_per_token_and_the_longest_gap() {
    let world = World::new();
    for (tokens, tenths) in [(5, 500), (0, 500), (11, 200)] {
        // Pieces at 100, 120, 150, 290 and 300 ms: 200 ms after the first, 140 ms between two.
        let mut ticket = world.recorder.begin(decision(Role::Baseline, 1, 1), at(0));
        for ms in [100, 120, 150, 290, 300] {
            ticket.piece(at(ms));
        }
        ticket.tokens(tokens);
        ticket.finish(OutcomeClass::Ok, at(320));
        let snapshot = world.recorder.snapshot().unwrap();
        let row = &snapshot.rows[0];
        let exact = Duration::from_micros(tenths * 100);
        let found = row.per_token(0.0).unwrap();
        assert!(
            found.abs_diff(exact) <= exact / 60 || tokens == 11,
            "{found:?}"
        );
        let gap = row.longest_gap(0.5).unwrap().as_secs_f64();
        assert!((gap / 0.14 - 1.0).abs() < 0.016, "{gap}");
    }
    let snapshot = world.recorder.snapshot().unwrap();
    // 20 ms for each of the ten tokens after the first.
    let quickest = snapshot.rows[0].per_token(0.0).unwrap().as_secs_f64();
    assert!((quickest / 0.02 - 1.0).abs() < 0.016, "{quickest}");
    // A reply in one piece has no pace.
    let whole = World::new();
    let mut ticket = whole.recorder.begin(decision(Role::Baseline, 1, 1), at(0));
    ticket.piece(at(100));
    ticket.finish(OutcomeClass::Ok, at(320));
    assert_eq!(
        whole.recorder.snapshot().unwrap().rows[0].per_token(0.5),
        None
    );
}

#[test]
fn slices_are_counted_apart_and_are_the_baseline_all_the_same() {
    let world = World::new();
    let cursor = world.open(0);
    // Twice as many in each slice as in the one before; every third fails.
    for index in 0..3_usize {
        for control in [false, true] {
            let slice = Slice::new(index, control).unwrap();
            let decision = decision(Role::Baseline, 1, 1).within(slice);
            for n in 0..3 << index {
                let class = if n % 3 == 0 && !control {
                    OutcomeClass::Timeout
                } else {
                    OutcomeClass::Ok
                };
                world.recorder.begin(decision, at(0)).finish(class, at(1));
            }
        }
    }
    let slices = world.recorder.slices(&world.query()).unwrap();
    let of = |index: usize| {
        let mut found = slices.iter();
        let found = found.find(|s| (s.metric.as_str(), s.index) == ("errors", index));
        let found = found.unwrap();
        (found.candidate, found.baseline)
    };
    // The users of a share are those of the smaller shares too.
    assert_eq!(of(0), (Counts::new(3, 1), Counts::new(3, 0)));
    assert_eq!(of(1), (Counts::new(9, 3), Counts::new(9, 0)));
    assert_eq!(of(2), (Counts::new(21, 7), Counts::new(21, 0)));
    let reading = world.read(&cursor, 10).unwrap();
    assert_eq!(
        arms(&reading, "errors"),
        (Counts::default(), Counts::new(42, 7))
    );
    let snapshot = world.recorder.snapshot().unwrap();
    assert_eq!(snapshot.rows.len(), 6);
    assert!(snapshot.rows.iter().all(|row| row.slice().is_some()));
}

#[test]
fn what_a_candidate_really_got_is_known_by_requests_and_by_tokens() {
    let world = World::new();
    for (role, tokens, times) in [
        (Role::Baseline, 10, 6),
        (Role::Control, 20, 2),
        (Role::Candidate, 100, 2),
    ] {
        for _ in 0..times {
            let mut ticket = world.recorder.begin(decision(role, 1, 1), at(0));
            ticket.tokens(tokens);
            ticket.finish(OutcomeClass::Ok, at(1));
        }
    }
    let realised = world.recorder.snapshot().unwrap().realised(Epoch::new(1));
    assert_eq!(realised.request_share(), Some(0.2));
    assert_eq!(realised.token_share(), Some(200.0 / 300.0));
    let none = world.recorder.snapshot().unwrap().realised(Epoch::new(2));
    assert_eq!((none.request_share(), none.token_share()), (None, None));
}

#[test]
fn load_survives_what_its_cells_forget() {
    let world = World::new();
    let of = |epoch| decision(Role::Candidate, epoch, 2);
    let open: Vec<_> = (0..40)
        .map(|epoch| world.recorder.begin(of(epoch), at(0)))
        .collect();
    assert_eq!(world.recorder.in_flight(&version(2)), 40);
    // An old split's request begins after newer ones.
    let late = world.recorder.begin(of(1), at(0));
    assert_eq!(world.recorder.in_flight(&version(2)), 41);
    late.finish(OutcomeClass::Ok, at(1));
    let reading = world.read(&world.open(0), 1).unwrap();
    assert_eq!(reading.heartbeat.unwrap().exposed, 41);
    for (ended, ticket) in open.into_iter().enumerate() {
        assert_eq!(world.recorder.in_flight(&version(2)), 40 - ended as u64);
        ticket.finish(OutcomeClass::Ok, at(1));
    }
    assert_eq!(world.recorder.in_flight(&version(2)), 0);
}

#[test]
fn a_threads_counters_in_hand_count_like_any() {
    let world = World::new();
    let other = Recorder::new(Vec::<String>::new()).unwrap();
    let local = world.recorder.local();
    local.finish(
        local.begin(decision(Role::Baseline, 1, 1), at(0)),
        OutcomeClass::Ok,
        at(1),
    );
    // A ticket of another recorder is recorded there.
    local.finish(
        other.begin(decision(Role::Baseline, 1, 1), at(0)),
        OutcomeClass::Ok,
        at(1),
    );
    drop(world.recorder.begin(decision(Role::Baseline, 1, 1), at(0)));
    drop(other.local().begin(decision(Role::Baseline, 1, 1), at(0)));
    for recorder in [&world.recorder, &other] {
        let snapshot = recorder.snapshot().unwrap();
        let row = &snapshot.rows[0];
        assert_eq!(
            (row.assigned(), row.finished(), row.ended(OutcomeClass::Ok)),
            (2, 2, 1)
        );
    }
}
