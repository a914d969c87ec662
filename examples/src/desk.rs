//! A desk for examples that need no model: versions by number, and users who ask without a pause.

use llm_rollout::{Phase, RolloutId};
use llm_serve_adapters::journal::End;
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::{DataPlane, Endpoint, Run};
use llm_version_core::VersionId;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A version of this number, with a digest that stands for its content.
///
/// # Errors
/// None for any number: the form is fixed.
pub fn version(name: &str, number: u8) -> Result<VersionId, Box<dyn Error>> {
    let digest = format!("{number:02x}").repeat(32);
    Ok(format!("{name}/v{number}.0.0-{digest}").parse()?)
}

/// Users that ask every few milliseconds, and who has answered them.
#[derive(Debug)]
pub struct Users {
    /// Answered by the baseline, and by the candidate.
    answered: Arc<[AtomicU64; 2]>,
    asking: JoinHandle<()>,
}

impl Users {
    /// They ask until this is dropped; `fails` says which answers of the candidate are no good.
    pub fn ask(plane: &DataPlane, fails: impl Fn(u64) -> bool + Send + 'static) -> Self {
        let plane = plane.clone();
        let answered: Arc<[AtomicU64; 2]> = Arc::default();
        let count = Arc::clone(&answered);
        let asking = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(2));
            for n in 0u64.. {
                pace.tick().await;
                // The request path: decide, begin, finish.
                let now = plane.router.now();
                let session = n.to_string();
                let decision = plane.router.decide(&Key::session(session.as_bytes()), now);
                let ticket = plane.recorder.begin(decision, now);
                let candidate = decision.role() == Role::Candidate;
                count[usize::from(candidate)].fetch_add(1, Ordering::Relaxed);
                let outcome = if candidate && fails(n) {
                    OutcomeClass::UpstreamError
                } else {
                    OutcomeClass::Ok
                };
                ticket.finish(outcome, plane.router.now());
            }
        });
        Self { answered, asking }
    }

    /// Answered so far by the baseline, and by the candidate.
    pub fn answered(&self) -> (u64, u64) {
        let [baseline, candidate] = &*self.answered;
        (
            baseline.load(Ordering::Relaxed),
            candidate.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

/// Calls this with each new phase of a rollout, until its end.
///
/// # Errors
/// The endpoint's controller has stopped.
pub async fn follow(
    chat: &Endpoint,
    run: &Run,
    mut shown: impl FnMut(Phase, &str),
) -> Result<End, Box<dyn Error>> {
    let mut status = chat.watch();
    let mut last = None;
    let mut finished = Box::pin(run.finished());
    loop {
        tokio::select! {
            end = &mut finished => return Ok(end?),
            changed = status.changed() => changed?,
        }
        let ledger = Arc::clone(&status.borrow_and_update().ledger);
        let Some(rollout) = ledger.rollout.as_ref().filter(|r| r.id() == run.id()) else {
            continue;
        };
        if last != Some(rollout.phase()) {
            last = Some(rollout.phase());
            let split = &rollout.state().split;
            let text = match &split.candidate {
                Some(candidate) => format!("{} to {}", split.share, candidate.reference()),
                None => format!("everything to {}", split.baseline.reference()),
            };
            shown(rollout.phase(), &text);
        }
    }
}

/// A rollout id.
///
/// # Errors
/// The name is not usable.
pub fn rollout(name: &str) -> Result<RolloutId, Box<dyn Error>> {
    Ok(RolloutId::new(name)?)
}
