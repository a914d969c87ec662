//! Mirrored requests: what a candidate would have said, off the user's path.
//!
//! A [`Shadow`] has a concurrency limit, a queue, a deadline and a token budget of its own; what exceeds any of them is skipped
//! and counted. Only requests that the host calls safe are mirrored: one whose tools would act twice is not. Replies are paired
//! with the baseline's and compared by a [`Compare`]; pairs are kept for review only where a host switches that on.
//!
//! ```
//! use llm_serve_adapters::shadow::{Limits, Normalised, Request, Shadow};
//! # async fn ask_candidate() -> Result<String, String> { Ok(String::new()) }
//! # async fn with(plane: &llm_serve_adapters::DataPlane, session: &[u8]) {
//!
//! let shadow = Shadow::new(Limits::default(), Normalised);
//! // On the request path: never waits.
//! if let Some(candidate) = plane.router.mirror(session, plane.router.now()) {
//!     let pair = shadow.offer(candidate, Request::safe().tokens(400), ask_candidate);
//!     // ... the user's own request ...
//!     pair.answered("what the user got");
//! }
//! # }
//! ```

use crate::router::VersionSlot;
use async_trait::async_trait;
use llm_gates::quality::{Comparisons, Preference};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

/// How much may be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Limits {
    /// Requests that the candidate works on at a time.
    pub concurrent: usize,
    /// Requests that may wait for their turn; further ones are skipped.
    pub queue: usize,
    /// How long one may take, waiting included. The baseline's reply is waited for as long.
    pub deadline: Duration,
    /// Tokens that may be spent in all, as the host estimates them.
    pub tokens: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent: 8,
            queue: 64,
            deadline: Duration::from_secs(60),
            tokens: u64::MAX,
        }
    }
}

/// What a host knows about a request that might be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    safe: bool,
    tokens: u64,
}

impl Request {
    /// Answering it twice changes nothing in the world: no tool acts, nothing is charged or sent.
    pub const fn safe() -> Self {
        Self {
            safe: true,
            tokens: 0,
        }
    }

    /// It may act: counted as skipped, never mirrored.
    pub const fn acting() -> Self {
        Self {
            safe: false,
            tokens: 0,
        }
    }

    /// Safe unless it brings tools along, adds to a conversation that the server keeps, or runs in the background (a chat,
    /// completion or response body).
    pub fn of_body(body: &serde_json::Value) -> Self {
        let brings = |name: &str| match body.get(name) {
            None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => false,
            Some(serde_json::Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        let safe = ![
            "tools",
            "functions",
            "mcp_servers",
            "web_search_options",
            "conversation",
            "background",
        ]
        .into_iter()
        .any(brings);
        Self { safe, tokens: 0 }
    }

    /// What it will cost at the most, prompt and reply.
    #[must_use]
    pub const fn tokens(mut self, tokens: u64) -> Self {
        self.tokens = tokens;
        self
    }
}

/// Which of two replies to one request is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a comparison of two has three outcomes"
)]
pub enum Better {
    /// What the user got.
    Baseline,
    /// Neither.
    Neither,
    /// What the candidate would have said.
    Candidate,
}

/// What a comparison says of two replies.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data, given by hosts")]
pub struct Compared {
    /// From 0 (nothing in common) to 1 (as good as the same).
    pub alike: f64,
    /// Which one is better.
    pub better: Better,
}

impl Compared {
    /// By likeness alone: replies at least this alike are a tie, others count against the candidate, since nobody can say that they
    /// are better. A gate's margin is then the part of the replies that may differ. None unless the likeness is one.
    pub fn by_likeness(alike: f64, tie_from: f64) -> Option<Self> {
        let better = if alike >= tie_from {
            Better::Neither
        } else {
            Better::Baseline
        };
        (0.0..=1.0)
            .contains(&alike)
            .then_some(Self { alike, better })
    }
}

/// Compares two replies to one request.
#[async_trait]
pub trait Compare: Send + Sync + 'static {
    /// What there is to say of them. None: it cannot tell, which is no pair.
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared>;
}

/// The same bytes (a tie), or not (a loss).
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "has nothing to say")]
pub struct Exact;

#[async_trait]
impl Compare for Exact {
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared> {
        Compared::by_likeness(f64::from(u8::from(baseline == candidate)), 1.0)
    }
}

/// The same words (a tie) or not (a loss), whatever case, spaces and punctuation at their ends.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "has nothing to say")]
pub struct Normalised;

impl Normalised {
    fn words(text: &str) -> impl Iterator<Item = String> {
        text.split_whitespace()
            .map(|word| {
                word.trim_matches(|c: char| c.is_ascii_punctuation())
                    .to_lowercase()
            })
            .filter(|word| !word.is_empty())
    }
}

