//! The languages that we speak.
//!
//! Faces ask for one with the user's locale. Deliberately not here: reading the environment.

/// A language that every sentence exists in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Language {
    /// English: also for everybody whose language we do not speak.
    #[default]
    English,
    /// French.
    French,
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 2] = [Language::English, Language::French];

    /// The language of a locale such as `fr_FR.UTF-8`, `fr-CA` or `fr`. Anything unknown, `C` and nothing at all are
    /// English.
    pub fn from_locale(locale: &str) -> Language {
        let name = locale.split(['_', '-', '.', '@']).next().unwrap_or_default();
        if name.eq_ignore_ascii_case("fr") { Language::French } else { Language::English }
    }

    /// One of two texts.
    pub(crate) fn pick<T>(self, english: T, french: T) -> T {
        match self {
            Language::English => english,
            Language::French => french,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Language;

    // We want to know that locales as systems and browsers write them are understood.
    #[test]
    fn locales() {
        for locale in ["fr_FR.UTF-8", "fr", "fr-CA", "FR", "fr@euro", "fr.UTF-8"] {
            assert_eq!(Language::from_locale(locale), Language::French, "{locale}");
        }
        for locale in ["en_US.UTF-8", "C", "", "POSIX", "C.UTF-8", "fro", "de_DE", "_fr"] {
            assert_eq!(Language::from_locale(locale), Language::English, "{locale}");
        }
    }
}
