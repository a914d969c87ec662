//! What tenants have agreed to: who is never a canary, who always is, whose requests are neither mirrored nor stored.

use super::key::{Key, Pin};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;

/// What a tenant has agreed to; by default everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::exhaustive_structs,
    clippy::struct_excessive_bools,
    reason = "plain data: hosts write it down"
)]
pub struct TenantPolicy {
    /// Never served by a candidate; no evidence either.
    pub no_canary: bool,
    /// Never mirrored to a candidate.
    pub no_shadow: bool,
    /// Nothing of its requests and replies is kept, whatever the endpoint keeps.
    pub no_store: bool,
    /// Always on the candidate, while there is one: those who have volunteered.
    pub volunteers: bool,
}

impl TenantPolicy {
    /// Everybody's.
    pub const OPEN: Self = Self {
        no_canary: false,
        no_shadow: false,
        no_store: false,
        volunteers: false,
    };
    /// Of those who take part in nothing.
    pub const CLOSED: Self = Self {
        no_canary: true,
        no_shadow: true,
        no_store: true,
        volunteers: false,
    };

    /// The key under this policy: pinned where the policy says so, which is then no evidence. What the request itself pins
    /// holds only where the policy has nothing against it.
    #[must_use]
    pub const fn key<'a>(&self, key: Key<'a>) -> Key<'a> {
        if self.no_canary {
            key.pinned(Pin::Baseline)
        } else if self.volunteers && key.pin.is_none() {
            key.pinned(Pin::Candidate)
        } else {
            key
        }
    }
}

/// The policies of all tenants. A lookup allocates nothing.
///
/// ```
/// use llm_serve_adapters::router::{Key, Policies, TenantPolicy};
///
/// // Ourselves first, one customer never, nobody else yet: lists that are changed between rollouts, not while one runs.
/// let ring = Policies::new(TenantPolicy { no_canary: true, ..TenantPolicy::OPEN })
///     .tenant("our-own", TenantPolicy { volunteers: true, ..TenantPolicy::OPEN })
///     .tenant("friendly", TenantPolicy::OPEN)
///     .tenant("bank", TenantPolicy::CLOSED);
/// let key = ring.of(b"friendly").key(Key::session(b"session-1"));
/// # drop(key);
/// ```
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policies {
    others: TenantPolicy,
    tenants: HashMap<String, TenantPolicy>,
}

impl Policies {
    /// This policy for everybody who is not named: [`TenantPolicy::OPEN`] where lists exclude, one with `no_canary` where
    /// lists admit.
    pub fn new(others: TenantPolicy) -> Self {
        Self {
            others,
            tenants: HashMap::new(),
        }
    }

    /// This policy for one tenant.
    #[must_use]
    pub fn tenant(mut self, name: impl Into<String>, policy: TenantPolicy) -> Self {
        self.tenants.insert(name.into(), policy);
        self
    }

    /// The policy of a tenant, as it names itself in a request; whoever sends that must have checked it.
    pub fn of(&self, tenant: &[u8]) -> TenantPolicy {
        let named = str::from_utf8(tenant)
            .ok()
            .and_then(|name| self.tenants.get(name));
        *named.unwrap_or(&self.others)
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("others", &self.others)
            .field("tenants", &self.tenants.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_goes_before_what_a_request_asks_for() {
        let key = |policy: TenantPolicy, key: Key<'static>| {
            let key = policy.key(key);
            (key.pin, key.randomised)
        };
        let session = Key::session(b"s");
        assert_eq!(key(TenantPolicy::OPEN, session), (None, true));
        let (baseline, candidate) = (Some(Pin::Baseline), Some(Pin::Candidate));
        assert_eq!(key(TenantPolicy::CLOSED, session), (baseline, false));
        assert_eq!(
            key(TenantPolicy::CLOSED, session.pinned(Pin::Candidate)),
            (baseline, false)
        );
        let eager = TenantPolicy {
            volunteers: true,
            ..TenantPolicy::OPEN
        };
        assert_eq!(key(eager, session), (candidate, false));
        assert_eq!(key(eager, session.pinned(Pin::Baseline)), (baseline, false));
    }

    #[test]
    fn who_is_not_named_has_the_policy_of_the_others() {
        let closed = Policies::new(TenantPolicy::CLOSED).tenant("a", TenantPolicy::OPEN);
        assert_eq!(closed.of(b"a"), TenantPolicy::OPEN);
        for other in [&b"b"[..], b"", b"\xff"] {
            assert_eq!(closed.of(other), TenantPolicy::CLOSED);
        }
        assert!(!format!("{closed:?}").contains("\"a\""));
        let written = serde_json::json!({"others": {"no_canary": true}, "tenants": {"a": {"volunteers": true}}});
        let read: Policies = serde_json::from_value(written).unwrap();
        assert!(read.of(b"a").volunteers && read.of(b"b").no_canary);
    }
}