#[async_trait]
impl Compare for Normalised {
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared> {
        let same = Self::words(baseline).eq(Self::words(candidate));
        Compared::by_likeness(f64::from(u8::from(same)), 1.0)
    }
}

/// The cosine of two embeddings, those of opposite direction as 0; a tie from a likeness on, else a loss.
#[derive(Clone)]
pub struct Embedding<F> {
    embed: F,
    tie_from: f64,
}

impl<F> Embedding<F> {
    /// By this function, a model's as a rule; replies at least this alike are a tie.
    pub const fn new(embed: F, tie_from: f64) -> Self {
        Self { embed, tie_from }
    }
}

impl<F> fmt::Debug for Embedding<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedding")
            .field("tie_from", &self.tie_from)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, R> Compare for Embedding<F>
where
    F: Fn(String) -> R + Send + Sync + 'static,
    R: Future<Output = Option<Vec<f32>>> + Send,
{
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared> {
        let a = (self.embed)(baseline.to_owned()).await?;
        let b = (self.embed)(candidate.to_owned()).await?;
        if a.len() != b.len() {
            return None;
        }
        let dot = |x: &[f32], y: &[f32]| {
            x.iter()
                .zip(y)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum::<f64>()
        };
        let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        let alike = cosine.is_finite().then(|| cosine.clamp(0.0, 1.0))?;
        Compared::by_likeness(alike, self.tie_from)
    }
}

/// A judge that says which of two replies is better. It is asked in both orders, since judges prefer a place: a reply is better
/// where it is preferred in both, or in one with a tie in the other.
#[derive(Clone)]
pub struct Judge<F>(F);

impl<F> Judge<F> {
    /// The judge is asked with the first reply and the second.
    pub const fn new(ask: F) -> Self {
        Self(ask)
    }
}

impl<F> fmt::Debug for Judge<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, R> Compare for Judge<F>
where
    F: Fn(String, String) -> R + Send + Sync + 'static,
    R: Future<Output = Option<Preference>> + Send,
{
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared> {
        let score = |said: Preference| match said {
            Preference::First => 1,
            Preference::Tie => 0,
            Preference::Second => -1,
        };
        let first = (self.0)(candidate.to_owned(), baseline.to_owned()).await?;
        let second = (self.0)(baseline.to_owned(), candidate.to_owned()).await?;
        Some(match score(first) - score(second) {
            ..0 => Compared {
                alike: 0.0,
                better: Better::Baseline,
            },
            0 => Compared {
                alike: 1.0,
                better: Better::Neither,
            },
            1.. => Compared {
                alike: 0.0,
                better: Better::Candidate,
            },
        })
    }
}

/// Two replies to one request, kept for review.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// What the user got.
    pub baseline: String,
    /// What the candidate would have said.
    pub candidate: String,
    /// How alike they are.
    pub alike: f64,
    expires: Instant,
}

/// What of pairs is kept, where a host switches that on: the least alike first, redacted, for a time.
pub struct Review {
    most: usize,
    longest: usize,
    live: Duration,
    redact: Box<dyn Fn(&str) -> String + Send + Sync>,
}

