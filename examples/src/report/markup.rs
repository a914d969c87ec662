//! Text and numbers as HTML.

use std::fmt::Write as _;

/// Text that is safe between tags and in quoted attributes. Characters that
/// HTML cannot hold become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A count, its thousands apart.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A time since the beginning: `7.3 s`, `2:05`, `3:07:00`.
pub(super) fn clock(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "\u{2013}".to_owned();
    }
    let seconds = seconds.max(0.0);
    if seconds < 59.95 {
        return format!("{seconds:.1}\u{202f}s");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; a cast saturates"
    )]
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours == 0 {
        format!("{minutes}:{seconds:02}")
    } else {
        format!("{hours}:{minutes:02}:{seconds:02}")
    }
}

/// A duration in words.
pub(super) fn span(seconds: f64) -> String {
    if seconds < 59.95 || !seconds.is_finite() {
        clock(seconds)
    } else {
        format!("{} min", clock(seconds))
    }
}

/// Preformatted text, with added and removed lines marked.
pub(super) fn difference(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let class = match line.trim_start().chars().next() {
            Some('+') => "add",
            Some('-' | '\u{2212}') => "del",
            _ => "",
        };
        let line = escape(line);
        // writing to a string cannot fail
        let _ = if class.is_empty() {
            writeln!(out, "{line}")
        } else {
            writeln!(out, "<span class=\"{class}\">{line}</span>")
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(clock(7.26), "7.3\u{202f}s");
        assert_eq!(clock(125.0), "2:05");
        assert_eq!(clock(11_220.0), "3:07:00");
        assert_eq!(clock(f64::NAN), "\u{2013}");
    }

    #[test]
    fn lines_of_a_difference_are_marked_and_escaped() {
        let html = difference("same\n+ <b>\n  - x & y\n");
        assert!(html.contains("<span class=\"add\">+ &lt;b&gt;</span>"));
        assert!(html.contains("<span class=\"del\">  - x &amp; y</span>"));
    }

    proptest! {
        #[test]
        fn nothing_escapes_the_escaping(text in "\\PC*[<>&\"'\\x00-\\x1f]{0,5}\\PC*") {
            let html = escape(&text);
            prop_assert!(!html.contains(['<', '>', '"', '\'']));
            let plain = html
                .replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"")
                .replace("&#39;", "'").replace("&amp;", "&");
            let kept = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
            prop_assert_eq!(plain, text.chars().map(kept).collect::<String>());
        }
    }
}
