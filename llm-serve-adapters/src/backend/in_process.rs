//! Versions in the host's own process.

use super::fleet::{Deadline, Fleet, Wish};
use crate::host::{Error, Result, ServingBackend};
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use std::fmt::Debug;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(300);

/// An engine in the host's process: what it must be able to do for a version to be rolled out.
///
/// Each method must end by itself, and may be called again with the same version, after a crash of what called it: loading what is loaded
/// and unloading what is not loaded change nothing.
#[async_trait]
pub trait Model: Debug + Send + Sync + 'static {
    /// Loads a version beside those that are loaded, and checks that it is the right one: its digest is in the id.
    ///
    /// # Errors
    /// `Permanent` if it cannot serve (blocks the rollout); `Transient` is tried again.
    async fn load(&self, version: &VersionId) -> Result<()>;

    /// What a loaded version says to a prompt, in a few tokens, and the same each time: the warm-up.
    ///
    /// # Errors
    /// As [`Self::load`].
    async fn generate(&self, version: &VersionId, prompt: &str) -> Result<String>;

    /// Drops a version; what still runs on it is cut off.
    ///
    /// # Errors
    /// `Transient` is tried again.
    async fn unload(&self, version: &VersionId) -> Result<()>;

    /// Whether a loaded version can serve. `None`: it cannot tell.
    fn healthy(&self, _version: &VersionId) -> Option<bool> {
        None
    }

    /// Requests that run on a version. `None`: it cannot tell; the endpoint's recorder counts what passes through it all the same.
    fn in_flight(&self, _version: &VersionId) -> Option<u64> {
        None
    }
}

/// Serves versions by a [`Model`] in the host's process, and adds what every backend must do: orders in order, a warm-up by real
/// generations before the first user, golden answers, an end to every wait.
///
/// ```
/// use llm_serve_adapters::backend::{InProcessBackend, Model};
/// use llm_serve_adapters::host::{Result, ServingBackend as _};
/// use llm_version_core::VersionId;
///
/// #[derive(Debug)]
/// struct Parrot;
///
/// #[async_trait::async_trait]
/// impl Model for Parrot {
///     async fn load(&self, _: &VersionId) -> Result<()> {
///         Ok(()) // maps the weights into memory
///     }
///     async fn generate(&self, _: &VersionId, prompt: &str) -> Result<String> {
///         Ok(prompt.to_owned())
///     }
///     async fn unload(&self, _: &VersionId) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let v2: VersionId = format!("chat/v2.0.0-{}", "2".repeat(64)).parse()?;
/// let backend = InProcessBackend::new(Parrot).golden(v2.clone(), "2 + 2 =", "2 + 2 =");
/// backend.prepare(&v2, Default::default()).await?;
/// assert!(backend.is_ready(&v2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct InProcessBackend<M> {
    model: M,
    fleet: Fleet<VersionId>,
    prompts: Vec<String>,
    golden: Vec<(VersionId, String, String)>,
    deadline: Duration,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
}