impl Review {
    /// At most so many pairs, each text cut at so many bytes, for so long, each text after this redaction.
    pub fn new(
        most: usize,
        longest: usize,
        live: Duration,
        redact: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            most,
            longest,
            live,
            redact: Box::new(redact),
        }
    }

    fn cut(&self, text: &str) -> String {
        let mut text = (self.redact)(text);
        let end = (0..=self.longest.min(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text
    }
}

impl fmt::Debug for Review {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Review")
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

/// What has become of requests that were offered: they add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// Offered in all.
    pub offered: u64,
    /// Skipped, since they might have acted.
    pub unsafe_: u64,
    /// Skipped, since too many were waiting (or nothing was there to run them).
    pub full: u64,
    /// Skipped, since the token budget was spent.
    pub spent: u64,
    /// The baseline answered, and the candidate failed: a loss.
    pub failed: u64,
    /// The baseline answered, and the candidate, or its turn, came too late: a loss.
    pub late: u64,
    /// The baseline did not answer (or not in time), so that there is nothing to compare.
    pub single: u64,
    /// Both answered, and the comparison could not tell.
    pub untold: u64,
    /// Compared.
    pub pairs: u64,
    /// Of those, the candidate's was the better reply.
    pub wins: u64,
    /// Of those, the baseline's was.
    pub losses: u64,
    /// Sum over those of how alike they were.
    pub alike: f64,
    /// Sum of the squares.
    pub squares: f64,
}

impl Counts {
    /// How alike replies are on average, 0 to 1; none without pairs.
    pub fn mean(&self) -> Option<f64> {
        (self.pairs > 0).then(|| self.alike / self.pairs as f64)
    }

    /// The part of what was offered and safe that the candidate failed or was late with: part of the verdict too.
    pub fn faults(&self) -> Option<f64> {
        let tried = self.failed + self.late + self.single + self.untold + self.pairs;
        (tried > 0).then(|| (self.failed + self.late) as f64 / tried as f64)
    }

    /// What a gate judges: a request that the candidate failed is a loss like any other.
    pub fn comparisons(&self) -> Comparisons {
        let decided = self.wins.saturating_add(self.losses);
        Comparisons {
            wins: self.wins,
            ties: self.pairs.saturating_sub(decided),
            losses: self
                .losses
                .saturating_add(self.failed)
                .saturating_add(self.late),
        }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            offered: self.offered + other.offered,
            unsafe_: self.unsafe_ + other.unsafe_,
            full: self.full + other.full,
            spent: self.spent + other.spent,
            failed: self.failed + other.failed,
            late: self.late + other.late,
            single: self.single + other.single,
            untold: self.untold + other.untold,
            pairs: self.pairs + other.pairs,
            wins: self.wins + other.wins,
            losses: self.losses + other.losses,
            alike: self.alike + other.alike,
            squares: self.squares + other.squares,
        }
    }
}

/// Candidates whose counts are kept apart; the oldest are forgotten first.
const CANDIDATES: usize = 16;

/// Mirrors requests to a candidate. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Shadow(Arc<Inner>);

struct Inner {
    limits: Limits,
    compare: Box<dyn Compare>,
    review: Option<Review>,
    places: Arc<Semaphore>,
    turns: Semaphore,
    spent: AtomicU64,
    /// By candidate, in the order in which they came.
    counts: Mutex<Vec<(VersionSlot, Counts)>>,
    samples: Mutex<Vec<Sample>>,
}

/// A request that may have been mirrored; dropped without [`Self::answered`], the user's request has failed, and says nothing about the
/// candidate.
#[derive(Debug)]
#[must_use = "without the baseline's reply there is nothing to compare"]
pub struct Pair(Option<oneshot::Sender<String>>);

impl Pair {
    /// What the user got.
    pub fn answered(self, reply: impl Into<String>) {
        if let Some(to) = self.0 {
            // Nobody waits for it any more if it is too late.
            let _ = to.send(reply.into());
        }
    }

    /// Whether it was mirrored: a host need not collect the reply otherwise.
    pub fn is_mirrored(&self) -> bool {
        self.0.as_ref().is_some_and(|to| !to.is_closed())
    }
}

impl Shadow {
    /// With these limits and this comparison; nothing is kept.
    pub fn new(limits: Limits, compare: impl Compare) -> Self {
        Self::keeping(limits, compare, None)
    }

    /// With these limits and this comparison, keeping pairs for review.
    pub fn reviewed(limits: Limits, compare: impl Compare, review: Review) -> Self {
        Self::keeping(limits, compare, Some(review))
    }

