//! Where the versions are reached.

use crate::backend::ChatClient;
use crate::host::{Error, Result};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

type Find = dyn Fn(&VersionId) -> Option<ChatClient> + Send + Sync;

/// Finds the client of a version.
#[derive(Clone)]
pub struct Models(Arc<Find>);

impl Models {
    /// By a function, such as [`crate::backend::OpenAiBackend::client`] of a backend that learns of versions as it goes. It must not block.
    pub fn new(find: impl Fn(&VersionId) -> Option<ChatClient> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    pub(super) fn client(&self, version: &VersionId) -> Result<ChatClient> {
        (self.0)(version).ok_or_else(|| {
            Error::permanent(format!(
                "nobody knows where version {version} can be evaluated: tell its upstream"
            ))
        })
    }
}

impl FromIterator<(VersionId, ChatClient)> for Models {
    fn from_iter<I: IntoIterator<Item = (VersionId, ChatClient)>>(clients: I) -> Self {
        let clients: BTreeMap<_, _> = clients.into_iter().collect();
        Self::new(move |version| clients.get(version).cloned())
    }
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").finish_non_exhaustive()
    }
}
