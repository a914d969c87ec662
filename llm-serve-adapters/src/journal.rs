//! The endpoint's log: what an entry holds, and what the entries add up to.

use crate::host::{Cursor, Error, SliceCounts, StateStore};
use llm_gates::{Evidence, Window};
use llm_rollout::incident::Incident;
use llm_rollout::{
    Cause, Effect, EndpointId, Epoch, Format, Intent, IntentId, Notice, Outcome, Phase, Plan,
    Response, Rollout, RolloutId, RouterId, Said, Seq, Share, Split, Step, Timestamp,
};
use llm_version_core::VersionId;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// One entry of an endpoint's log. It checks itself, and that it follows the entry before it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Entry {
    /// Format of the entry.
    pub format: Format,
    /// What happened.
    pub event: Event,
    before: Seal,
    seal: Seal,
}

/// Over an entry's place, its event, and the seal before it: finds accidents, not forgers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seal(u64);

impl Seal {
    fn over(before: Self, seq: Seq, event: &[u8]) -> Self {
        let mut hash = Xxh3::with_seed(before.0);
        hash.update(&seq.get().to_le_bytes());
        hash.update(event);
        Self(hash.digest())
    }
}

impl Seal {
    /// What happened, as bytes that check themselves and follow this seal.
    pub(crate) fn close<E: Serialize>(
        self,
        seq: Seq,
        event: &E,
    ) -> Result<(Self, Vec<u8>), serde_json::Error> {
        let raw = serde_json::value::to_raw_value(event)?;
        let seal = Self::over(self, seq, raw.get().as_bytes());
        let bytes = serde_json::to_vec(&Written {
            format: Format::CURRENT,
            before: self,
            seal,
            event: &raw,
        })?;
        Ok((seal, bytes))
    }

    /// From bytes: their format, the seal before them, their own, and what happened.
    pub(crate) fn open<E: DeserializeOwned>(
        log: &EndpointId,
        seq: Seq,
        bytes: &[u8],
    ) -> Result<(Format, Self, Self, E), BadEntry> {
        #[derive(Deserialize)]
        struct Head {
            format: Format,
        }
        let bad = |problem: String| BadEntry {
            endpoint: log.clone(),
            seq,
            problem,
        };
        let unreadable = |e: serde_json::Error| bad(format!("cannot be read: {e}"));
        let head: Head = serde_json::from_slice(bytes).map_err(unreadable)?;
        if !head.format.readable() {
            return Err(bad(format!(
                "has format {}, this program reads {}: run a newer program",
                head.format,
                Format::CURRENT
            )));
        }
        let written: Written<'_> = serde_json::from_slice(bytes).map_err(unreadable)?;
        let Written {
            format,
            before,
            seal,
            event,
        } = written;
        if Self::over(before, seq, event.get().as_bytes()) != seal {
            return Err(bad(
                "is not what was written there: its seal does not fit".to_owned()
            ));
        }
        let event = serde_json::from_str(event.get()).map_err(unreadable)?;
        Ok((format, before, seal, event))
    }
}

impl Serialize for Seal {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Seal {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| D::Error::custom("a seal has 16 hexadecimal digits"))
    }
}

