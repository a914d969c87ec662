//! Notices as lines of text.

use crate::host::{Error, Letter, Notifier, Result};
use async_trait::async_trait;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Longest text, in characters.
const LONGEST: usize = 8_000;

/// Writes one line for each notice, to standard error or wherever the host says: no logging framework needed. A text of more
/// than 8,000 characters is cut off.
///
/// ```text
/// chat: rollout chat-v2: promoted [12.0]
/// PAGE chat: rollout chat-v2: rolled back: ttft is 31 % slower [40.1]
/// ```
pub struct LogNotifier {
    sink: Mutex<Box<dyn Write + Send>>,
}

impl LogNotifier {
    /// To standard error.
    pub fn stderr() -> Self {
        Self::to(std::io::stderr())
    }

    /// To any writer: a file, a pipe, a bridge to the host's own log. It should not block for long.
    pub fn to(sink: impl Write + Send + 'static) -> Self {
        Self {
            sink: Mutex::new(Box::new(sink)),
        }
    }
}

impl Default for LogNotifier {
    fn default() -> Self {
        Self::stderr()
    }
}

impl fmt::Debug for LogNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogNotifier").finish_non_exhaustive()
    }
}

#[async_trait]
impl Notifier for LogNotifier {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        let line = line(letter);
        // A writer that panicked is still a writer.
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.write_all(line.as_bytes())
            .and_then(|()| sink.flush())
            .map_err(|e| {
                Error::transient(format!(
                    "the notice {} was not written: check where the log goes",
                    letter.key()
                ))
                .because(e)
            })
    }
}

/// One line, whatever the text holds.
fn line(letter: &Letter<'_>) -> String {
    let (notice, endpoint, id) = (letter.notice, letter.endpoint, letter.id);
    let page = if notice.page { "PAGE " } else { "" };
    let text: String = notice
        .text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let cut = notice.text.chars().nth(LONGEST).map_or("", |_| " ...");
    format!(
        "{page}{endpoint}: rollout {}: {text}{cut} [{id}]\n",
        notice.rollout
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;
    use llm_rollout::{EndpointId, IntentId, Notice, RolloutId, Seq};
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn chat() -> EndpointId {
        EndpointId::new("chat").unwrap()
    }

    fn letter<'a>(endpoint: &'a EndpointId, id: IntentId, notice: &'a Notice) -> Letter<'a> {
        Letter {
            endpoint,
            id,
            notice,
        }
    }

    fn notice(page: bool, text: &str) -> (IntentId, Notice) {
        let id = IntentId {
            seq: Seq::new(12),
            index: 1,
        };
        (
            id,
            Notice {
                page,
                rollout: RolloutId::new("chat-v2").unwrap(),
                text: text.to_owned(),
            },
        )
    }

    #[tokio::test]
    async fn writes_a_line_for_each() {
        let sink = Sink::default();
        let notifier = LogNotifier::to(sink.clone());
        for (id, notice) in [notice(false, "5 %"), notice(true, "rolled back:\nslow")] {
            notifier
                .notify(&letter(&chat(), id, &notice))
                .await
                .unwrap();
        }
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            written,
            "chat: rollout chat-v2: 5 % [12.1]\nPAGE chat: rollout chat-v2: rolled back: slow [12.1]\n"
        );
    }

    #[tokio::test]
    async fn a_sink_that_fails_is_transient() {
        let (id, notice) = notice(true, "x");
        let error = LogNotifier::to(Full)
            .notify(&letter(&chat(), id, &notice))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert!(error.to_string().contains("12.1"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_one_line(text in any::<String>(), page in any::<bool>()) {
            let (id, notice) = notice(page, &text);
            let line = line(&letter(&chat(), id, &notice));
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(line.ends_with(" [12.1]\n"));
        }
    }
}
