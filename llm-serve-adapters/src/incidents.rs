//! Incident records in a folder.

use crate::host::{Error, Incidents, Result};
use async_trait::async_trait;
use llm_rollout::EndpointId;
use llm_rollout::incident::Incident;
use std::path::{Path, PathBuf};

/// Keeps each record as `<endpoint>.<rollout>.json`, `.md` and `.html`; what is written again replaces what was there.
#[derive(Debug, Clone)]
pub struct IncidentFolder(PathBuf);

impl IncidentFolder {
    /// In this folder, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }
}

#[async_trait]
impl Incidents for IncidentFolder {
    async fn keep(&self, endpoint: &EndpointId, incident: &Incident) -> Result<()> {
        let json = serde_json::to_vec_pretty(incident).map_err(|e| {
            Error::permanent("the incident record cannot be written as JSON").because(e)
        })?;
        let files = [
            ("json", json),
            ("md", incident.to_markdown().into_bytes()),
            ("html", incident.to_html().into_bytes()),
        ];
        let (folder, name) = (self.0.clone(), format!("{endpoint}.{}", incident.rollout));
        let write = move || {
            std::fs::create_dir_all(&folder)?;
            for (kind, bytes) in files {
                replace(&folder, &format!("{name}.{kind}"), &bytes)?;
            }
            Ok::<_, std::io::Error>(())
        };
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            let folder = self.0.display();
            Error::transient(format!("the incident record was not written to {folder}: check that there is room and that it may be written")).because(e)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written.map_err(|e| failed(e.into())),
            Err(e) => Err(failed(e.into())),
        }
    }
}

/// Whole or not at all.
fn replace(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let half = folder.join(format!(".{name}.half"));
    std::fs::write(&half, bytes)?;
    std::fs::rename(half, folder.join(name))
}
