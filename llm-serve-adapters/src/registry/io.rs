//! Asynchronous clients under a synchronous trait: their futures run on a thread of their own.

use llm_version_core::registry::StoreError;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::error::Elapsed;

/// A thread with a runtime, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Io {
    handle: Handle,
    timeout: Duration,
    _end: oneshot::Sender<()>,
}

impl Io {
    /// Starts the thread. Nothing that is waited for takes longer than `timeout`.
    pub(super) fn start(timeout: Duration) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("llm-serve-registry".to_owned())
            .spawn(move || {
                // An error says that the other end is gone, which is what is waited for.
                let _ = runtime.block_on(ended);
            })?;
        Ok(Self {
            handle,
            timeout,
            _end: end,
        })
    }

    /// Begins to run a future on the thread.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Begun<T> {
        let (answer, answered) = sync_channel(1);
        let timeout = self.timeout;
        self.handle.spawn(async move {
            // There is room for one answer; whoever asked may be gone.
            let _ = answer.send(tokio::time::timeout(timeout, future).await);
        });
        Begun { timeout, answered }
    }

    /// Runs a future on the thread and waits for it. The calling thread may itself belong to a runtime.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        what: &str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin(future).wait(what)
    }
}

/// A future that runs.
#[derive(Debug)]
pub(super) struct Begun<T> {
    timeout: Duration,
    answered: Receiver<Result<T, Elapsed>>,
}

impl<T> Begun<T> {
    pub(super) fn wait(self, what: &str) -> Result<T, StoreError> {
        match self.answered.recv() {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(_)) => {
                let why = format!("no answer within {:?}", self.timeout);
                Err(StoreError::io(what, why))
            }
            Err(_) => Err(StoreError::io(what, "the client panicked")),
        }
    }
}
