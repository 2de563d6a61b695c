//! Sentences with parameters.
//!
//! `refusal`, `reason` and `outcome` call it. A template is text with:
//!
//! ```text
//! {name}                  the parameter, control characters made visible; ? when it is missing
//! {name:duration}         milliseconds as a duration
//! {name:bytes}            bytes as a size
//! {name|one|# of many}    by the parameter's number, which stands in place of #
//! [text {name}]           only when all parameters inside are there and not empty
//! ```
//!
//! Always true: whatever the parameters are, a text comes out; a peer of another version may send fewer or other ones.
//! Deliberately not here: the templates.

use crate::language::Language;
use crate::terminal::visible;
use crate::units::{bytes, duration};
use std::collections::BTreeMap;

/// Parameters by name.
pub(crate) type Params = BTreeMap<String, String>;

/// The template with its parameters.
pub(crate) fn fill(template: &str, params: &Params, language: Language) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '[']) {
        let (before, marked) = rest.split_at(at);
        text.push_str(before);
        let optional = marked.starts_with('[');
        let close = if optional { ']' } else { '}' };
        let Some((inside, after)) = marked[1..].split_once(close) else {
            // A template with a mistake still shows its text; a test keeps ours without.
            rest = marked;
            break;
        };
        if !optional {
            text.push_str(&parameter(inside, params, language));
        } else if names(inside).all(|name| params.get(name).is_some_and(|value| !value.is_empty())) {
            text.push_str(&fill(inside, params, language));
        }
        rest = after;
    }
    text + rest
}

/// Names of the parameters that a template uses.
pub(crate) fn names(template: &str) -> impl Iterator<Item = &str> {
    template.split('{').skip(1).map(|piece| piece.split(['}', ':', '|']).next().unwrap_or_default())
}

/// A code that has no sentence here, with all that came with it.
pub(crate) fn fallback(code: &str, params: &Params) -> String {
    let mut text = visible(code);
    for (n, (name, value)) in params.iter().enumerate() {
        text.push_str(if n == 0 { ": " } else { ", " });
        text.push_str(&visible(name));
        text.push('=');
        text.push_str(&visible(value));
    }
    text
}

fn parameter(inside: &str, params: &Params, language: Language) -> String {
    let name = names_in(inside);
    let Some(value) = params.get(name).filter(|value| !value.is_empty()) else { return "?".to_owned() };
    let number = value.parse::<u64>().ok();
    if let Some(forms) = inside.split_once('|').map(|(_, forms)| forms) {
        let (one, many) = forms.split_once('|').unwrap_or((forms, forms));
        let form = if is_one(number, language) { one } else { many };
        return form.replace('#', &visible(value));
    }
    match (inside.split_once(':').map(|(_, unit)| unit), number) {
        (Some("duration"), Some(number)) => duration(number),
        (Some("bytes"), Some(number)) => bytes(number),
        _ => visible(value),
    }
}

fn names_in(inside: &str) -> &str {
    inside.split([':', '|']).next().unwrap_or_default()
}

/// French counts zero as one.
fn is_one(number: Option<u64>, language: Language) -> bool {
    number == Some(1) || (number == Some(0) && language == Language::French)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn english(template: &str, pairs: &[(&str, &str)]) -> String {
        fill(template, &params(pairs), Language::English)
    }

    // We want to know each form of a template, with good, missing, empty and hostile parameters.
    #[test]
    fn templates() {
        assert_eq!(english("a {x} b {x}", &[("x", "1")]), "a 1 b 1");
        assert_eq!(english("a {x}", &[]), "a ?");
        assert_eq!(english("after {t:duration}", &[("t", "180000")]), "after 180 s");
        assert_eq!(english("after {t:duration}", &[("t", "soon")]), "after soon");
        assert_eq!(english("over {b:bytes}", &[("b", "1048576")]), "over 1 MiB");
        assert_eq!(english("{n|the only node|# nodes}", &[("n", "1")]), "the only node");
        assert_eq!(english("{n|the only node|# nodes}", &[("n", "0")]), "0 nodes");
        assert_eq!(english("{n|the only node|# nodes}", &[]), "?");
        assert_eq!(english("no[ like {x}].", &[("x", "a")]), "no like a.");
        assert_eq!(english("no[ like {x}].", &[("x", "")]), "no.");
        assert_eq!(english("{x}", &[("x", "a\x1b[2Jb\n")]), "a\\x1b[2Jb\\n");
        assert_eq!(english("{x}", &[("x", "{y}[z]")]), "{y}[z]");
        assert_eq!(english("open {x", &[("x", "1")]), "open {x");
        assert_eq!(fill("{n|# nœud|# nœuds}", &params(&[("n", "0")]), Language::French), "0 nœud");
    }

    // We want to know what is shown for a code of a newer version.
    #[test]
    fn unknown_codes_show_all_they_bring() {
        assert_eq!(fallback("moon_phase", &Params::new()), "moon_phase");
        assert_eq!(fallback("moon_phase", &params(&[("of", "2\n"), ("is", "full")])), "moon_phase: is=full, of=2\\n");
    }
}
