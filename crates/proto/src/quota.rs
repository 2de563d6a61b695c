//! What a key may use: its quotas, as they are kept, asked for and shown.
//!
//! The key's record holds [`Quotas`], [`crate::api::KeySet`] changes them, [`crate::api::KeyView`] shows them beside what is
//! used. Always true: a quota is one word of text (`hub`, `none` or a number), the same in MessagePack, JSON and a record.
//! Deliberately not here: what counts as used, and what is refused (`core`).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How much of something a key may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Quota {
    /// As much as the hub's settings say; an admin key as much as it likes.
    #[default]
    Hub,
    /// As much as it likes.
    Unlimited,
    /// So much.
    At(u64),
}

/// Text that is no quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no quota: write a number, none or hub")]
pub struct QuotaError(String);

impl Quota {
    /// Nothing said?
    pub fn is_hubs(&self) -> bool {
        *self == Quota::Hub
    }

    /// The limit, where the hub's settings say `hubs`.
    pub fn limit(self, hubs: Option<u64>) -> Option<u64> {
        match self {
            Quota::Hub => hubs,
            Quota::Unlimited => None,
            Quota::At(limit) => Some(limit),
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quota::Hub => f.write_str("hub"),
            Quota::Unlimited => f.write_str("none"),
            Quota::At(limit) => write!(f, "{limit}"),
        }
    }
}

impl FromStr for Quota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Quota, QuotaError> {
        match text {
            "hub" => Ok(Quota::Hub),
            "none" => Ok(Quota::Unlimited),
            number => number.parse().map(Quota::At).map_err(|_| QuotaError(number.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for Quota {
    type Error = QuotaError;

    fn try_from(text: String) -> Result<Quota, QuotaError> {
        text.parse()
    }
}

impl From<Quota> for String {
    fn from(quota: Quota) -> String {
        quota.to_string()
    }
}

/// All quotas of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quotas {
    /// Tasks that wait or run; of an array each counts.
    #[serde(skip_serializing_if = "Quota::is_hubs")]
    pub queued_tasks: Quota,
    /// Bytes of files that its waiting and running jobs keep on the hub.
    #[serde(skip_serializing_if = "Quota::is_hubs")]
    pub stored_bytes: Quota,
    /// Requests in a second, over all its connections.
    #[serde(skip_serializing_if = "Quota::is_hubs")]
    pub requests_per_second: Quota,
}

impl Quotas {
    /// Nothing said?
    pub fn is_plain(&self) -> bool {
        *self == Quotas::default()
    }
}

/// One quota of a key, as lists show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QuotaView {
    /// How much it uses now; missing for a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// How much it may use; missing: as much as it likes.
    pub limit: Option<u64>,
    /// Was that said of this key, and not of all?
    pub own: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    // Is each quota the same after a trip as text, in JSON and in MessagePack, and nonsense refused?
    #[test]
    fn a_quota_is_one_word() {
        for (quota, text) in [(Quota::Hub, "hub"), (Quota::Unlimited, "none"), (Quota::At(20), "20")] {
            assert_eq!((quota.to_string().as_str(), text.parse()), (text, Ok(quota)));
            assert_eq!(serde_json::to_string(&quota).unwrap(), format!("{text:?}"));
            let quotas = Quotas { stored_bytes: quota, ..Quotas::default() };
            assert_eq!(crate::decode::<Quotas>(&crate::encode(&quotas)).unwrap(), quotas);
        }
        for text in ["", "-1", "many", "1.5"] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
        assert_eq!([Quota::Hub, Quota::Unlimited, Quota::At(3)].map(|q| q.limit(Some(7))), [Some(7), None, Some(3)]);
    }
}
