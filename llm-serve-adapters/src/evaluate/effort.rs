//! How hard an evaluator tries.

use crate::host::{Error, ErrorKind, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The first pause before another try; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A deadline beyond this is this.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// How many requests at once, how long each may take, how often it is tried, and when all of them must be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    concurrency: usize,
    patience: Duration,
    tries: u32,
    deadline: Duration,
}

impl Default for Effort {
    /// Four at once, a minute and three tries each, half an hour for all.
    fn default() -> Self {
        Self {
            concurrency: 4,
            patience: Duration::from_secs(60),
            tries: 3,
            deadline: Duration::from_secs(1800),
        }
    }
}

impl Effort {
    /// So many requests at once; at least one.
    #[must_use]
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests.max(1);
        self
    }

    /// How long one try of one request may take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How often a request is tried that fails in a way that may pass; at least once.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries.max(1);
        self
    }

    /// When all requests of one evaluator or scorer must be over; a week at most.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(LONGEST);
        self
    }

    /// Asks `n` things, each by its index and within the time given, and gives the answers in the order of the indices, whatever the order in
    /// which they came. What fails as `Transient` is tried again.
    ///
    /// # Errors
    /// `Transient` if the deadline passes first; what each of them failed with is in the list.
    pub async fn each<'a, R: Send + 'a>(
        &'a self,
        n: usize,
        ask: &'a (dyn Fn(usize, Duration) -> BoxFuture<'a, Result<R>> + Send + Sync + 'a),
    ) -> Result<Vec<Result<R>>> {
        let end = Instant::now() + self.deadline.min(LONGEST);
        let all: Vec<BoxFuture<'a, Option<Result<R>>>> = (0..n)
            .map(|index| Box::pin(self.one(index, end, ask)) as _)
            .collect();
        let mut answers = Vec::with_capacity(n);
        let mut stream = stream::iter(all).buffered(self.concurrency.max(1));
        while let Some(answer) = stream.next().await {
            let Some(answer) = answer else {
                return Err(Error::transient(format!(
                    "{} of {n} requests were over within {:?}: give the evaluation more time, more requests at once, or fewer cases",
                    answers.len(),
                    self.deadline
                )));
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    /// One of them; none if the deadline has passed.
    async fn one<'a, R: Send + 'a>(
        &'a self,
        index: usize,
        end: Instant,
        ask: &'a (dyn Fn(usize, Duration) -> BoxFuture<'a, Result<R>> + Send + Sync + 'a),
    ) -> Option<Result<R>> {
        let mut pause = FIRST_PAUSE;
        for more in (0..self.tries.max(1)).rev() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let within = self.patience.min(left);
            let answer = match timeout(within, ask(index, within)).await {
                Ok(answer) => answer,
                Err(_) if within == left => return None,
                Err(_) => Err(Error::transient(format!("no answer within {within:?}"))),
            };
            match answer {
                Err(e) if more > 0 && e.kind() == ErrorKind::Transient => {
                    let left = end.saturating_duration_since(Instant::now());
                    sleep(pause.min(left)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answer => return Some(answer),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn answers_keep_their_order_and_no_more_run_than_may() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let effort = Effort::default().concurrency(3);
        let answers = effort
            .each(20, &|index, _| {
                let (running, most) = (&running, &most);
                Box::pin(async move {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    sleep(Duration::from_millis(((index * 7) % 5) as u64)).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(index)
                })
            })
            .await
            .unwrap();
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..20).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_nothing_else() {
        let tries = Mutex::new([0u32; 3]);
        let effort = Effort::default().tries(3);
        let answers = effort
            .each(3, &|index, _| {
                let tries = &tries;
                Box::pin(async move {
                    let mut tries = tries.lock().unwrap();
                    tries[index] += 1;
                    match index {
                        0 if tries[0] < 3 => Err(Error::transient("busy")),
                        1 => Err(Error::permanent("no")),
                        2 => Err(Error::transient("down")),
                        _ => Ok(()),
                    }
                })
            })
            .await
            .unwrap();
        assert_eq!(*tries.lock().unwrap(), [3, 1, 3]);
        assert!(answers[0].is_ok() && answers[1].is_err() && answers[2].is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_beyond_patience_or_deadline() {
        let effort = Effort::default()
            .patience(Duration::from_secs(2))
            .tries(2)
            .deadline(Duration::from_secs(60));
        let began = Instant::now();
        let stuck = effort
            .each::<()>(1, &|_, _| Box::pin(std::future::pending()))
            .await
            .unwrap();
        assert!(
            stuck[0]
                .as_ref()
                .is_err_and(|e| e.kind() == ErrorKind::Transient)
        );
        assert!(began.elapsed() < Duration::from_secs(5));
        let effort = effort.deadline(Duration::from_secs(3)).concurrency(1);
        let began = Instant::now();
        let late = effort
            .each::<()>(10, &|_, _| Box::pin(std::future::pending()))
            .await
            .unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Transient);
        assert!(late.to_string().contains("of 10 requests"), "{late}");
        assert!(began.elapsed() <= Duration::from_secs(4));
    }
}
