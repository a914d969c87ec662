//! Counted events of one arm.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// `k` events among `n` requests (or units of exposure) of one arm.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Requests.
    pub n: u64,
    /// Events among them; at most `n`.
    pub k: u64,
}

/// Counts that cannot be.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadCounts {
    /// More events than requests.
    #[error(
        "{k} events among {n} requests: feed increments of cumulative counters, and count each request at most once"
    )]
    MoreEventsThanRequests {
        /// Requests.
        n: u64,
        /// Events.
        k: u64,
    },
    /// The total no longer fits 64 bits.
    #[error("the sum of the increments exceeds 64 bits: feed increments, not cumulative counters")]
    Overflow,
}

impl Counts {
    /// `k` events among `n` requests, not checked.
    pub const fn new(n: u64, k: u64) -> Self {
        Self { n, k }
    }

    /// Checks that there are no more events than requests.
    ///
    /// # Errors
    /// [`BadCounts::MoreEventsThanRequests`].
    pub const fn check(self) -> Result<(), BadCounts> {
        if self.k > self.n {
            Err(BadCounts::MoreEventsThanRequests {
                n: self.n,
                k: self.k,
            })
        } else {
            Ok(())
        }
    }

    /// Both counts added.
    ///
    /// # Errors
    /// [`BadCounts::Overflow`] beyond 64 bits.
    pub const fn plus(self, more: Self) -> Result<Self, BadCounts> {
        match (self.n.checked_add(more.n), self.k.checked_add(more.k)) {
            (Some(n), Some(k)) => Ok(Self { n, k }),
            _ => Err(BadCounts::Overflow),
        }
    }

    /// What a cumulative counter gained since an earlier reading; `None` where it fell, which means that it was reset: take this reading as the new start
    /// and drop the gain.
    pub const fn since(self, earlier: Self) -> Option<Self> {
        match (self.n.checked_sub(earlier.n), self.k.checked_sub(earlier.k)) {
            (Some(n), Some(k)) if k <= n => Some(Self { n, k }),
            _ => None,
        }
    }

    /// Events per request; `None` without requests.
    pub fn rate(self) -> Option<f64> {
        (self.n > 0).then(|| self.k as f64 / self.n as f64)
    }
}
