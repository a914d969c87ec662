//! What request threads read: a few words behind a sequence lock, in safe Rust.
//!
//! The usual request (a key, nothing lapsed, forced, capped or counted ahead) reads one cache line and the salted secret
//! beside it; what it gets is ready-made. Everything else is worked out under the same lock, without a copy.
//!
//! The words are there twice and are replaced one after the other, so that one copy is whole at any time, and the number says
//! which: a writer whose thread is taken off its core half-way, for milliseconds, holds up nobody and sends nobody elsewhere
//! (the "latch" of Linux's sequence counters).

use super::assign::{self, Secret};
use super::decision::{Decision, Reason, Role, Slice};
use super::hash;
use super::key::{Key, Pin};
use super::versions::VersionSlot;
use crate::sync::{AtomicU64, Ordering, SMALL, fence, spin_loop};
use llm_rollout::{Split, Timestamp};

/// The split in force, as request threads need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    /// Places below it belong to the candidate; at most 2^32.
    pub(crate) candidate_below: u64,
    /// Places from here on belong to the control arm; 2^32 for none.
    pub(crate) control_from: u64,
    /// Of the candidate's places, those from here on are capped.
    pub(crate) capped_from: u64,
    pub(crate) epoch: u64,
    /// When the lease runs out: zero if it has lapsed, the largest number for never.
    pub(crate) deadline: u64,
    pub(crate) salt: u64,
    pub(crate) baseline: VersionSlot,
    /// While it serves anything, or requests are mirrored to it.
    pub(crate) candidate: Option<VersionSlot>,
    /// Mirrored are the requests whose second place is below; at most 2^32.
    pub(crate) mirror_below: u64,
    pub(crate) forced: bool,
    /// Until then the baseline serves the candidate's requests; zero for not at all.
    pub(crate) suspended_until: u64,
    /// What older conversations keep: began before, then the first two above as of then.
    pub(crate) ramp: Vec<[u64; 3]>,
    /// The first of the above as of later stages.
    pub(crate) ahead: Vec<u64>,
}

impl View {
    pub(crate) fn new(
        split: &Split,
        baseline: VersionSlot,
        candidate: Option<VersionSlot>,
        deadline: Option<Timestamp>,
        lapsed: bool,
        forced: bool,
    ) -> Self {
        let share = |share| {
            if candidate.is_some() {
                assign::threshold(share)
            } else {
                0
            }
        };
        let from = |control| assign::END - assign::threshold(control);
        let ramp = split.ramp.iter().map(|raise| {
            let before = raise.before.as_millis();
            [before, share(raise.share), from(raise.control)]
        });
        let ahead = split.ahead.iter().map(|share| assign::threshold(*share));
        Self {
            candidate_below: share(split.share),
            control_from: from(split.control),
            capped_from: assign::END,
            epoch: split.epoch.get(),
            deadline: match deadline {
                _ if lapsed => 0,
                Some(deadline) => deadline.as_millis(),
                None => u64::MAX,
            },
            salt: split.salt,
            baseline,
            candidate,
            mirror_below: share(split.mirror),
            forced,
            suspended_until: 0,
            ramp: ramp.take(RAMP).collect(),
            ahead: ahead.take(AHEAD).collect(),
        }
    }

    /// The decision about a request in this role, by the hash.
    fn decision(&self, role: Role) -> Decision {
        let slot = match (role, self.candidate) {
            (Role::Candidate, Some(candidate)) => candidate,
            _ => self.baseline,
        };
        let controlled = self.control_from < assign::END;
        Decision::new(slot, role, self.epoch, controlled)
    }

    /// Until when the usual is all that there is.
    fn usual_until(&self) -> u64 {
        let unusual = self.forced
            || self.suspended_until > 0
            || self.capped_from < self.candidate_below
            || !self.ahead.is_empty();
        if unusual { 0 } else { self.deadline }
    }
}

const RAMP: usize = if SMALL { 1 } else { Split::LONGEST_RAMP };
const AHEAD: usize = if SMALL { 1 } else { Split::MOST_AHEAD };
const _: () = assert!(Slice::MOST == Split::MOST_AHEAD);

const FORCED: u64 = 1;
const SERVES: u64 = 2;

/// Whose a place is.
#[inline]
pub(crate) fn role(place: u64, candidate_below: u64, control_from: u64) -> Role {
    if place < candidate_below {
        Role::Candidate
    } else if place >= control_from {
        Role::Control
    } else {
        Role::Baseline
    }
}

/// How often a reader tries before it falls back to the baseline: it does so only if splits are published one after the
/// other all the time. One write takes a reader at most three.
const TRIES: usize = if SMALL { 3 } else { 64 };

