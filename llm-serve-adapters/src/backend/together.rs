//! Several parts that move as one version.

use crate::host::{Error, ErrorKind, Result, ServingBackend};
use async_trait::async_trait;
use futures_util::future::join_all;
use llm_rollout::Position;
use llm_version_core::VersionId;
use std::sync::Arc;

/// Parts that serve one version together, all or none: prefill and decode, a model and the index of its embeddings.
///
/// The version is that of the whole: one bundle, one rollout, one endpoint. Each part loads its share of it, and the version is ready when
/// all of them are. With a router for each part registered at the endpoint, a share is confirmed, and a candidate promoted, only when every
/// part reads it back. A request decides once, at the first part, and takes the version's name along: the others follow it as a pin, so that no
/// request is served by two versions.
#[derive(Debug, Clone, Default)]
pub struct Together {
    parts: Vec<(String, Arc<dyn ServingBackend>)>,
}

impl Together {
    /// Of no parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A part, by the name that errors give it.
    #[must_use]
    pub fn part(mut self, name: impl Into<String>, backend: impl ServingBackend) -> Self {
        self.parts.push((name.into(), Arc::new(backend)));
        self
    }

    fn parts(&self) -> impl Iterator<Item = (&str, &dyn ServingBackend)> {
        self.parts
            .iter()
            .map(|(name, part)| (name.as_str(), &**part))
    }
}

/// Waits for all parts. An error that will not pass outweighs one that may.
async fn all<'a, T, F: Future<Output = Result<T>> + Send>(
    calls: impl Iterator<Item = (&'a str, F)>,
) -> Result<Vec<T>> {
    let (names, calls): (Vec<_>, Vec<_>) = calls.unzip();
    let answers = join_all(calls).await;
    let (mut found, mut worst): (_, Option<Error>) = (Vec::with_capacity(answers.len()), None);
    for (name, answer) in names.into_iter().zip(answers) {
        match answer {
            Ok(answer) => found.push(answer),
            Err(e) if worst.is_none() || e.kind() != ErrorKind::Transient => {
                worst = Some(Error::new(e.kind(), format!("{name}: {e}")).because(e));
            }
            Err(_) => {}
        }
    }
    worst.map_or(Ok(found), Err)
}

#[async_trait]
impl ServingBackend for Together {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let calls = self.parts().map(|(name, p)| (name, p.prepare(version, at)));
        all(calls).await.map(drop)
    }

    async fn standby(&self, version: &VersionId, at: Position) -> Result<()> {
        let calls = self.parts().map(|(name, p)| (name, p.standby(version, at)));
        all(calls).await.map(drop)
    }

    /// The whole is healthy if every part is, and not if one is not.
    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        let calls = self.parts().map(|(name, p)| (name, p.healthy(version)));
        let said = all(calls).await?;
        Ok(if said.contains(&Some(false)) {
            Some(false)
        } else {
            said.into_iter().collect::<Option<Vec<_>>>().map(|_| true)
        })
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        let calls = self.parts().map(|(name, p)| (name, p.in_flight(version)));
        Ok(all(calls).await?.into_iter().sum())
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        let calls = self.parts().map(|(name, p)| (name, p.retire(version, at)));
        all(calls).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, Clone, Default)]
    struct Part {
        loaded: Arc<AtomicU64>,
        error: Option<ErrorKind>,
        health: Option<bool>,
    }

    #[async_trait]
    impl ServingBackend for Part {
        async fn prepare(&self, _: &VersionId, _: Position) -> Result<()> {
            if let Some(kind) = self.error {
                return Err(Error::new(kind, "no room"));
            }
            self.loaded.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn healthy(&self, _: &VersionId) -> Result<Option<bool>> {
            Ok(self.health)
        }

        async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
            Ok(Some(self.loaded.load(Ordering::SeqCst)))
        }

        async fn retire(&self, _: &VersionId, _: Position) -> Result<()> {
            self.loaded.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn whole(parts: [&Part; 2]) -> (Together, VersionId) {
        let version = format!("chat/v1.0.0-{}", "01".repeat(32)).parse().unwrap();
        let [prefill, decode] = parts;
        let together = Together::new()
            .part("prefill", prefill.clone())
            .part("decode", decode.clone());
        (together, version)
    }

    #[tokio::test]
    async fn all_parts_are_loaded_counted_and_retired() {
        let (prefill, decode) = (Part::default(), Part::default());
        let (whole, version) = whole([&prefill, &decode]);
        whole.prepare(&version, Position::default()).await.unwrap();
        assert_eq!(whole.in_flight(&version).await.unwrap(), Some(2));
        whole.retire(&version, Position::default()).await.unwrap();
        assert_eq!(whole.in_flight(&version).await.unwrap(), Some(0));
    }

    #[tokio::test]
    async fn one_part_that_fails_fails_the_whole_and_is_named() {
        for (first, second, kind) in [
            (None, Some(ErrorKind::Transient), ErrorKind::Transient),
            (
                Some(ErrorKind::Transient),
                Some(ErrorKind::Permanent),
                ErrorKind::Permanent,
            ),
            (
                Some(ErrorKind::Permanent),
                Some(ErrorKind::Transient),
                ErrorKind::Permanent,
            ),
        ] {
            let part = |error| Part {
                error,
                ..Part::default()
            };
            let (whole, version) = whole([&part(first), &part(second)]);
            let error = whole
                .prepare(&version, Position::default())
                .await
                .unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(
                error.to_string().contains("code: no room")
                    || error.to_string().contains("fill: no room"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn the_whole_is_as_healthy_as_its_worst_part() {
        let health = async |a, b| {
            let part = |health| Part {
                health,
                ..Part::default()
            };
            let (whole, version) = whole([&part(a), &part(b)]);
            whole.healthy(&version).await.unwrap()
        };
        assert_eq!(health(Some(true), Some(true)).await, Some(true));
        assert_eq!(health(Some(true), None).await, None);
        assert_eq!(health(Some(false), None).await, Some(false));
    }
}
