//! Evaluators (feature `evaluators`): what a candidate says and how likely it finds texts, measured before any user sees it.
//!
//! A [`SuiteEvaluator`] asks both versions the questions of a [`Suite`], the same way and in the same order, and hands the answers to
//! [`Scorer`]s: [`Checks`] of expected properties, a [`Judge`] model that compares in pairs, a [`Guard`] model that finds unsafe answers,
//! a [`Toxicity`] score from a service, [`Similarity`] to reference answers (BLEU, ROUGE). [`LogLikelihood`] asks how probable both
//! versions find held-out texts. [`Together`] runs several evaluators as one. All of them go at it with an [`Effort`]: so many requests
//! at once, so long, so many tries.
//!
//! The versions must be reachable while they are evaluated, which is before the plan loads the candidate for users: the host starts a server for
//! it beforehand, or has one for evaluations.
//!
//! What a version does not answer is never dropped in silence: the candidate has failed there, the baseline is left out there (so that a flaky
//! baseline lowers no bar), and both are counted under `NAME.unanswered`. A version that answers nothing at all, a judge or classifier
//! whose replies cannot be understood too often, and a deadline that has passed are errors, never measurements.
//!
//! ```no_run
//! use llm_serve_adapters::backend::{ChatClient, Upstream};
//! use llm_serve_adapters::evaluate::{Check, Checks, Effort, Guard, Judge, Models, Suite, SuiteEvaluator};
//! use llm_serve_adapters::host::Evaluator;
//! use std::time::Duration;
//!
//! # async fn evaluate() -> Result<(), Box<dyn std::error::Error>> {
//! let suite = Suite::from_jsonl(r#"
//! {"name": "capital", "input": "What is the capital of France?", "ideal": "Paris", "check": "includes"}
//! {"name": "order", "input": "Two red balls. Answer in JSON.", "schema": {"type": "object", "properties": {"count": {"const": 2}}}}
//! "#, Check::Match)?;
//! # let (v1, v2) = ("chat/v1.0.0-".to_owned() + &"0".repeat(64), "chat/v1.1.0-".to_owned() + &"1".repeat(64));
//! # let (v1, v2): (llm_version_core::VersionId, llm_version_core::VersionId) = (v1.parse()?, v2.parse()?);
//! let models = Models::from_iter([
//!     (v1.clone(), ChatClient::new(&Upstream::new("http://10.0.0.7:8000", "chat-v1"))?),
//!     (v2.clone(), ChatClient::new(&Upstream::new("http://10.0.0.8:8000", "chat-v2"))?),
//! ]);
//! let large = ChatClient::new(&Upstream::new("http://10.0.0.9:8000", "judge"))?;
//! let guard = ChatClient::new(&Upstream::new("http://10.0.0.9:8000", "llama-guard"))?;
//! let evaluator = SuiteEvaluator::builder("adversarial", suite, models)
//!     .effort(Effort::default().concurrency(8).deadline(Duration::from_secs(600)))
//!     .scorer(Checks::new("adversarial"))
//!     .scorer(Judge::new("win_rate", large))
//!     .scorer(Guard::new("unsafe", guard))
//!     .build()?;
//! let measured = evaluator.evaluate(&v2, &v1).await?;
//! println!("{:?} {:?}", measured["adversarial"], measured["win_rate"]);
//! # Ok(())
//! # }
//! ```

mod answers;
mod checks;
mod effort;
mod guard;
mod judge;
mod likelihood;
mod models;
mod schema;
mod similarity;
mod suite;
mod tally;
pub mod text;
mod together;
mod toxicity;

pub use answers::{Answers, Pair, Scorer, SuiteEvaluator, SuiteEvaluatorBuilder};
pub use checks::{Check, Checks, Expected};
pub use effort::Effort;
pub use guard::Guard;
pub use judge::{BadPrompt, Judge};
pub use likelihood::{LogLikelihood, LogProbs};
pub use models::Models;
pub use schema::{BadSchema, Schema};
pub use similarity::Similarity;
pub use suite::{BadSuite, Case, Suite};
pub use together::Together;
pub use toxicity::{Scores, Toxicity};

#[cfg(test)]
mod tests;
