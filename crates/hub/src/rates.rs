//! How often each key may ask, over all its connections.
//!
//! The driver sets the rate of a key when one of its sessions opens and when an admin changes it; client sessions ask before
//! each request that counts. Always true: a key without a rate is asked nothing and remembered nowhere; nobody waits here,
//! who asks too often is told when to come back.
//! Deliberately not here: the bucket (`essaim_core::rate`), who may ask how often (the core), waiting (the client).

use essaim_core::rate::Bucket;
use essaim_proto::{Function, KeyName, Refusal, RefusalCode};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The buckets of the keys that have a rate.
#[derive(Debug)]
pub(crate) struct Rates {
    begun: Instant,
    buckets: Mutex<BTreeMap<KeyName, Bucket>>,
}

impl Default for Rates {
    fn default() -> Rates {
        Rates { begun: Instant::now(), buckets: Mutex::default() }
    }
}

/// Does this word count? Not what ends something, what belongs to an answer that is on its way, or the files of a
/// submission that was let through.
pub(crate) fn counts(function: Function) -> bool {
    !matches!(
        function,
        Function::JOB_CANCEL
            | Function::UNWATCH
            | Function::OUTPUT_ACK
            | Function::STDIN
            | Function::BLOB_PUT
            | Function::BLOB_BYTES
            | Function::CREDIT
    )
}

impl Rates {
    /// From now on the key may ask so often in a second; `None`: as often as it likes.
    pub(crate) fn set(&self, key: &KeyName, per_second: Option<u64>) {
        let now_ms = self.now_ms();
        let mut buckets = self.buckets();
        match per_second {
            None => drop(buckets.remove(key)),
            Some(rate) => match buckets.get_mut(key) {
                Some(bucket) if bucket.per_second() == rate => {}
                Some(bucket) => bucket.set(rate, now_ms),
                None => drop(buckets.insert(key.clone(), Bucket::new(rate, now_ms))),
            },
        }
    }

    /// May it ask now?
    ///
    /// # Errors
    /// `rate_limited`, with when it may.
    pub(crate) fn take(&self, key: &KeyName) -> Result<(), Refusal> {
        let now_ms = self.now_ms();
        let mut buckets = self.buckets();
        let Some(bucket) = buckets.get_mut(key) else { return Ok(()) };
        bucket.take(now_ms).map_err(|retry_after_ms| {
            let refusal = Refusal::new(RefusalCode::RateLimited).with("limit", bucket.per_second());
            refusal.with("retry_after_ms", retry_after_ms)
        })
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn buckets(&self) -> MutexGuard<'_, BTreeMap<KeyName, Bucket>> {
        // A bucket is whole between any two words.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
