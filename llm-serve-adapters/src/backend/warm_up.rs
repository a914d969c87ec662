//! Real generations before the first user: a model that is loaded is not yet a model that answers.

use super::chat::{ChatClient, ChatRequest};
use super::identity::verify;
use crate::host::{Error, Result};
use llm_version_core::VersionId;
use serde_json::Value;
use std::time::{Duration, Instant};

/// The most prompts of a warm-up.
const PROMPTS: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct WarmUp {
    prompts: Vec<String>,
    pub(crate) tokens: u32,
    /// For the whole of one load.
    pub(crate) deadline: Duration,
}

impl Default for WarmUp {
    fn default() -> Self {
        let prompts = [
            "Say hello.",
            "What is 2 + 2?",
            "Name a colour and say why you like it.",
        ];
        Self {
            prompts: prompts.map(str::to_owned).to_vec(),
            tokens: 16,
            deadline: Duration::from_secs(60),
        }
    }
}

impl WarmUp {
    pub(crate) fn prompts(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let prompts = prompts.into_iter().take(PROMPTS + 1);
        self.prompts = prompts.map(Into::into).collect();
        self
    }

    pub(crate) fn checked(self) -> Result<Self> {
        if (1..=PROMPTS).contains(&self.prompts.len())
            && self.tokens > 0
            && !self.deadline.is_zero()
        {
            return Ok(self);
        }
        Err(Error::permanent(format!(
            "a warm-up needs 1 to {PROMPTS} prompts, a token and some time: give them, or leave the defaults"
        )))
    }

    /// What tells how much of the deadline is left, from now on.
    pub(crate) fn clock(
        &self,
        version: &VersionId,
        client: &ChatClient,
    ) -> impl Fn() -> Result<Duration> + use<> {
        let (began, deadline) = (Instant::now(), self.deadline);
        let (version, model) = (version.clone(), client.model().to_owned());
        move || match deadline.checked_sub(began.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(Error::transient(format!(
                "version {version} (model {model:?}) was not warm within {deadline:?}: give it more time, or look at its server"
            ))),
        }
    }

    /// Makes sure that the model answers as the version would, and then has it answer each prompt. These fields go along with each.
    pub(crate) async fn run(
        &self,
        version: &VersionId,
        client: &ChatClient,
        fields: &[(&str, Value)],
        left: impl Fn() -> Result<Duration>,
    ) -> Result<()> {
        for golden in client.golden() {
            let golden = fields.iter().fold(golden.clone(), |golden, (name, value)| {
                golden.field(*name, value.clone())
            });
            verify(version, client, &golden, &left).await?;
        }
        let mut silent = true;
        for prompt in &self.prompts {
            let request = ChatRequest::new(prompt).max_tokens(self.tokens);
            let request = fields.iter().fold(request, |request, (name, value)| {
                request.field(*name, value.clone())
            });
            silent &= client.complete(&request, left()?).await?.is_empty();
        }
        if silent {
            return Err(Error::permanent(format!(
                "version {version} (model {:?}) answers all {} prompts of the warm-up with nothing: check its weights and its chat template",
                client.model(),
                self.prompts.len()
            )));
        }
        Ok(())
    }
}
