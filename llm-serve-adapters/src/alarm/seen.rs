//! What was delivered lately.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// The most that is remembered.
const MOST: usize = 10_000;

/// Ids, each until a time.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<String, SystemTime>);

impl Seen {
    /// Whether it is the first time; remembers it until then.
    pub(super) fn first(&mut self, id: &str, now: SystemTime, until: SystemTime) -> bool {
        if self.0.get(id).is_some_and(|until| now <= *until) {
            return false;
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, until| now <= *until);
        }
        // Of too many, those go that would go first.
        if self.0.len() >= MOST
            && let Some(oldest) = self.0.iter().min_by_key(|(_, until)| **until)
        {
            let oldest = oldest.0.clone();
            self.0.remove(&oldest);
        }
        self.0.insert(id.to_owned(), until);
        true
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.0.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn what_is_remembered_is_bounded_and_ends() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        assert!(seen.first("a", at(0), at(10)) && !seen.first("a", at(10), at(20)));
        assert!(seen.first("a", at(11), at(20)), "it was long ago");
        seen.forget("a");
        assert!(seen.first("a", at(12), at(1_000)));
        for n in 0..MOST as u64 + 50 {
            assert!(seen.first(&n.to_string(), at(13), at(100 + n)));
        }
        assert_eq!(seen.0.len(), MOST);
        assert!(seen.first("0", at(14), at(20)), "the first to go went");
        assert!(!seen.first("10049", at(14), at(20)));
    }
}
