//! Finds bytes, eight at a time.

const ONES: u64 = u64::from_le_bytes([1; 8]);
const LOW: u64 = u64::from_le_bytes([0x7f; 8]);
const HIGH: u64 = !LOW;

/// The high bit of each byte of a word that equals this one.
const fn equal(word: u64, byte: u8) -> u64 {
    let differs = word ^ (ONES * byte as u64);
    // No sum carries over into the next byte.
    !(((differs & LOW) + LOW) | differs | LOW)
}

/// The high bit of the first byte of a word that is a control character (what is above it says nothing); zero if none is.
const fn control(word: u64) -> u64 {
    let marks = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
    marks & marks.wrapping_neg()
}

/// Which byte the lowest of these bits is in.
const fn first(marks: u64) -> usize {
    marks.trailing_zeros() as usize / 8
}

/// The first place of either byte.
pub(super) fn either(bytes: &[u8], one: u8, other: u8) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let marks = equal(word, one) | equal(word, other);
        if marks != 0 {
            return Some(index * 8 + first(marks));
        }
    }
    let within = rest.iter().position(|byte| *byte == one || *byte == other);
    within.map(|at| words.len() * 8 + at)
}

/// Shows every place of a byte up to the first control character, in order, as long as that goes well; where that character is.
/// None if it did not go well, or if there is none.
#[inline]
pub(super) fn line(bytes: &[u8], byte: u8, mut show: impl FnMut(usize) -> bool) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let (mut marks, end) = (equal(word, byte), control(word));
        if marks | end == 0 {
            continue;
        }
        // Those below it; all of them if there is none.
        marks &= end.wrapping_sub(1);
        while marks != 0 {
            if !show(index * 8 + first(marks)) {
                return None;
            }
            marks &= marks - 1;
        }
        if end != 0 {
            return Some(index * 8 + first(end));
        }
    }
    for (at, found) in (words.len() * 8..).zip(rest) {
        if *found < 0x20 {
            return Some(at);
        }
        if *found == byte && !show(at) {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        // Neighbours of what is looked for, and what differs from it in the high bit alone.
        let near = proptest::sample::select(b":;9\xba \x1f\xa0\x9f\x80\xff".as_slice());
        let one = prop_oneof![8 => near, 1 => any::<u8>()];
        proptest::collection::vec(one, 0..70)
    }

    proptest! {
        #[test]
        fn either_byte_is_found_where_it_is(bytes in bytes()) {
            let is = |byte: &u8| matches!(byte, b'9' | b';');
            prop_assert_eq!(either(&bytes, b'9', b';'), bytes.iter().position(is));
        }

        #[test]
        fn a_line_is_gone_through_to_its_end(bytes in bytes(), most in 1..10_usize) {
            let end = bytes.iter().position(|byte| *byte < 0x20);
            let within = bytes.get(..end.unwrap_or(bytes.len())).unwrap();
            let all: Vec<usize> = (0..within.len()).filter(|at| within[*at] == b':').collect();
            let mut shown = Vec::new();
            let found = line(&bytes, b':', |at| { shown.push(at); shown.len() < most });
            prop_assert_eq!(&shown, &all[..all.len().min(most)]);
            prop_assert_eq!(found, end.filter(|_| all.len() < most));
        }
    }
}
