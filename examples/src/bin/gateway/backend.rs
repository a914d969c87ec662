//! Who starts and stops the servers is somebody else; what is left is to see that a version answers before any user asks it.

use crate::proxy::Upstreams;
use async_trait::async_trait;
use llm_rollout::Position;
use llm_serve_adapters::host::{Error, Result, ServingBackend};
use llm_version_core::VersionId;

/// Versions on servers that run already.
#[derive(Debug)]
pub(crate) struct Servers(pub(crate) Upstreams);

/// Caches, kernels and connections are warm after so many real replies.
const WARM: usize = 3;

#[async_trait]
impl ServingBackend for Servers {
    async fn prepare(&self, version: &VersionId, _: Position) -> Result<()> {
        for _ in 0..WARM {
            if let Err(why) = self.0.generate(version).await {
                // Tried again until the plan's deadline: a server may still be loading.
                return Err(Error::transient(format!(
                    "{} does not answer yet",
                    version.reference()
                ))
                .because(why));
            }
        }
        Ok(())
    }

    /// By a real reply: a process that is up says little about its model.
    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        Ok(Some(self.0.generate(version).await.is_ok()))
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        // Beside the gateway's own, which its recorder counts, nobody's.
        Ok(Some(0))
    }

    async fn retire(&self, _: &VersionId, _: Position) -> Result<()> {
        Ok(())
    }
}
