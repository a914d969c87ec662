//! What a request is assigned by.

use llm_rollout::Timestamp;
use std::fmt;

/// What a request is assigned by.
///
/// The bytes are hashed and nothing else: a key is stored nowhere and appears in no output.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    pub(crate) session: Option<&'a [u8]>,
    pub(crate) pin: Option<Pin>,
    pub(crate) randomised: bool,
    pub(crate) chosen: bool,
    pub(crate) began: Option<Timestamp>,
}

impl<'a> Key<'a> {
    /// By session: the same bytes go to the same side, on every replica.
    #[inline]
    pub const fn session(bytes: &'a [u8]) -> Self {
        Self {
            session: Some(bytes),
            pin: None,
            randomised: true,
            chosen: false,
            began: None,
        }
    }

    /// By session, where clients make up the bytes: hashed with the router's secret
    /// ([`super::RouterBuilder::secret`]), so that nobody can work out a key that gets the candidate.
    #[inline]
    pub const fn untrusted(bytes: &'a [u8]) -> Self {
        Self {
            chosen: true,
            ..Self::session(bytes)
        }
    }

    /// Without a session: each request by itself. The router counts them ([`super::InProcessRouter::keyless`]).
    #[inline]
    pub const fn keyless() -> Self {
        Self {
            session: None,
            ..Self::session(&[])
        }
    }

    /// By session, where the conversation began at this moment: it keeps the version that it began with as the share grows,
    /// and only going back, or the end of the rollout, overrides that.
    ///
    /// Where there is no control arm, a conversation older than the newest raise is no evidence: such conversations are
    /// rarer with the candidate than with the baseline.
    #[must_use]
    pub const fn began(mut self, at: Timestamp) -> Self {
        self.began = Some(at);
        self
    }

    /// The same, with the moment that the session id itself tells if it is a UUID of version 7 (as text, in any case).
    #[must_use]
    pub fn dated(self) -> Self {
        match self.session.and_then(uuid_time) {
            Some(at) => self.began(at),
            None => self,
        }
    }

    /// To one side, whatever the hash says: internal users, a tenant's policy, a header. Not evidence.
    ///
    /// A pin to the candidate holds only while a candidate is being served; then as now it is the lease that decides.
    #[must_use]
    pub const fn pinned(mut self, pin: Pin) -> Self {
        self.pin = Some(pin);
        self.randomised = false;
        self
    }

    /// Assigned as ever, but recorded apart from the evidence: a retry, a probe, a warm-up.
    #[must_use]
    pub const fn apart(mut self) -> Self {
        self.randomised = false;
        self
    }

    /// The session, if nothing else about the key matters.
    #[inline]
    pub(crate) const fn usual(&self) -> Option<&'a [u8]> {
        if self.randomised && !self.chosen && self.pin.is_none() && self.began.is_none() {
            self.session
        } else {
            None
        }
    }
}

/// When a UUID of version 7 was made: its first 48 bits are Unix milliseconds.
fn uuid_time(text: &[u8]) -> Option<Timestamp> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let well_formed = text.iter().enumerate().all(|(i, byte)| match i {
        8 | 13 | 18 | 23 => *byte == b'-',
        14 => *byte == b'7',
        _ => byte.is_ascii_hexdigit(),
    });
    if !well_formed {
        return None;
    }
    let digits = text[..13]
        .iter()
        .filter_map(|b| char::from(*b).to_digit(16));
    let millis = digits.fold(0, |sum, digit| sum << 4 | u64::from(digit));
    Some(Timestamp::from_millis(millis))
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("session", &self.session.is_some())
            .field("pin", &self.pin)
            .field("randomised", &self.randomised)
            .field("began", &self.began)
            .finish_non_exhaustive()
    }
}

/// A side that a request is sent to whatever the hash says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a rollout has two sides")]
pub enum Pin {
    /// The version in production.
    Baseline,
    /// The version being rolled out.
    Candidate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_uuid_is_read() {
        // The example of RFC 9562, appendix A.6: 22 February 2022, 14:22:22 at UTC-5.
        let at = |text: &[u8]| Key::session(text).dated().began.map(Timestamp::as_millis);
        assert_eq!(
            at(b"017F22E2-79B0-7CC3-98C4-DC0C0C07398F"),
            Some(1_645_557_742_000)
        );
        assert_eq!(
            at(b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
            Some(1_645_557_742_000)
        );
        for other in [
            &b"017f22e2-79b0-4cc3-98c4-dc0c0c07398f"[..],
            b"017f22e2-79b0-7cc3-98c4-dc0c0c07398",
            b"017f22e2x79b0-7cc3-98c4-dc0c0c07398f",
            b"017f22e2-79b0-7cc3-98c4-dc0c0c0739\xff\xff",
            b"",
        ] {
            assert_eq!(at(other), None);
        }
    }
}
