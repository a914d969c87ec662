//! The clocks of a host.

use crate::host::Clock;
use async_trait::async_trait;
use llm_rollout::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The machine's clock: wall time as of its making, then monotonic, so that it never jumps within a process.
///
/// Under tokio's paused time it is virtual.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Timestamp,
    start: Instant,
}

impl SystemClock {
    /// Starts at the wall time.
    pub fn new() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            origin: Timestamp::from_millis(0).after(unix),
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.origin.after(self.start.elapsed())
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