    fn keeping(limits: Limits, compare: impl Compare, review: Option<Review>) -> Self {
        let all = limits
            .concurrent
            .saturating_add(limits.queue)
            .min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            limits,
            compare: Box::new(compare),
            review,
            places: Arc::new(Semaphore::new(all)),
            turns: Semaphore::new(limits.concurrent.min(Semaphore::MAX_PERMITS)),
            spent: AtomicU64::new(0),
            counts: Mutex::default(),
            samples: Mutex::default(),
        }))
    }

    /// Mirrors a request to the candidate that [`crate::router::InProcessRouter::mirror`] named, if that is allowed: `send` asks it, on a
    /// task of its own. Returns at once. To be called within a tokio runtime; without one, nothing is mirrored and it counts as skipped.
    pub fn offer<F, R, E>(&self, candidate: VersionSlot, request: Request, send: F) -> Pair
    where
        F: FnOnce() -> R,
        R: Future<Output = Result<String, E>> + Send + 'static,
        E: Send + 'static,
    {
        let inner = &self.0;
        let none = |count: fn(&mut Counts)| {
            inner.count(candidate, |counts| {
                counts.offered += 1;
                count(counts);
            });
            Pair(None)
        };
        if !request.safe {
            return none(|counts| counts.unsafe_ += 1);
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return none(|counts| counts.full += 1);
        };
        let Ok(place) = Arc::clone(&inner.places).try_acquire_owned() else {
            return none(|counts| counts.full += 1);
        };
        if !inner.spend(request.tokens) {
            return none(|counts| counts.spent += 1);
        }
        inner.count(candidate, |counts| counts.offered += 1);
        let deadline = Instant::now() + inner.limits.deadline;
        let (to, baseline) = oneshot::channel();
        let (inner, asked) = (Arc::clone(inner), send());
        runtime.spawn(async move {
            let became = inner.run(asked, baseline, deadline).await;
            inner.count(candidate, became);
            drop(place);
        });
        Pair(Some(to))
    }

    /// What has become of requests so far, whatever the candidate. Those under way are offered, and nothing else yet.
    pub fn counts(&self) -> Counts {
        let counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |sum: Counts, (_, counts): &(VersionSlot, Counts)| sum.plus(counts);
        counts.iter().fold(Counts::default(), sum)
    }

    /// The same of one candidate: what has been counted since this process began.
    pub fn counts_of(&self, candidate: VersionSlot) -> Counts {
        let counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of = counts.iter().find(|(slot, _)| *slot == candidate);
        of.map(|(_, counts)| *counts).unwrap_or_default()
    }

    /// Pairs kept for review that have not expired, the least alike first.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = self
            .0
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        samples.retain(|sample| sample.expires > now);
        samples.clone()
    }

    /// Deletes kept pairs that this says so of: all that mention a subject, as a rule.
    pub fn delete(&self, which: impl Fn(&Sample) -> bool) {
        let mut samples = self
            .0
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        samples.retain(|sample| !which(sample));
    }
}

type Became = Box<dyn FnOnce(&mut Counts) + Send>;

impl Inner {
    fn count(&self, candidate: VersionSlot, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counts.iter().position(|(slot, _)| *slot == candidate);
        let at = known.unwrap_or_else(|| {
            if counts.len() >= CANDIDATES {
                counts.remove(0);
            }
            counts.push((candidate, Counts::default()));
            counts.len() - 1
        });
        if let Some((_, counts)) = counts.get_mut(at) {
            change(counts);
        }
    }

    fn spend(&self, tokens: u64) -> bool {
        let within = |spent: u64| {
            spent
                .checked_add(tokens)
                .filter(|sum| *sum <= self.limits.tokens)
        };
        self.spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within)
            .is_ok()
    }

    async fn run<E>(
        &self,
        asked: impl Future<Output = Result<String, E>>,
        baseline: oneshot::Receiver<String>,
        deadline: Instant,
    ) -> Became {
        // What nobody has answered says nothing about the candidate.
        let without = |answered: bool, how: fn(&mut Counts)| -> Became {
            if answered {
                Box::new(how)
            } else {
                Box::new(|counts| counts.single += 1)
            }
        };
        let mut baseline = baseline;
        let Ok(Ok(turn)) = timeout_at(deadline, self.turns.acquire()).await else {
            return without(baseline.try_recv().is_ok(), |counts| counts.late += 1);
        };
        let candidate = timeout_at(deadline, asked).await;
        // Waiting for the user's reply keeps nobody else from the candidate.
        drop(turn);
        let Ok(candidate) = candidate else {
            return without(baseline.try_recv().is_ok(), |counts| counts.late += 1);
        };
        let answered = timeout_at(deadline, baseline).await;
        let (Ok(candidate), Ok(Ok(baseline))) = (candidate, &answered) else {
            let answered = matches!(answered, Ok(Ok(_)));
            return without(answered, |counts| counts.failed += 1);
        };
        let compared = timeout_at(
            Instant::now() + self.limits.deadline,
            self.compare.compare(baseline, &candidate),
        );
        let compared = compared.await.ok().flatten();
        let compared = compared.filter(|said| (0.0..=1.0).contains(&said.alike));
        let Some(Compared { alike, better }) = compared else {
            return Box::new(|counts| counts.untold += 1);
        };
        self.keep(baseline, &candidate, alike);
        Box::new(move |counts| {
            counts.pairs += 1;
            counts.wins += u64::from(better == Better::Candidate);
            counts.losses += u64::from(better == Better::Baseline);
            counts.alike += alike;
            counts.squares += alike * alike;
        })
    }

    fn keep(&self, baseline: &str, candidate: &str, alike: f64) {
        let Some(review) = &self.review else { return };
        let now = Instant::now();
        let sample = Sample {
            baseline: review.cut(baseline),
            candidate: review.cut(candidate),
            alike,
            expires: now + review.live,
        };
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|sample| sample.expires > now);
        let at = samples.partition_point(|other| other.alike <= alike);
        samples.insert(at, sample);
        samples.truncate(review.most);
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