/// One writer at a time (the caller sees to that), any number of readers. A reader never waits for the writer.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct Published {
    /// Odd while the front is being replaced: the back is whole then. Even, the front is.
    sequence: AtomicU64,
    front: Words,
    /// Replaced before the front is.
    back: Words,
    /// The baseline alone, for readers that cannot wait.
    fallback: AtomicU64,
}

/// What is published, once.
#[repr(C)]
#[derive(Debug)]
struct Words {
    /// First moment at which not everything is as usual any more; zero while the words are being replaced.
    usual_until: AtomicU64,
    candidate_below: AtomicU64,
    control_from: AtomicU64,
    /// By role.
    decisions: [AtomicU64; 3],
    salt: AtomicU64,
    secret: [AtomicU64; hash::WORDS],
    // What follows matters to unusual requests only.
    deadline: AtomicU64,
    flags: AtomicU64,
    capped_from: AtomicU64,
    suspended_until: AtomicU64,
    mirror_below: AtomicU64,
    /// Ends with the first whose moment is zero.
    ramp: [[AtomicU64; 3]; RAMP],
    /// Ends with the first that is zero.
    ahead: [AtomicU64; AHEAD],
}

#[inline]
fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

fn put(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

impl Words {
    fn new() -> Self {
        Self {
            usual_until: AtomicU64::new(0),
            candidate_below: AtomicU64::new(0),
            control_from: AtomicU64::new(0),
            decisions: Default::default(),
            salt: AtomicU64::new(0),
            secret: Default::default(),
            deadline: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            capped_from: AtomicU64::new(0),
            suspended_until: AtomicU64::new(0),
            mirror_below: AtomicU64::new(0),
            ramp: Default::default(),
            ahead: Default::default(),
        }
    }

    fn write(&self, view: &View) {
        put(&self.candidate_below, view.candidate_below);
        put(&self.control_from, view.control_from);
        for (word, role) in self.decisions.iter().zip(Role::ALL) {
            put(word, view.decision(role).bits());
        }
        put(&self.salt, view.salt);
        for (word, value) in self.secret.iter().zip(hash::salted(view.salt)) {
            put(word, value);
        }
        put(&self.deadline, view.deadline);
        let flag = |yes, flag| if yes { flag } else { 0 };
        let serves = view.candidate.is_some() && view.candidate_below > 0;
        put(
            &self.flags,
            flag(view.forced, FORCED) | flag(serves, SERVES),
        );
        put(&self.capped_from, view.capped_from);
        put(&self.suspended_until, view.suspended_until);
        put(&self.mirror_below, view.mirror_below);
        let raises = view.ramp.iter().copied().chain(std::iter::repeat([0; 3]));
        for (words, values) in self.ramp.iter().zip(raises) {
            words
                .iter()
                .zip(values)
                .for_each(|(word, value)| put(word, value));
        }
        let ahead = view.ahead.iter().copied().chain(std::iter::repeat(0));
        self.ahead
            .iter()
            .zip(ahead)
            .for_each(|(word, value)| put(word, value));
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn place(&self, session: &[u8]) -> u64 {
        self.hash(session) >> 32
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn hash(&self, session: &[u8]) -> u64 {
        hash::xxh3(session, || get(&self.salt), |i| get(&self.secret[i]))
    }

    /// The decision about any request.
    fn decide(&self, key: &Key<'_>, now: Timestamp, chance: u64, secret: &Secret) -> Decision {
        let of = |role: Role| {
            let [baseline, candidate, control] = &self.decisions;
            Decision::from_bits(get(match role {
                Role::Baseline => baseline,
                Role::Candidate => candidate,
                Role::Control => control,
            }))
        };
        let instead = |reason| of(Role::Baseline).because(reason).evidence_if(false);
        let flags = get(&self.flags);
        if flags & FORCED != 0 {
            return instead(Reason::Forced);
        }
        if now.as_millis() >= get(&self.deadline) {
            return instead(Reason::Lapsed);
        }
        let suspended = now.as_millis() < get(&self.suspended_until);
        match key.pin {
            Some(Pin::Candidate) if suspended => return instead(Reason::Suspended),
            Some(Pin::Candidate) if flags & SERVES != 0 => {
                let pinned = of(Role::Candidate).because(Reason::Pinned);
                return pinned.evidence_if(false);
            }
            Some(_) => return instead(Reason::Pinned),
            None => {}
        }
        let (place, reason) = match key.session {
            Some(bytes) if key.chosen => {
                let place = secret.place(bytes, get(&self.salt));
                (u64::from(place), Reason::Assigned)
            }
            Some(bytes) => (self.place(bytes), Reason::Assigned),
            None => (self.place(&chance.to_le_bytes()), Reason::Keyless),
        };
        let kept = key.began.and_then(|began| self.kept(began));
        let now_in_force = (get(&self.candidate_below), get(&self.control_from));
        let (below, from) = kept.unwrap_or(now_in_force);
        let role = role(place, below, from);
        if role == Role::Candidate && suspended {
            return instead(Reason::Suspended);
        }
        if role == Role::Candidate && place >= get(&self.capped_from) {
            return instead(Reason::Capped);
        }
        let decision = of(role).because(reason);
        let alike = kept.is_none() || decision.controlled();
        let decision = decision.evidence_if(key.randomised && alike);
        match self.slice(place) {
            Some(slice) if role == Role::Baseline => decision.within(slice),
            _ => decision,
        }
    }

    /// The shares that a conversation keeps that began at this moment; none if the newest are its own.
    fn kept(&self, began: Timestamp) -> Option<(u64, u64)> {
        let mut raises = self.ramp.iter().take_while(|[before, ..]| get(before) != 0);
        let [_, below, from] = raises.find(|[before, ..]| began.as_millis() < get(before))?;
        // Nobody keeps a candidate that serves nothing any more.
        Some((get(below).min(get(&self.candidate_below)), get(from)))
    }

    /// Whether this session came in with the newest raise.
    fn came_in(&self, session: &[u8], chosen: bool, secret: &Secret) -> bool {
        let raises = self.ramp.iter().take_while(|[before, ..]| get(before) != 0);
        // Without any, the candidate had nothing before.
        let before = raises.last().map_or(0, |[_, below, _]| get(below));
        let place = if chosen {
            u64::from(secret.place(session, get(&self.salt)))
        } else {
            self.place(session)
        };
        place >= before && place < get(&self.candidate_below)
    }

    /// The slice that a place will be in.
    fn slice(&self, place: u64) -> Option<Slice> {
        let ahead = self.ahead.iter().map(get).take_while(|below| *below != 0);
        let mut numbered = ahead.enumerate();
        numbered.find_map(|(index, below)| {
            // The last share may be everything: the lower end wins.
            if place < below {
                Slice::new(index, false)
            } else if place >= assign::END - below {
                Slice::new(index, true)
            } else {
                None
            }
        })
    }

    /// The candidate, if this session's requests are mirrored to it now.
    fn mirror(&self, session: &[u8], now: Timestamp) -> Option<VersionSlot> {
        let live = get(&self.flags) & FORCED == 0 && now.as_millis() < get(&self.deadline);
        // Another part of the hash than the one that assigns.
        let second = self.hash(session) & 0xffff_ffff;
        let [_, candidate, _] = &self.decisions;
        (live && second < get(&self.mirror_below))
            .then(|| Decision::from_bits(get(candidate)).slot())
    }
}

impl Published {
    pub(crate) fn new(view: &View) -> Self {
        let published = Self {
            sequence: AtomicU64::new(0),
            front: Words::new(),
            back: Words::new(),
            fallback: AtomicU64::new(0),
        };
        published.write(view);
        published
    }

    /// Replaces what is published. Whoever asks afterwards gets this; whoever asks meanwhile, this or what was before.
    pub(crate) fn write(&self, view: &View) {
        let busy = view.decision(Role::Baseline).because(Reason::Busy);
        put(&self.fallback, busy.evidence_if(false).bits());
        // Whoever sees a word of the back that follows sees that the number has changed since the back was what to read.
        fence(Ordering::Release);
        self.back.write(view);
        // Whoever sees the odd number sees this and the back too, and whoever sees the time at the end sees all the rest.
        put(&self.front.usual_until, 0);
        let sequence = get(&self.sequence);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Release);
        fence(Ordering::Release);
        self.front.write(view);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
        self.front
            .usual_until
            .store(view.usual_until(), Ordering::Release);
    }

    /// The decision about a session in the usual case; none otherwise.
    ///
    /// The words are read where they are needed, and only afterwards is it checked that they are of one write.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn assign(&self, session: &[u8], now: Timestamp) -> Option<Decision> {
        let (front, sequence) = (&self.front, self.sequence.load(Ordering::Acquire));
        // An odd number comes with a time of zero, or with words that will be found to have changed.
        if now.as_millis() >= front.usual_until.load(Ordering::Acquire) {
            return None;
        }
        let place = front.place(session);
        let [baseline, candidate, control] = &front.decisions;
        let (baseline, candidate, control) = (get(baseline), get(candidate), get(control));
        let mut bits = baseline;
        if place < get(&front.candidate_below) {
            bits = candidate;
        }
        if place >= get(&front.control_from) {
            bits = control;
        }
        fence(Ordering::Acquire);
        (get(&self.sequence) == sequence).then_some(Decision::from_bits(bits))
    }

    /// The decision about any request; `chance` is for those without a key. None if one split after the other was
    /// published all the time.
    pub(crate) fn decide(
        &self,
        key: &Key<'_>,
        now: Timestamp,
        chance: u64,
        secret: &Secret,
    ) -> Option<Decision> {
        self.consistent(|words| words.decide(key, now, chance, secret))
    }

    /// Whether this session came in with the newest raise, and does not say when it began.
    pub(crate) fn may_have_flipped(&self, key: &Key<'_>, secret: &Secret) -> bool {
        let (Some(session), None, None) = (key.session, key.pin, key.began) else {
            return false;
        };
        self.consistent(|words| words.came_in(session, key.chosen, secret))
            .unwrap_or(false)
    }

    /// The candidate, if this session's requests are mirrored to it now.
    pub(crate) fn mirror(&self, session: &[u8], now: Timestamp) -> Option<VersionSlot> {
        self.consistent(|words| words.mirror(session, now))
            .flatten()
    }

    /// What is worked out from the copy that is whole; none if that was another one each time.
    fn consistent<T>(&self, work: impl Fn(&Words) -> T) -> Option<T> {
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            let whole = before.is_multiple_of(2);
            let found = work(if whole { &self.front } else { &self.back });
            fence(Ordering::Acquire);
            if get(&self.sequence) == before {
                return Some(found);
            }
            spin_loop();
        }
        None
    }

    /// To the baseline: what a reader does that cannot wait.
    #[cold]
    pub(crate) fn fallback(&self) -> Decision {
        Decision::from_bits(self.fallback.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    fn secret() -> Secret {
        Secret::new([7; 16])
    }

    /// A split in which everything says its number: its epoch is even if all goes to the baseline, odd if to the candidate.
    fn numbered(n: u64) -> View {
        let slot = VersionSlot::new(u16::try_from(n % 60_000).unwrap());
        let all = n % 2 * assign::END;
        View {
            candidate_below: all,
            control_from: assign::END,
            capped_from: assign::END,
            epoch: n,
            deadline: u64::MAX - n,
            salt: n,
            baseline: slot,
            candidate: Some(slot),
            mirror_below: all,
            forced: false,
            suspended_until: 0,
            ramp: vec![[1, all, assign::END]; usize::try_from(n % 17).unwrap()],
            ahead: Vec::new(),
        }
    }

    #[test]
    fn readers_never_see_a_mixture() {
        let published = Published::new(&numbered(0));
        let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        let check = |decision: Decision, last: u64| {
            let epoch = decision.epoch().get();
            assert_eq!(u64::from(decision.slot().index()), epoch % 60_000);
            assert_eq!(decision.role() == Role::Candidate, epoch % 2 == 1);
            assert!(epoch >= last, "went back from {last} to {epoch}");
            seen.fetch_add(1, Ordering::Relaxed);
            epoch
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = 0;
                    let old = Key::session(b"k").began(Timestamp::default());
                    while !done.load(Ordering::Relaxed) {
                        if let Some(decision) = published.assign(b"k", Timestamp::default()) {
                            last = check(decision, last);
                        }
                        if let Some(decision) =
                            published.decide(&old, Timestamp::default(), 0, &secret())
                        {
                            last = check(decision, last);
                        }
                    }
                });
            }
            let begun = std::time::Instant::now();
            let mut n = 0;
            while (n < 100_000 || seen.load(Ordering::Relaxed) < 1_000)
                && begun.elapsed().as_secs() < 30
            {
                n += 1;
                published.write(&numbered(n));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(seen.into_inner() >= 1_000);
    }

    #[test]
    fn a_stuck_writer_neither_holds_up_a_reader_nor_sends_it_elsewhere() {
        let now = Timestamp::default();
        let decide = |published: &Published| {
            let usual = published.assign(b"k", now);
            usual.or_else(|| published.decide(&Key::session(b"k"), now, 0, &secret()))
        };
        let published = Published::new(&numbered(5));
        let before = decide(&published).unwrap();
        assert_eq!(before.role(), Role::Candidate);

        // Its thread is taken off its core while it replaces the back, then while it replaces the front.
        published.back.write(&numbered(6));
        assert_eq!(decide(&published), Some(before));
        published.front.usual_until.store(0, Ordering::Relaxed);
        published.sequence.fetch_add(1, Ordering::Relaxed);
        published.front.decisions[0].store(0, Ordering::Relaxed);
        assert_eq!(published.assign(b"k", now), None);
        let after = decide(&published).unwrap();
        assert_eq!((after.role(), after.epoch().get()), (Role::Baseline, 6));
        assert_eq!(published.mirror(b"k", now), None);
    }

    #[test]
    fn a_reader_that_cannot_wait_serves_the_baseline() {
        let fallback = Published::new(&numbered(5)).fallback();
        assert_eq!(
            (fallback.reason(), fallback.role()),
            (Reason::Busy, Role::Baseline)
        );
        assert_eq!(
            (fallback.slot(), fallback.epoch().get()),
            (VersionSlot::new(5), 5)
        );
        assert!(!fallback.randomised());
    }
}