/// An entry as it is written.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    format: Format,
    before: Seal,
    seal: Seal,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// What an entry records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The endpoint's first version: everything before any rollout.
    Bootstrapped {
        /// The version.
        version: VersionId,
        /// When.
        at: Timestamp,
    },
    /// A rollout was submitted.
    Submitted {
        /// As submitted.
        rollout: Box<Rollout>,
        /// Who wanted it, and why, where that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        said: Option<Said>,
    },
    /// A decision of the rollout in progress; with a look, the evidence as of that look, in the same commit: whole, or what the look
    /// has added to what was logged before.
    Stepped {
        /// The decision.
        step: Box<Step>,
        /// The evidence and where its source stood.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checkpoint: Option<Checkpoint>,
        /// What was added to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<Seen>,
    },
    /// A rollout waits for its turn.
    Queued(Box<Queued>),
    /// A rollout that waited for its turn is not wanted any more.
    Withdrawn {
        /// Which.
        rollout: RolloutId,
        /// Why.
        cause: Cause,
        /// When.
        at: Timestamp,
    },
    /// A probe's failures have become an alarm about the version in production.
    Alarmed {
        /// Which probe.
        probe: String,
        /// The rollout that brought the version into production.
        rollout: RolloutId,
        /// What is done about it; `Hold` keeps new rollouts out.
        response: Response,
        /// In one line.
        detail: String,
        /// When.
        at: Timestamp,
    },
    /// No new rollout may begin.
    Barred {
        /// Names the reason.
        name: String,
        /// Who said so, and why.
        said: Said,
    },
    /// A reason against new rollouts is gone.
    Unbarred {
        /// Its name.
        name: String,
        /// Who said so, and why.
        said: Said,
    },
    /// A router is dead: it is not waited for any more.
    RouterRemoved {
        /// Which.
        router: RouterId,
        /// Who said so, and why.
        said: Said,
    },
    /// A router that was removed takes part again.
    RouterRestored {
        /// Which.
        router: RouterId,
        /// Who said so, and why.
        said: Said,
    },
    /// An intent of an earlier rollout is over (a notice that could not be delivered before, say).
    Delivered {
        /// Which.
        intent: IntentId,
        /// How it went.
        outcome: Outcome,
    },
}

/// A rollout that waits for its turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Queued {
    /// Its id.
    pub id: RolloutId,
    /// The version to roll out.
    pub candidate: VersionId,
    /// How.
    pub plan: Plan,
    /// Whether the rollout in progress makes way for it.
    pub replaces: bool,
    /// Who wants it, and why, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Said>,
    /// Since when it waits.
    pub at: Timestamp,
}

/// Evidence as state: saved with its cursor, so that no window counts twice and none is lost in a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Checkpoint {
    /// The evidence so far.
    pub evidence: Evidence,
    /// Where the source stood.
    pub cursor: Cursor,
    /// The epoch that the cursor belongs to.
    pub epoch: Epoch,
    /// What had been counted in this epoch of slices of users that later stages expose; the evidence knows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ahead: Vec<SliceCounts>,
}

/// What a look has added to the evidence: a few hundred bytes, where evidence that has learnt noise takes some tens of thousands.
///
/// A program that does not know it reads on from the last whole evidence and its cursor, and counts the same requests in another
/// window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Seen {
    /// The window.
    pub window: Window,
    /// Where the source stood after it.
    pub cursor: Cursor,
}

/// An entry that cannot be used. Nothing is overwritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} of the log of endpoint {endpoint} {problem}")]
pub struct BadEntry {
    endpoint: EndpointId,
    seq: Seq,
    problem: String,
}

impl Entry {
    /// The entry that follows what the ledger holds, and its bytes (JSON).
    ///
    /// # Errors
    /// When the event holds what JSON cannot, such as a number that is not finite.
    pub fn after(ledger: &Ledger, event: Event) -> Result<(Self, Vec<u8>), serde_json::Error> {
        let before = ledger.seal;
        let (seal, bytes) = before.close(ledger.next, &event)?;
        let entry = Self {
            format: Format::CURRENT,
            event,
            before,
            seal,
        };
        Ok((entry, bytes))
    }

