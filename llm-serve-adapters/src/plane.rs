//! What the request path needs: a router and a recorder.

use crate::host::Result;
use crate::recorder::{OutcomeClass, Realised, Recorder};
use crate::router::{Decision, InProcessRouter, Key, Role, VersionSlot};
use llm_rollout::{Epoch, Share, Timestamp};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the request path needs. Cheap to clone; an endpoint hands it out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DataPlane {
    /// Decides who serves a request.
    pub router: Arc<InProcessRouter>,
    /// Counts what became of it.
    pub recorder: Arc<Recorder>,
    kept: Arc<Mutex<Kept>>,
    flips: Arc<AtomicU64>,
    breaker: Option<Arc<(Breaker, AtomicU32)>>,
}

/// Suspends a candidate that fails again and again, long before a verdict could: its requests go to the baseline, for a while.
/// It only ever takes away from the candidate; what it has failed stays charged to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain data: hosts write it down")]
pub struct Breaker {
    /// So many requests of the candidate in a row that fail by its fault.
    pub failures: u32,
    /// For so long nobody gets it. The first request after that which fails suspends it again.
    pub pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 5,
            pause: Duration::from_secs(30),
        }
    }
}

/// How much a candidate may get at the most, of requests, of output tokens, or of both: whatever the split says, and however
/// unlike sessions are. A share by tokens is a share by requests with the same number as its cap on tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain data: hosts write it down")]
pub struct Caps {
    /// Of the requests.
    pub requests: Option<Share>,
    /// Of the output tokens.
    pub tokens: Option<Share>,
}

impl Caps {
    /// How many times too much the candidate has got; 1 for exactly as much as it may. None if nothing says.
    fn excess(self, realised: &Realised) -> Option<f64> {
        let over = |share: Option<f64>, cap: Option<Share>| {
            let cap = f64::from(cap?.basis_points().max(1)) / 10_000.0;
            Some(share? / cap)
        };
        let requests = over(realised.request_share(), self.requests);
        let tokens = over(realised.token_share(), self.tokens);
        requests.into_iter().chain(tokens).reduce(f64::max)
    }
}

/// How caps were kept so far.
#[derive(Debug)]
struct Kept {
    epoch: Epoch,
    before: Realised,
    /// The part of its share that the candidate is served, 0 to 1.
    part: f64,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            epoch: Epoch::default(),
            before: Realised::default(),
            part: 1.0,
        }
    }
}

/// With fewer requests since the last time nothing is concluded.
const FEWEST: u64 = 200;

impl DataPlane {
    /// Of a router and a recorder.
    pub fn new(router: Arc<InProcessRouter>, recorder: Arc<Recorder>) -> Self {
        Self {
            router,
            recorder,
            kept: Arc::default(),
            flips: Arc::default(),
            breaker: None,
        }
    }

