//! Counts the messages of a gRPC reply as it passes, and reads how it ended.

use crate::recorder::OutcomeClass;
use http::HeaderMap;

/// The scanner's whole memory: no input makes it grow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Grpc {
    /// Bytes of the head of the next message that have come: a flag, then its length in four.
    head: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
    messages: u64,
    status: Option<u16>,
    /// Some of it could not be looked at: nothing is counted any more.
    pub(super) lost: bool,
}

const HEAD: usize = 5;

impl Grpc {
    /// A reply that fails at once has its status in the headers.
    pub(crate) fn new(headers: &HeaderMap) -> Self {
        let mut grpc = Self::default();
        grpc.status(headers);
        grpc
    }

    pub(crate) fn status(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("grpc-status") {
            let code = value.to_str().ok().and_then(|text| text.parse().ok());
            self.status = Some(code.unwrap_or(u16::MAX));
        }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !self.lost {
            if self.left > 0 {
                let here = rest
                    .len()
                    .min(usize::try_from(self.left).unwrap_or(usize::MAX));
                // No more than is left.
                self.left -= u32::try_from(here).unwrap_or(self.left);
                rest = rest.get(here..).unwrap_or_default();
            }
            let Some((byte, tail)) = rest.split_first() else {
                return;
            };
            rest = tail;
            if self.head > 0 {
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.head += 1;
            if self.head == HEAD {
                self.messages += u64::from(self.length > 0);
                (self.left, self.length, self.head) = (self.length, 0, 0);
            }
        }
    }

    /// Messages that have begun and are not empty.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether it has said how it ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// How it ended; without a status it was cut off.
    pub(crate) fn class(&self) -> OutcomeClass {
        let late = self.messages > 0;
        match self.status {
            Some(0) => OutcomeClass::Ok,
            Some(1) => OutcomeClass::ClientCancel,
            Some(4) => OutcomeClass::Timeout,
            Some(8) => OutcomeClass::Overload,
            // Invalid argument, not found, exists already, permission, precondition, aborted, range, unimplemented, unauthenticated.
            Some(3 | 5..=7 | 9..=12 | 16) => OutcomeClass::ClientError,
            // Unknown, internal, unavailable, data loss, and what there is not.
            Some(_) if late => OutcomeClass::MidStreamError,
            Some(_) => OutcomeClass::UpstreamError,
            None => OutcomeClass::MidStreamError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ended(status: &'static str) -> OutcomeClass {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        Grpc::new(&trailers).class()
    }

    #[test]
    fn the_status_says_how_it_ended() {
        assert_eq!(ended("0"), OutcomeClass::Ok);
        assert_eq!(ended("4"), OutcomeClass::Timeout);
        assert_eq!(ended("8"), OutcomeClass::Overload);
        assert_eq!(ended("3"), OutcomeClass::ClientError);
        for status in ["2", "13", "14", "15", "99", "no number"] {
            assert_eq!(ended(status), OutcomeClass::UpstreamError, "{status}");
        }
        assert_eq!(Grpc::default().class(), OutcomeClass::MidStreamError);
    }

    proptest! {
        #[test]
        fn messages_are_counted_wherever_they_are_cut(
            lengths in proptest::collection::vec(0..300_usize, 0..8), cuts in proptest::collection::vec(0..2_500_usize, 0..12),
        ) {
            let mut stream = Vec::new();
            for length in &lengths {
                stream.push(0);
                stream.extend(u32::try_from(*length).unwrap().to_be_bytes());
                stream.extend(std::iter::repeat_n(7, *length));
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut grpc = Grpc::default();
            for pair in cuts.windows(2) {
                grpc.feed(&stream[pair[0]..pair[1]]);
            }
            let expected = lengths.iter().filter(|length| **length > 0).count();
            prop_assert_eq!(grpc.messages(), expected as u64);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Grpc::default().feed(&bytes);
        }
    }
}