impl<M: Model> InProcessBackend<M> {
    /// Of this model, with a warm-up of one short question within five minutes.
    pub fn new(model: M) -> Self {
        Self {
            model,
            fleet: Fleet::default(),
            prompts: vec!["Say hello.".to_owned()],
            golden: Vec::new(),
            deadline: DEADLINE,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// What the warm-up asks; nothing, for no warm-up.
    #[must_use]
    pub fn warm_up(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.prompts = prompts.into_iter().map(Into::into).collect();
        self
    }

    /// What a version answers to a prompt if it is the right one, to the letter.
    #[must_use]
    pub fn golden(
        mut self,
        version: VersionId,
        prompt: impl Into<String>,
        answer: impl Into<String>,
    ) -> Self {
        self.golden.push((version, prompt.into(), answer.into()));
        self
    }

    /// How long one `prepare`, `standby` or `retire` may take.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether the version has been prepared, and not retired since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.fleet.is_ready(version)
    }

    /// The host's engine.
    pub fn model(&self) -> &M {
        &self.model
    }

    async fn load(
        &self,
        version: &VersionId,
        at: Position,
        what: &str,
        deadline: Deadline,
    ) -> Result<()> {
        {
            let _turn = deadline.of(what, self.turn.lock()).await?;
            self.fleet.stands(Wish::Load, version, at)?;
            deadline.of(what, self.model.load(version)).await??;
        }
        let mut silent = !self.prompts.is_empty();
        for prompt in &self.prompts {
            let text = deadline
                .of(what, self.model.generate(version, prompt))
                .await??;
            silent &= text.trim().is_empty();
        }
        if silent {
            return Err(Error::permanent(format!(
                "version {version} answers the whole warm-up with nothing: check its weights and its template"
            )));
        }
        for (_, prompt, wanted) in self.golden.iter().filter(|(of, ..)| of == version) {
            let text = deadline
                .of(what, self.model.generate(version, prompt))
                .await??;
            if text != *wanted {
                return Err(Error::permanent(format!(
                    "version {version} does not give the golden answer ({} bytes, {} expected): it is another version than it should be, or samples",
                    text.len(),
                    wanted.len()
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<M: Model> ServingBackend for InProcessBackend<M> {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        self.fleet.add_alone(version.clone(), version.clone())?;
        self.fleet.load(version, at)?;
        let what = format!("loading version {version}");
        let done = self
            .load(version, at, &what, Deadline::after(self.deadline))
            .await;
        // Whatever went wrong: if a later order came, that is why.
        self.fleet.stands(Wish::Load, version, at)?;
        done?;
        self.fleet.ready(version, at)
    }

    async fn standby(&self, version: &VersionId, at: Position) -> Result<()> {
        self.retire(version, at).await
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        let rests = self.fleet.rests(version);
        Ok(if rests {
            Some(false)
        } else {
            self.model.healthy(version)
        })
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        Ok(self.model.in_flight(version))
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        // Known from now on: an older load that comes late is refused.
        self.fleet.add_alone(version.clone(), version.clone())?;
        self.fleet.begin(Wish::Retire, version, at)?;
        let deadline = Deadline::after(self.deadline);
        let what = format!("unloading version {version}");
        let _turn = deadline.of(&what, self.turn.lock()).await?;
        // Prepared again in the meantime: it stays.
        if self.fleet.is_ready(version) {
            return Ok(());
        }
        deadline.of(&what, self.model.unload(version)).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;
    use llm_rollout::{Fence, Seq};
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Toy {
        loaded: Mutex<BTreeSet<VersionId>>,
        /// Versions that never finish loading.
        stuck: BTreeSet<VersionId>,
        silent: bool,
    }

    #[async_trait]
    impl Model for Toy {
        async fn load(&self, version: &VersionId) -> Result<()> {
            if *version == self::version(9) {
                return Err(Error::permanent("there is no version 9"));
            }
            if self.stuck.contains(version) {
                std::future::pending::<()>().await;
            }
            self.loaded.lock().unwrap().insert(version.clone());
            Ok(())
        }

        async fn generate(&self, version: &VersionId, prompt: &str) -> Result<String> {
            let says = format!("{} says {prompt}", version.version());
            Ok(if self.silent { String::new() } else { says })
        }

        async fn unload(&self, version: &VersionId) -> Result<()> {
            self.loaded.lock().unwrap().remove(version);
            Ok(())
        }

        fn in_flight(&self, version: &VersionId) -> Option<u64> {
            (!self.loaded.lock().unwrap().contains(version)).then_some(0)
        }
    }

    fn version(n: u8) -> VersionId {
        format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
            .parse()
            .unwrap()
    }

    fn at(seq: u64) -> Position {
        Position {
            fence: Fence::new(1),
            seq: Seq::new(seq),
        }
    }

    #[tokio::test]
    async fn versions_are_loaded_warmed_up_and_unloaded() {
        let backend = InProcessBackend::new(Toy::default())
            .golden(version(1), "2 + 2 =", "1.0.0 says 2 + 2 =")
            .golden(version(2), "2 + 2 =", "1.0.0 says 2 + 2 =");
        backend.prepare(&version(1), at(1)).await.unwrap();
        assert!(backend.is_ready(&version(1)));
        let other = backend.prepare(&version(2), at(2)).await.unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Permanent);
        assert!(other.to_string().contains("golden") && !backend.is_ready(&version(2)));
        backend.retire(&version(2), at(3)).await.unwrap();
        assert_eq!(backend.in_flight(&version(2)).await.unwrap(), Some(0));
        assert_eq!(backend.in_flight(&version(1)).await.unwrap(), None);
        assert!(
            backend.prepare(&version(2), at(2)).await.is_err(),
            "it came late"
        );
        assert!(!backend.model().loaded.lock().unwrap().contains(&version(2)));
    }

    #[tokio::test]
    async fn it_does_what_every_backend_must() {
        let backend = InProcessBackend::new(Toy::default()).deadline(Duration::from_secs(9));
        let within = Duration::from_secs(20);
        crate::testing::backend::suite(&backend, &version(1), &version(9), within)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_silent_version_is_permanent() {
        let toy = Toy {
            silent: true,
            ..Toy::default()
        };
        let backend = InProcessBackend::new(toy);
        let error = backend.prepare(&version(1), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_without_an_end() {
        let toy = Toy {
            stuck: [version(1)].into(),
            ..Toy::default()
        };
        let backend = InProcessBackend::new(toy).deadline(Duration::from_secs(7));
        let one = version(1);
        let (loading, retiring) =
            tokio::join!(backend.prepare(&one, at(1)), backend.retire(&one, at(2)),);
        assert_eq!(
            loading.unwrap_err().kind(),
            ErrorKind::Permanent,
            "a later order came"
        );
        // Its turn came in time, or it is to be tried again.
        assert!(retiring.is_ok() || retiring.is_err_and(|e| e.kind() == ErrorKind::Transient));
        let late = backend.prepare(&version(1), at(3)).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Transient, "{late}");
    }
}
