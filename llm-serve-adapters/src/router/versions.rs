//! The versions that a process has ever served, each with a small number that stays valid.

use llm_version_core::VersionId;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A version that this process has served: small, `Copy`, and valid for the life of the process.
///
/// Memory: one entry for every version ever served, about 400 bytes each, at most [`VersionSlot::CAPACITY`]. Nothing is
/// removed, so that a slot never changes its meaning while a request runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionSlot(u16);

/// A version and its reference for people, made once.
#[derive(Debug)]
pub struct Version {
    id: Arc<VersionId>,
    reference: Arc<str>,
    #[cfg(feature = "tower")]
    header: Option<http::HeaderValue>,
}

impl Version {
    fn new(id: &VersionId) -> Self {
        let reference = id.reference().to_string();
        Self {
            id: Arc::new(id.clone()),
            #[cfg(feature = "tower")]
            header: http::HeaderValue::from_str(&reference).ok(),
            reference: reference.into(),
        }
    }

    /// Its reference, as a response carries it.
    #[cfg(feature = "tower")]
    pub fn header(&self) -> Option<http::HeaderValue> {
        self.header.clone()
    }

    /// Its id.
    pub fn id(&self) -> &Arc<VersionId> {
        &self.id
    }

    /// Its bundle reference: `name/v1.2.3-<hash>`.
    pub fn reference(&self) -> &Arc<str> {
        &self.reference
    }
}

/// More versions than a process is made to serve in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error(
    "this process has served {} versions, as many as it can tell apart: restart it",
    VersionSlot::CAPACITY
)]
pub struct TooManyVersions;

static SLOTS: Grow<OnceLock<Version>> = Grow::new(OnceLock::new());
static USED: Mutex<u16> = Mutex::new(0);

impl VersionSlot {
    /// The most versions that a process can tell apart.
    pub const CAPACITY: usize = Grow::<()>::CAPACITY;

    /// The version. Takes no lock.
    #[inline]
    pub fn version(self) -> Option<&'static Version> {
        SLOTS.get(self.0)?.get()
    }

    /// The slot of a version: the one it already has, or a new one. For hosts that know their workers' versions before any of
    /// them is served ([`super::Decision::filter`]). Takes a lock; not for the request path.
    ///
    /// # Errors
    /// The process has served [`Self::CAPACITY`] versions already.
    pub fn intern(id: &VersionId) -> Result<Self, TooManyVersions> {
        let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = search(id, *used) {
            return Ok(slot);
        }
        let index = *used;
        if usize::from(index) >= Self::CAPACITY {
            return Err(TooManyVersions);
        }
        SLOTS.entry(index).get_or_init(|| Version::new(id));
        *used += 1;
        Ok(Self(index))
    }

    /// The slot of a version, if this process has ever served it.
    pub fn find(id: &VersionId) -> Option<Self> {
        let used = *USED.lock().unwrap_or_else(PoisonError::into_inner);
        search(id, used)
    }

    pub(crate) const fn new(index: u16) -> Self {
        Self(index)
    }

    pub(crate) const fn index(self) -> u16 {
        self.0
    }
}

fn search(id: &VersionId, used: u16) -> Option<VersionSlot> {
    // The newest first: what is asked for is nearly always one of the last two.
    (0..used)
        .rev()
        .map(VersionSlot)
        .find(|slot| slot.version().is_some_and(|v| *v.id == *id))
}

const CHUNKS: usize = 12;
const FIRST: usize = 16;

/// An array that grows without moving: chunk `i` has `16 * 2^i` entries and is made when first needed.
pub(crate) struct Grow<T> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
    /// Where indices beyond the capacity end up; none are ever handed out.
    beyond: T,
}

impl<T> Grow<T> {
    /// Entries at the most.
    pub(crate) const CAPACITY: usize = FIRST * ((1 << CHUNKS) - 1);

    pub(crate) const fn new(beyond: T) -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            beyond,
        }
    }

    #[inline]
    fn locate(index: u16) -> (usize, usize) {
        let shifted = usize::from(index) + FIRST;
        let chunk = (shifted / FIRST).ilog2() as usize;
        (chunk, shifted - (FIRST << chunk))
    }

    /// The entry, if its chunk has been made.
    #[inline]
    pub(crate) fn get(&self, index: u16) -> Option<&T> {
        let (chunk, at) = Self::locate(index);
        self.chunks.get(chunk)?.get()?.get(at)
    }

    /// The entries whose chunks have been made, with their indices.
    pub(crate) fn made(&self) -> impl Iterator<Item = (u16, &T)> {
        let made = self.chunks.iter().zip(0_u32..);
        let made = made.filter_map(|(chunk, i)| Some((chunk.get()?, (FIRST << i) - FIRST)));
        made.flat_map(|(chunk, first)| {
            let numbered = (first..).zip(chunk);
            numbered.filter_map(|(index, entry)| Some((u16::try_from(index).ok()?, entry)))
        })
    }
}

impl<T: Default> Grow<T> {
    /// The entry; makes its chunk.
    #[inline]
    pub(crate) fn entry(&self, index: u16) -> &T {
        let (chunk, at) = Self::locate(index);
        self.chunks
            .get(chunk)
            .map(|c| c.get_or_init(|| (0..FIRST << chunk).map(|_| T::default()).collect()))
            .and_then(|c| c.get(at))
            .unwrap_or(&self.beyond)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::tests::version;

    #[test]
    fn a_slot_keeps_its_meaning() {
        let slots = (1000..1500)
            .map(|n| VersionSlot::intern(&version(n)).unwrap())
            .collect::<Vec<_>>();
        for (slot, n) in slots.iter().zip(1000..) {
            assert_eq!(**slot.version().unwrap().id(), version(n));
            assert_eq!(VersionSlot::intern(&version(n)).unwrap(), *slot);
            assert_eq!(VersionSlot::find(&version(n)), Some(*slot));
        }
        assert_eq!(VersionSlot::find(&version(999_999)), None);
        let reference = slots[3].version().unwrap().reference();
        assert!(version(1003).reference().to_string() == **reference);
    }

    #[test]
    fn places_are_distinct_and_within_their_chunk() {
        let mut last = (0, 0);
        for index in 1..u16::try_from(Grow::<u8>::CAPACITY).unwrap() {
            let (chunk, at) = Grow::<u8>::locate(index);
            assert!(chunk < CHUNKS && at < 16 << chunk);
            assert!((chunk, at) == (last.0, last.1 + 1) || (chunk, at) == (last.0 + 1, 0));
            last = (chunk, at);
        }
    }

    #[test]
    fn what_has_been_made_is_found_with_its_index() {
        let grow = Grow::<OnceLock<u16>>::new(OnceLock::new());
        for index in [3, 500, 65_519] {
            grow.entry(index).set(index).unwrap();
        }
        let found = grow.made().filter_map(|(i, n)| Some((i, *n.get()?)));
        assert!(found.eq([(3, 3), (500, 500), (65_519, 65_519)]));
    }
}