    /// From bytes. Fields of a newer minor format are ignored; another major, and an entry that has been damaged, is refused.
    ///
    /// # Errors
    /// Names the endpoint and the entry.
    pub fn decode(endpoint: &EndpointId, seq: Seq, bytes: &[u8]) -> Result<Self, BadEntry> {
        let (format, before, seal, event) = Seal::open(endpoint, seq, bytes)?;
        Ok(Self {
            format,
            event,
            before,
            seal,
        })
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct End {
    /// Which rollout.
    pub rollout: RolloutId,
    /// What it wanted to replace.
    pub baseline: VersionId,
    /// With what.
    pub candidate: VersionId,
    /// One of the ends of [`Phase`].
    pub phase: Phase,
    /// Why it was not promoted.
    pub cause: Option<Cause>,
    /// Requests that the candidate was given, as last heard.
    pub exposed: u64,
    /// The largest share that it was given.
    pub largest_share: Share,
    /// When it ended.
    pub at: Timestamp,
}

/// What the entries of an endpoint's log add up to.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Ledger {
    /// Position of the next entry.
    pub next: Seq,
    /// The version in production, apart from any rollout in progress.
    pub production: Option<VersionId>,
    /// The newest epoch.
    pub epoch: Epoch,
    /// The latest moment that an entry names.
    pub latest: Timestamp,
    /// The newest rollout, until the next is submitted.
    pub rollout: Option<Rollout>,
    /// Its evidence.
    pub checkpoint: Option<Checkpoint>,
    /// The largest share that it was given.
    pub largest_share: Share,
    /// How earlier rollouts ended.
    pub ended: BTreeMap<RolloutId, End>,
    /// Intents of ended rollouts that are not over.
    pub outbox: BTreeMap<IntentId, Intent>,
    /// Rollouts that wait for their turn, in order.
    pub queue: Vec<Queued>,
    /// Named reasons why no new rollout may begin.
    pub bars: BTreeMap<String, Said>,
    /// Routers that are not waited for.
    pub removed: BTreeMap<RouterId, Said>,
    /// The rollout that brought the version into production, and how it is watched.
    pub watched: Option<Watched>,
    /// The versions that have been in production, oldest first and without the one that is: at most [`HISTORY`].
    pub history: Vec<VersionId>,
    seal: Seal,
}

/// A version in production, and how its plan wants it watched.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Watched {
    /// The rollout that promoted it.
    pub rollout: RolloutId,
    /// The version.
    pub version: VersionId,
    /// With `[[watch]]`.
    pub plan: Plan,
    /// Since when it is in production for good.
    pub since: Timestamp,
}

/// Intents of ended rollouts that are kept for another try.
const OUTBOX: usize = 256;
/// Versions of the past that are remembered as ways back.
pub const HISTORY: usize = 32;
/// Rollouts that may wait for their turn.
pub const QUEUE: usize = 16;

impl Ledger {
    /// Adds an entry.
    ///
    /// # Errors
    /// The entry does not follow; nothing has changed.
    pub fn fold(&mut self, endpoint: &EndpointId, seq: Seq, entry: &Entry) -> Result<(), BadEntry> {
        if let Err(problem) = self.admits(seq, entry) {
            return Err(BadEntry {
                endpoint: endpoint.clone(),
                seq,
                problem,
            });
        }
        match &entry.event {
            Event::Bootstrapped { version, at } => {
                self.production = Some(version.clone());
                self.latest = self.latest.max(*at);
            }
            Event::Submitted { rollout, .. } => self.submitted(rollout),
            Event::Stepped {
                step,
                checkpoint,
                seen,
            } => {
                if let Some(seen) = seen {
                    self.seen(seen);
                }
                self.stepped(step, checkpoint.as_ref());
            }
            Event::Queued(queued) => {
                self.latest = self.latest.max(queued.at);
                self.queue.push((**queued).clone());
            }
            Event::Withdrawn { rollout, cause, at } => self.withdrawn(rollout, cause, *at),
            Event::Alarmed {
                probe,
                rollout,
                response,
                detail,
                at,
            } => {
                self.latest = self.latest.max(*at);
                if *response == Response::Hold {
                    let said = Said {
                        by: "watch".to_owned(),
                        why: detail.clone(),
                        at: *at,
                    };
                    self.bars.insert(format!("watch-{probe}"), said);
                }
                let notice = Notice {
                    page: *response > Response::Warn,
                    rollout: rollout.clone(),
                    text: format!("watch {probe:?}: {detail}"),
                };
                let id = IntentId { seq, index: 0 };
                let effect = Effect::Notify(notice);
                self.outbox.insert(id, Intent { id, effect });
                self.bound_outbox();
            }
            Event::Barred { name, said } => {
                self.bars.insert(name.clone(), said.clone());
            }
            Event::Unbarred { name, .. } => {
                self.bars.remove(name);
            }
            Event::RouterRemoved { router, said } => {
                self.removed.insert(router.clone(), said.clone());
            }
            Event::RouterRestored { router, .. } => {
                self.removed.remove(router);
            }
            Event::Delivered { intent, .. } => {
                self.outbox.remove(intent);
            }
        }
        self.next = seq.next();
        self.seal = entry.seal;
        Ok(())
    }

