//! The terminal filter against what programs print by accident and on purpose.

use super::*;
use proptest::prelude::*;

fn shown(bytes: &[u8]) -> String {
    String::from_utf8(escape_terminal(bytes)).expect("what comes out is UTF-8")
}

// We want to know what passes and what is made visible.
#[test]
fn each_kind_of_byte() {
    for passes in [
        "a\n\tb\r\n",
        "é € 😀 字",
        "\x1b[31mred\x1b[0m",
        "\x1b[m",
        "\x1b[1;38;2;10;20;30mx\x1b[0m",
        "\x1b[4:3mx\x1b[m",
        "",
    ] {
        assert_eq!(shown(passes.as_bytes()), passes);
    }
    let escaped: [(&[u8], &str); 13] = [
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b[?25l", "\\x1b[?25l"),
        (b"\x1b[1 m", "\\x1b[1 m"),
        (b"\x1bc", "\\x1bc"),
        (b"\x1b\x1b[31m\x1b[0m", "\\x1b\x1b[31m\x1b[0m"),
        (b"\x1b[3\x1b[0m", "\\x1b[3\x1b[0m"),
        (b"a\x08\x00\x7f", "a\\x08\\x00\\x7f"),
        (b"\xff\xc3(", "\\xff\\xc3("),
        ("\u{9b}2J\u{85}".as_bytes(), "\\xc2\\x9b2J\\xc2\\x85"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        (b"\xe2\x82\x1b[0m", "\\xe2\\x82\x1b[0m"),
        (b"\xc0\xaf", "\\xc0\\xaf"),
    ];
    for (bytes, text) in escaped {
        assert_eq!(shown(bytes), text, "{bytes:?}");
    }
}

// We want to know that what is not complete at the end is shown, and colours that are left on are switched off.
#[test]
fn the_end_leaves_nothing_open() {
    assert_eq!(shown(b"x\x1b[3"), "x\\x1b[3");
    assert_eq!(shown(b"\xe2\x82"), "\\xe2\\x82");
    assert_eq!(shown(b"\x1b[31mred"), "\x1b[31mred\x1b[0m");
    let endless = [b"\x1b[".as_slice(), &[b'1'; 500]].concat();
    assert_eq!(shown(&endless), format!("\\x1b[{}", "1".repeat(500)));
    let mut filter = TerminalFilter::new();
    assert!(filter.filter(&endless).len() > 400, "it does not wait for ever");
}

// We want to know how text is shown inside our own lines.
#[test]
fn text_in_a_line() {
    assert_eq!(visible("a\nb\x1b[2J\u{9b}é"), "a\\nb\\x1b[2J\\u{9b}é");
    assert_eq!(visible("plain \\ text"), "plain \\ text");
    assert_eq!(visible("exe.\u{202e}txt"), "exe.\\u{202e}txt");
}

/// Bytes that are often more than noise: pieces of sequences and characters.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\x1b".to_vec()),
        Just(b"[".to_vec()),
        Just(b"31".to_vec()),
        Just(b";".to_vec()),
        Just(b"m".to_vec()),
        Just("é".as_bytes().to_vec()),
        Just("\u{9b}".as_bytes().to_vec()),
        Just("😀".as_bytes()[..3].to_vec()),
        proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Every ESC begins ESC [ digits ; : … m, and there is no other control byte.
fn is_safe(out: &[u8]) -> bool {
    let mut rest = out;
    while let Some(at) = rest.iter().position(|b| *b == ESC) {
        let Some(sequence) = rest[at + 1..].strip_prefix(b"[") else { return false };
        let end = sequence.iter().position(|b| !matches!(b, b'0'..=b'9' | b';' | b':'));
        if end.is_none_or(|end| sequence[end] != b'm') {
            return false;
        }
        rest = sequence;
    }
    let text = std::str::from_utf8(out);
    text.is_ok_and(|text| text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t' | '\r' | '\x1b')))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    // We want to know that nothing a program prints comes out as more than colours, and that cutting it anywhere makes
    // no difference; each piece alone is safe too, because another stream may write in between.
    #[test]
    fn any_output_is_safe_however_it_is_cut(bytes in hostile(), sizes in proptest::collection::vec(1usize..7, 1..10)) {
        let whole = escape_terminal(&bytes);
        prop_assert!(is_safe(&whole), "{:?}", whole);
        let mut filter = TerminalFilter::new();
        let mut out = Vec::new();
        let mut rest = bytes.as_slice();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            let filtered = filter.filter(piece);
            prop_assert!(is_safe(&filtered));
            out.extend(filtered);
            rest = after;
        }
        out.extend(filter.finish());
        prop_assert_eq!(out, whole);
    }

    // We want to know that text of ordinary people is not touched.
    #[test]
    fn printable_text_passes(text in "[^\\p{Cc}]{0,60}") {
        let out = escape_terminal(text.as_bytes());
        prop_assert_eq!(out, text.as_bytes());
    }
}
