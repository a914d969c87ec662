//! Time that passes when the program says so: a day of rollout in a second, and the same in every run.

use async_trait::async_trait;
use llm_rollout::Timestamp;
use llm_serve_adapters::host::Clock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Moved by hand. Clones are one clock.
#[derive(Debug, Clone)]
pub(crate) struct HandClock(Arc<watch::Sender<Timestamp>>);

impl HandClock {
    pub(crate) fn starting(at: Timestamp) -> Self {
        Self(Arc::new(watch::Sender::new(at)))
    }

    /// This much time passes, and everything that waits for it goes on.
    pub(crate) async fn pass(&self, time: Duration) {
        self.0.send_modify(|now| *now = now.after(time));
        // All that this program does is in memory or a small file: what can go on has gone on after a few turns.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        *self.0.borrow()
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.now().after(duration);
        // The sender lives in the clock, so that waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|now| *now >= until).await;
    }
}
