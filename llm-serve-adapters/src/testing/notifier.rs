//! What every [`Notifier`] must do.

use super::{Violation, ensure};
use crate::host::{ErrorKind, Letter, Notifier, Result as HostResult};
use async_trait::async_trait;
use llm_rollout::{EndpointId, IntentId, Notice, RolloutId, Seq};
use std::sync::Arc;
use std::time::Duration;

type Outcome = Result<(), Violation>;

/// The most bytes that one notice may take on its way, whatever its text.
pub const LARGEST: usize = 64 << 10;

/// How a receiver behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behaviour {
    /// It takes what it gets.
    Accepts,
    /// It refuses for good: it does not know the address, or the key.
    Refuses,
    /// It cannot now, and says so.
    Busy,
    /// It never answers.
    Hangs,
    /// Nobody is there.
    Gone,
    /// It answers with success, and then with more bytes than anybody should read.
    Floods,
}

/// What a receiver got.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain data, made by hosts")]
pub struct Received {
    /// By what the receiver tells whether it has seen the notice before.
    pub key: String,
    /// What people read.
    pub text: String,
    /// How large it was on its way.
    pub bytes: usize,
}

/// What the suite needs of a host: a notifier, and the receiver that it tells.
///
/// Its futures need not be `Send`: implement it with `#[async_trait(?Send)]`.
#[async_trait(?Send)]
pub trait Receiver {
    /// The notifier, which tells this receiver.
    fn notifier(&self) -> Arc<dyn Notifier>;

    /// What has come since this was asked last, in order.
    async fn received(&mut self) -> Vec<Received>;

    /// From now on the receiver behaves so; `false` where this one cannot.
    async fn behave(&mut self, how: Behaviour) -> bool;

    /// What must show up in no error and no debug output.
    fn secret(&self) -> Option<String> {
        None
    }

