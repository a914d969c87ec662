//! What the request path needs: a router and a recorder.

use crate::host::Result;
use crate::recorder::{Realised, Recorder};
use crate::router::InProcessRouter;
use llm_rollout::{Epoch, Share};
use std::sync::{Arc, Mutex, PoisonError};

/// What the request path needs. Cheap to clone; an endpoint hands it out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DataPlane {
    /// Decides who serves a request.
    pub router: Arc<InProcessRouter>,
    /// Counts what became of it.
    pub recorder: Arc<Recorder>,
    kept: Arc<Mutex<Kept>>,
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