    /// Whether this entry may stand here. What it admits, [`Self::fold`] takes.
    fn admits(&self, seq: Seq, entry: &Entry) -> Result<(), String> {
        if seq != self.next {
            return Err(format!("is not the next one, {}", self.next));
        }
        if entry.before != self.seal {
            return Err(
                "does not follow the one before it: one of them has been replaced".to_owned(),
            );
        }
        let busy = || self.rollout.as_ref().is_some_and(|r| !r.is_settled());
        match &entry.event {
            Event::Bootstrapped { .. } if self.production.is_some() => {
                Err("starts an endpoint that has been started".to_owned())
            }
            Event::Submitted { .. } if busy() => {
                Err("submits a rollout while another is in progress".to_owned())
            }
            Event::Stepped { step, .. } => match &self.rollout {
                None => Err("is a step of no rollout".to_owned()),
                Some(rollout) => rollout.follows(step).map_err(|e| e.to_string()),
            },
            _ => Ok(()),
        }
    }

    fn bound_outbox(&mut self) {
        while self.outbox.len() > OUTBOX {
            self.outbox.pop_first();
        }
    }

    fn submitted(&mut self, rollout: &Rollout) {
        if let Some(over) = self.rollout.take() {
            // A retirement that is late must not take away what this rollout serves: a newer owner's order would not be refused.
            let needed = |v: &VersionId| v == rollout.baseline() || v == rollout.candidate();
            let kept = |e: &Effect| match e {
                Effect::Notify(_) | Effect::Prepare(_) | Effect::Record(_) => true,
                Effect::Retire(version) => !needed(version),
                _ => false,
            };
            let kept = over.pending().iter().filter(|i| kept(&i.effect));
            self.outbox.extend(kept.map(|i| (i.id, i.clone())));
            self.bound_outbox();
        }
        self.queue.retain(|queued| queued.id != *rollout.id());
        self.latest = self.latest.max(rollout.state().since);
        self.rollout = Some(rollout.clone());
        self.checkpoint = None;
        self.largest_share = Share::NONE;
    }

    /// Adds a window to the evidence, in the stage that the rollout is in before the step. What a later version of the statistics should
    /// refuse counts as nothing.
    fn seen(&mut self, seen: &Seen) {
        let sight = self.rollout.as_ref().and_then(|rollout| {
            let gates = rollout.plan().gate_plan(rollout.phase().stage()?)?;
            Some((gates, rollout.state().split.share))
        });
        let (Some((gates, share)), Some(checkpoint)) = (sight, &mut self.checkpoint) else {
            return;
        };
        if checkpoint.epoch.get() == seen.window.epoch {
            checkpoint.evidence.expose(share.basis_points());
            // In either case it is over.
            drop(checkpoint.evidence.look(&gates, &seen.window));
            checkpoint.cursor = seen.cursor.clone();
        }
    }