    /// How long one call may take, in real time or in the runtime's paused time: with time to spare.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Runs every check. It needs a tokio runtime with time.
///
/// ```
/// # use async_trait::async_trait;
/// # use llm_serve_adapters::host::{Error, Letter, Notifier};
/// # use llm_serve_adapters::testing::notifier::{Behaviour, Received, Receiver, suite};
/// # use std::sync::{Arc, Mutex};
/// /// Keeps the first line of every notice.
/// #[derive(Debug, Clone, Default)]
/// struct Desk { notes: Arc<Mutex<Vec<Received>>>, closed: Arc<Mutex<bool>> }
///
/// #[async_trait]
/// impl Notifier for Desk {
///     async fn notify(&self, letter: &Letter<'_>) -> Result<(), Error> {
///         if *self.closed.lock().expect("whole") {
///             return Err(Error::transient("the desk is closed: come back"));
///         }
///         let text: String = letter.notice.text.chars().take(1_000).collect();
///         let note = Received { key: letter.key(), bytes: text.len(), text };
///         self.notes.lock().expect("whole").push(note);
///         Ok(())
///     }
/// }
///
/// #[async_trait(?Send)]
/// impl Receiver for Desk {
///     fn notifier(&self) -> Arc<dyn Notifier> { Arc::new(self.clone()) }
///     async fn received(&mut self) -> Vec<Received> { std::mem::take(&mut *self.notes.lock().expect("whole")) }
///     async fn behave(&mut self, how: Behaviour) -> bool {
///         *self.closed.lock().expect("whole") = how == Behaviour::Busy;
///         matches!(how, Behaviour::Accepts | Behaviour::Busy)
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_serve_adapters::testing::Violation> {
/// suite(&mut Desk::default()).await
/// # }
/// ```
///
/// # Errors
/// The first rule that the notifier breaks.
pub async fn suite(receiver: &mut dyn Receiver) -> Outcome {
    told(receiver).await?;
    keys(receiver).await?;
    any_text(receiver).await?;
    trouble(receiver).await
}

/// A notice, whole.
struct Sent {
    endpoint: EndpointId,
    id: IntentId,
    notice: Notice,
}

fn named<T, E: std::error::Error>(name: Result<T, E>) -> Result<T, Violation> {
    name.map_err(|e| Violation {
        rule: "the suite's own names are names",
        found: e.to_string(),
    })
}

impl Sent {
    fn new(seq: u64, text: &str) -> Result<Self, Violation> {
        Ok(Self {
            endpoint: named(EndpointId::new("conformance"))?,
            id: IntentId {
                seq: Seq::new(seq),
                index: 0,
            },
            notice: Notice {
                page: true,
                rollout: named(RolloutId::new("chat-v2"))?,
                text: text.to_owned(),
            },
        })
    }

    async fn tell(&self, receiver: &dyn Receiver) -> Result<HostResult<()>, Violation> {
        let letter = Letter {
            endpoint: &self.endpoint,
            id: self.id,
            notice: &self.notice,
        };
        let (notifier, patience) = (receiver.notifier(), receiver.patience());
        let told = tokio::time::timeout(patience, notifier.notify(&letter)).await;
        let told = told.map_err(|_| Violation {
            rule: "every call ends by itself",
            found: format!("it waited {patience:?}"),
        })?;
        if let Some(secret) = receiver.secret() {
            let shown = format!(
                "{told:?} {notifier:?} {}",
                told.as_ref()
                    .err()
                    .map_or_else(String::new, ToString::to_string)
            );
            let rule = "errors and debug output hold no secret";
            ensure(rule, !shown.contains(&secret), &told)?;
        }
        Ok(told)
    }

    /// Tells it, and gives what the receiver got.
    async fn arrives(&self, receiver: &mut dyn Receiver) -> Result<Received, Violation> {
        receiver.received().await;
        let told = self.tell(receiver).await?;
        ensure("a receiver that accepts is told", told.is_ok(), &told)?;
        let mut received = receiver.received().await;
        match (received.pop(), received.pop()) {
            (Some(one), None) => Ok(one),
            (one, more) => Err(Violation {
                rule: "a notice arrives as one message",
                found: format!("{one:?} {more:?}"),
            }),
        }
    }
}

/// A page arrives, with its text; a notice that wakes nobody may be left out, but is no error.
///
/// # Errors
/// The rule that is broken.
pub async fn told(receiver: &mut dyn Receiver) -> Outcome {
    receiver.behave(Behaviour::Accepts).await;
    let text = "rolled back: ttft is 31 percent slower";
    let mut sent = Sent::new(1, text)?;
    let received = sent.arrives(receiver).await?;
    let rule = "a page arrives with its text";
    ensure(rule, received.text.contains(text), received)?;
    sent.notice.page = false;
    let told = sent.tell(receiver).await?;
    ensure("a notice that is no page is no error", told.is_ok(), told)
}

/// A notice that is sent again has the same key; another notice has another, whatever they have in common.
///
/// # Errors
/// The rule that is broken.
pub async fn keys(receiver: &mut dyn Receiver) -> Outcome {
    receiver.behave(Behaviour::Accepts).await;
    let first = Sent::new(2, "the same words")?;
    let key = first.arrives(receiver).await?.key;
    let again = first.arrives(receiver).await?.key;
    let rule = "sent again, it has the same key";
    ensure(rule, key == again, (&key, again))?;
    let mut others = vec![
        Sent::new(3, "the same words")?,
        Sent::new(2, "the same words")?,
    ];
    others.extend([
        Sent::new(2, "the same words")?,
        Sent::new(2, "the same words")?,
    ]);
    if let [_, index, endpoint, rollout] = &mut others[..] {
        index.id.index = 1;
        endpoint.endpoint = named(EndpointId::new("conformance-2"))?;
        rollout.notice.rollout = named(RolloutId::new("chat-v3"))?;
    }
    for other in others {
        let other = other.arrives(receiver).await?.key;
        let rule = "another notice has another key, even with the same words";
        ensure(rule, key != other, (&key, other))?;
    }
    Ok(())
}

/// Any text arrives as one message, and none is larger than [`LARGEST`].
///
/// # Errors
/// The rule that is broken.
pub async fn any_text(receiver: &mut dyn Receiver) -> Outcome {
    receiver.behave(Behaviour::Accepts).await;
    let texts = [
        String::new(),
        "two\nlines\r\nand \"quotes\" \\ <tags> & \u{7} \u{0} @all {{braces}} \u{1f600}".to_owned(),
        "\u{202e}\u{0}\u{1b}[31m".repeat(50),
        "e\u{301}".repeat(1 << 20),
        "\"\\\n".repeat(1 << 20),
    ];
    for (seq, text) in (10..).zip(&texts) {
        let received = Sent::new(seq, text)?.arrives(receiver).await?;
        let rule = "no notice is larger than 64 KiB, whatever its text";
        ensure(
            rule,
            received.bytes <= LARGEST,
            (text.len(), received.bytes),
        )?;
    }
    Ok(())
}

/// A receiver in trouble gives an error that says whether to try again, in time; once it is well, it is told again.
///
/// # Errors
/// The rule that is broken.
pub async fn trouble(receiver: &mut dyn Receiver) -> Outcome {
    for (how, kind, rule) in [
        (
            Behaviour::Refuses,
            Some(ErrorKind::Permanent),
            "a refusal for good is Permanent",
        ),
        (
            Behaviour::Busy,
            Some(ErrorKind::Transient),
            "a receiver that cannot now is Transient",
        ),
        (
            Behaviour::Hangs,
            Some(ErrorKind::Transient),
            "a receiver that hangs is Transient",
        ),
        (
            Behaviour::Gone,
            Some(ErrorKind::Transient),
            "a receiver that is gone is Transient",
        ),
        (Behaviour::Floods, None, ""),
    ] {
        if !receiver.behave(how).await {
            continue;
        }
        let sent = Sent::new(20, "in trouble")?;
        let told = sent.tell(receiver).await?;
        match (kind, &told) {
            (Some(kind), told) => {
                let right = told.as_ref().is_err_and(|e| e.kind() == kind);
                ensure(rule, right, told)?;
            }
            (None, Err(e)) => ensure(
                "a notifier is never fenced out",
                e.kind() != ErrorKind::Fenced,
                e,
            )?,
            (None, Ok(())) => {}
        }
        receiver.behave(Behaviour::Accepts).await;
        sent.arrives(receiver).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
