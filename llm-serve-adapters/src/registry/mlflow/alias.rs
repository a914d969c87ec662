//! An alias of MLflow that says what is in production.

use super::MlflowModel;
use crate::host::{Error, Letter, Notifier, Result, StateStore};
use async_trait::async_trait;
use llm_rollout::EndpointId;
use std::sync::Arc;

/// How often the alias is moved on while what is in force changes.
const ROUNDS: usize = 4;

/// Keeps an alias of a registered model on the version that an endpoint serves as its baseline: promotion moves it, going back from a
/// promotion returns it, and a rollout that is rolled back leaves it.
///
/// It is a [`Notifier`]: every notice of the endpoint, of which promotion and each way back send one, makes it read **the split in
/// force** from the store and move the alias there. It looks at the store and not at the notice, so notices may come twice, late and out of
/// order, and the outbox repeats what failed. After it has moved the alias it reads again, so that of two controllers the one that
/// was overtaken puts right what it moved.
///
/// ```no_run
/// use llm_rollout::EndpointId;
/// use llm_serve_adapters::registry::{MlflowAlias, MlflowModel};
/// use llm_serve_adapters::store::MemoryStore;
/// use std::sync::Arc;
///
/// let store = MemoryStore::new();
/// let model = MlflowModel::open("https://mlflow.example", "chat")?;
/// let follows = MlflowAlias::new(model, "production", Arc::new(store.clone()));
/// // Endpoint::builder(...).notifier(follows)
/// # Ok::<(), llm_serve_adapters::registry::MlflowError>(())
/// ```
///
/// The version has to be registered ([`MlflowModel::register`]) before it is promoted: one that is not costs `Transient` errors until it
/// is. Nobody is told of an endpoint's very first version: call [`sync`](Self::sync) once at the start. MLflow has no
/// compare-and-set: whoever moves the alias by hand is overruled at the next notice.
#[derive(Debug)]
pub struct MlflowAlias {
    model: MlflowModel,
    alias: String,
    store: Arc<dyn StateStore>,
}

impl MlflowAlias {
    /// This alias of this model follows what the store says is in force.
    pub fn new(model: MlflowModel, alias: impl Into<String>, store: Arc<dyn StateStore>) -> Self {
        Self {
            model,
            alias: alias.into(),
            store,
        }
    }

    /// Moves the alias to the baseline of the split in force; nothing before the first.
    ///
    /// # Errors
    /// If the store or MLflow cannot be reached or refuses, or the version is not registered.
    pub async fn sync(&self, endpoint: &EndpointId) -> Result<()> {
        let mut moved = None;
        for _ in 0..ROUNDS {
            let Some(split) = self.store.split(endpoint).await? else {
                return Ok(());
            };
            if moved.as_ref() == Some(&split.baseline) {
                return Ok(());
            }
            self.model.follow(&self.alias, &split.baseline).await?;
            moved = Some(split.baseline);
        }
        Err(Error::transient(format!(
            "what is in force on endpoint {endpoint} changes faster than alias {}: try again",
            self.alias
        )))
    }
}

#[async_trait]
impl Notifier for MlflowAlias {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        self.sync(letter.endpoint).await
    }
}