    fn stepped(&mut self, step: &Step, checkpoint: Option<&Checkpoint>) {
        let Some(rollout) = &mut self.rollout else {
            return;
        };
        if rollout.apply(step).is_err() {
            return;
        }
        if let Some(checkpoint) = checkpoint {
            self.checkpoint = Some(checkpoint.clone());
        }
        self.latest = self.latest.max(step.at);
        let split = &step.state.split;
        self.epoch = self.epoch.max(split.epoch);
        self.largest_share = self.largest_share.max(split.share);
        // Who answers without a rollout: changed by a promotion, and by the way back from one.
        self.production = Some(split.baseline.clone());
        let phase = step.state.phase;
        if !phase.is_end() || self.ended.contains_key(rollout.id()) {
            return;
        }
        if phase == Phase::Promoted {
            self.watched = Some(Watched {
                rollout: rollout.id().clone(),
                version: rollout.candidate().clone(),
                plan: rollout.plan().clone(),
                since: step.at,
            });
            self.history.retain(|v| v != rollout.candidate());
            self.history.push(rollout.baseline().clone());
            let past = self.history.len().saturating_sub(HISTORY);
            self.history.drain(..past);
        }
        let end = End {
            rollout: rollout.id().clone(),
            baseline: rollout.baseline().clone(),
            candidate: rollout.candidate().clone(),
            phase,
            cause: step.state.cause.clone(),
            exposed: step.state.exposed,
            largest_share: self.largest_share,
            at: step.at,
        };
        self.ended.insert(end.rollout.clone(), end);
    }

    fn withdrawn(&mut self, id: &RolloutId, cause: &Cause, at: Timestamp) {
        let Some(place) = self.queue.iter().position(|queued| queued.id == *id) else {
            return;
        };
        let Queued { id, candidate, .. } = self.queue.remove(place);
        self.latest = self.latest.max(at);
        if let Some(production) = &self.production {
            let end = End {
                rollout: id.clone(),
                baseline: production.clone(),
                candidate,
                phase: Phase::Blocked,
                cause: Some(cause.clone()),
                exposed: 0,
                largest_share: Share::NONE,
                at,
            };
            self.ended.insert(id, end);
        }
    }

    /// The split that replicas are to serve once this event is folded in, where that is another than now.
    pub(crate) fn split_after(&self, event: &Event) -> Option<Split> {
        let after = match event {
            Event::Bootstrapped { version, .. } => Split::steady(None, version.clone(), self.epoch),
            Event::Stepped { step, .. } if step.state.routed.is_some() => step.state.split.clone(),
            Event::Submitted { .. } => Split::steady(None, self.production.clone()?, self.epoch),
            _ => return None,
        };
        (self.split().as_ref() != Some(&after)).then_some(after)
    }

    /// The split that replicas are to serve; none before the first entry.
    pub fn split(&self) -> Option<Split> {
        match &self.rollout {
            Some(rollout) if rollout.state().routed.is_some() => {
                Some(rollout.state().split.clone())
            }
            _ => Some(Split::steady(None, self.production.clone()?, self.epoch)),
        }
    }
}

/// What happened in a rollout, from the endpoint's log; none if the log does not know it.
///
/// # Errors
/// The store cannot be reached, or an entry is damaged.
pub async fn incident(
    store: &dyn StateStore,
    endpoint: &EndpointId,
    id: &RolloutId,
) -> Result<Option<Incident>, Error> {
    let (mut next, mut begun, mut steps, mut over) = (Seq::default(), None, Vec::new(), false);
    loop {
        let page = store.read(endpoint, next).await?;
        let last = page.entries.is_empty() || !page.more;
        for (seq, bytes) in page.entries {
            next = seq.next();
            let entry = Entry::decode(endpoint, seq, &bytes)
                .map_err(|e| Error::permanent(e.to_string()))?;
            match entry.event {
                Event::Submitted { rollout, .. } if rollout.id() == id => begun = Some(rollout),
                Event::Submitted { .. } => over = begun.is_some(),
                Event::Stepped { step, .. } if begun.is_some() && !over => {
                    steps.push(*step);
                }
                _ => {}
            }
        }
        if last {
            break;
        }
    }
    Ok(begun.map(|rollout| Incident::new(&rollout, &steps)))
}