    /// As [`InProcessRouter::decide`], and counts what may have flipped: see [`Self::flips`].
    pub fn decide(&self, key: &Key<'_>, now: Timestamp) -> Decision {
        let decision = self.router.decide(key, now);
        if decision.role() == Role::Candidate && self.router.may_have_flipped(key) {
            self.flips.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    /// Requests that the candidate was given whose session says nothing about when it began and came in with the newest raise
    /// of the share: if its conversation is older than the raise, it has changed its version in the middle, once. The layer
    /// counts them; other hosts call [`Self::decide`]. Keys with a session start ([`Key::began`]) do not flip.
    pub fn flips(&self) -> u64 {
        self.flips.load(Ordering::Relaxed)
    }

    /// With a circuit breaker. The layer tells it how requests end; other hosts call [`Self::observe`].
    #[must_use]
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = Some(Arc::new((breaker, AtomicU32::new(0))));
        self
    }

    /// Tells the circuit breaker how a request has ended.
    pub fn observe(&self, decision: Decision, class: OutcomeClass, now: Timestamp) {
        let Some((breaker, failed)) = self.breaker.as_deref() else {
            return;
        };
        if decision.role() != Role::Candidate {
            return;
        }
        if class.is_fault() {
            let failures = failed.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if failures >= breaker.failures {
                // One more is enough then.
                failed.store(breaker.failures.saturating_sub(1), Ordering::Relaxed);
                self.router.suspend(now.after(breaker.pause));
            }
        } else if class == OutcomeClass::Ok && failed.load(Ordering::Relaxed) > 0 {
            failed.store(0, Ordering::Relaxed);
        }
    }

    /// Asks the candidate for a real reply again and again, and suspends it as long as it gives none: health of a process says
    /// little about a model. Runs until it is dropped.
    ///
    /// `probe` generates a few tokens with the version of this slot and says whether that went well; a probe that takes longer than
    /// `every` has not. `failures` of them in a row suspend, one that goes well resumes.
    pub async fn watch_health<F, R>(&self, every: Duration, failures: u32, probe: F)
    where
        F: Fn(VersionSlot) -> R,
        R: Future<Output = bool>,
    {
        let mut failed = 0_u32;
        loop {
            tokio::time::sleep(every).await;
            let Some(candidate) = self.router.candidate() else {
                failed = 0;
                continue;
            };
            let well = tokio::time::timeout(every, probe(candidate))
                .await
                .unwrap_or(false);
            if well {
                if failed >= failures {
                    self.router.suspend(Timestamp::default());
                }
                failed = 0;
                continue;
            }
            failed = failed.saturating_add(1);
            if failed >= failures {
                // Until two more probes could have gone well.
                self.router
                    .suspend(self.router.now().after(every.saturating_mul(4)));
            }
        }
    }

    /// Keeps the candidate within these caps: compares what it has got since the last call with what it may get, and lets the
    /// router serve so much of its share. Call it about every ten seconds. What has been realised of both in the epoch comes back.
    ///
    /// The keys that came in last go back to the baseline first, so that the others stay where they are; what is capped is
    /// no evidence. A candidate without a share has nothing to cap.
    ///
    /// # Errors
    /// `Transient`: the recorder could not be read. Nothing has changed.
    pub fn keep_within(&self, caps: &Caps) -> Result<Realised> {
        let epoch = self.router.state().split.epoch;
        let realised = self.recorder.snapshot()?.realised(epoch);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.epoch != epoch {
            *kept = Kept {
                epoch,
                part: kept.part,
                ..Kept::default()
            };
        }
        let news = realised.since(&kept.before);
        if news.requests < FEWEST {
            return Ok(realised);
        }
        if let Some(excess) = caps.excess(&news) {
            // Towards what would have been right, at most half or double: a burst is no reason to give everything up.
            let part = kept.part / excess.clamp(0.5, 2.0);
            kept.part = part.clamp(0.01, 1.0);
        } else {
            kept.part = 1.0;
        }
        kept.before = realised;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most 10 000"
        )]
        let points = (kept.part * 10_000.0) as u16;
        self.router.cap(Share::new(points).unwrap_or(Share::ALL));
        Ok(realised)
    }
}

impl From<&DataPlane> for DataPlane {
    fn from(plane: &DataPlane) -> Self {
        plane.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::TrafficRouter as _;
    use crate::router::tests::{durable::Virtual, first, forward};
    use llm_rollout::RouterId;

    /// A plane whose candidate has 20 % of the sessions, each of whose replies is so many tokens long.
    fn serve(caps: Caps, candidate_tokens: u64, rounds: u32) -> (f64, f64) {
        let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), first())
            .clock(Arc::<Virtual>::default())
            .open()
            .unwrap();
        let order = forward(1, 1, 1, 20.0, router.state().clock);
        futures_util::future::FutureExt::now_or_never(router.set(&order))
            .unwrap()
            .unwrap();
        let recorder = Recorder::new(Vec::<String>::new()).unwrap();
        let plane = DataPlane::new(Arc::new(router), Arc::new(recorder));
        let now = plane.router.now();
        let mut last = Realised::default();
        let mut news = Realised::default();
        for round in 0..rounds {
            for n in 0..2_000 {
                let key = (n, round).0.to_string();
                let decision = plane.router.decide(&Key::session(key.as_bytes()), now);
                let mut ticket = plane.recorder.begin(decision, now);
                ticket.tokens(if decision.role() == Role::Candidate {
                    candidate_tokens
                } else {
                    10
                });
                ticket.finish(OutcomeClass::Ok, now);
            }
            let realised = plane.keep_within(&caps).unwrap();
            news = realised.since(&last);
            last = realised;
        }
        (news.request_share().unwrap(), news.token_share().unwrap())
    }

    #[test]
    fn a_candidate_is_kept_within_its_caps() {
        let share = |percent| Some(Share::from_percent(percent).unwrap());
        let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.2;
        let (requests, tokens) = serve(Caps::default(), 50, 2);
        assert!(
            near(requests, 0.2) && near(tokens, 0.55),
            "{requests} {tokens}"
        );
        // A share by requests whose replies are five times as long is capped by tokens.
        let (requests, tokens) = serve(
            Caps {
                tokens: share(20.0),
                requests: None,
            },
            50,
            12,
        );
        assert!(near(tokens, 0.2) && requests < 0.1, "{requests} {tokens}");
        let (requests, _) = serve(
            Caps {
                tokens: share(90.0),
                requests: share(5.0),
            },
            50,
            12,
        );
        assert!(near(requests, 0.05), "{requests}");
        // What is within its cap keeps its share.
        let (requests, _) = serve(
            Caps {
                tokens: share(60.0),
                requests: share(25.0),
            },
            10,
            12,
        );
        assert!(near(requests, 0.2), "{requests}");
    }
}
