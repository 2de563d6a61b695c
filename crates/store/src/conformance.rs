//! The suite that every back-end passes: the promises at the top of [`crate::port`], one by one.
//!
//! A back-end's tests write `suite!(open);` with a function that opens a fresh, empty store; each promise becomes a test
//! of its own. `suite!(open, again);` adds what a store must promise that outlives its process. Always true: the suite knows no back-end and uses the port alone.
//! Deliberately not here: faults of a back-end's own (its tests have them), and speed.

pub(crate) mod blobs;
pub(crate) mod catalog;
pub(crate) mod journal;
pub(crate) mod lead;
pub(crate) mod outputs;
pub(crate) mod outputs_model;
pub(crate) mod reopening;

use crate::{Store, StoreLimits};
use std::path::Path;

/// A fresh store and the folder that it lives in.
pub(crate) struct Opened {
    pub(crate) store: Store,
    /// Removed after the store, so after the test.
    pub(crate) folder: tempfile::TempDir,
}

/// Opens a fresh, empty store.
pub(crate) type Open = fn(StoreLimits) -> Opened;

/// Opens the store of a folder again, after it was dropped.
pub(crate) type Again = fn(&Path, StoreLimits) -> Store;

macro_rules! suite {
    // For a back-end whose stores outlive the process.
    ($open:ident, again $again:ident) => {
        $crate::conformance::suite!($open);
        $crate::conformance::suite!($open, $again, reopening:
            what_was_appended_is_there_again, a_term_outlives_its_process, a_trim_is_for_good,
            a_new_snapshot_takes_the_place_of_the_old_one, an_empty_journal_goes_on_after_its_end,
            what_was_applied_is_there_again, the_unknown_output_is_dropped_at_a_start);
    };
    ($open:ident, $again:ident, $part:ident: $($name:ident),+) => {
        mod $part {
            $(#[test] fn $name() { $crate::conformance::$part::$name(super::$open, super::$again); })+
        }
    };
    ($open:ident) => {
        $crate::conformance::suite!($open, journal:
            a_new_journal_is_empty, batches_come_back_in_order, a_read_pages, a_foreign_end_is_fenced,
            a_term_that_nobody_gave_is_deposed, a_failure_in_the_middle_fails_what_follows, too_large_is_refused,
            a_full_journal_refuses_and_goes_on_after_a_trim, ends_are_told_in_order_and_once,
            an_end_may_append_again, only_one_of_two_appenders_wins, a_snapshot_is_kept, a_bad_snapshot_is_refused,
            trim_stops_at_the_snapshot, a_reader_sees_no_half_batch);
        $crate::conformance::suite!($open, lead:
            terms_grow, a_held_lead_is_refused, an_expired_lead_is_taken, renewing_keeps_the_lead,
            a_late_renewal_is_lost, a_released_lead_is_free, the_same_holder_gets_a_new_term, the_old_lead_is_fenced);
        $crate::conformance::suite!($open, blobs:
            a_blob_comes_back, the_empty_blob_is_a_blob, a_wrong_hash_is_refused, ranges_are_cut, pieces_make_a_blob,
            a_wrong_size_is_refused, missing_names_what_is_not_there, remove_forgets, blobs_are_bounded,
            a_blob_twice_takes_its_room_once, many_threads_put_at_once);
        $crate::conformance::suite!($open, outputs:
            an_unknown_output_is_empty, bytes_come_back, a_resend_is_skipped, a_gap_is_refused, reads_are_cut,
            what_is_dropped_is_said, dropping_gives_room_back, output_is_bounded, reads_while_writing_are_exact,
            settled_is_durable, settling_is_told_in_order_and_once, a_small_output_travels_whole,
            a_released_output_is_forgotten, what_was_not_given_is_not_released, the_oldest_goes_first,
            settling_while_others_print_and_drop_is_told, the_unknown_is_dropped);
        $crate::conformance::suite!($open, catalog:
            a_new_catalog_is_empty, what_was_applied_comes_back, applying_again_does_no_harm, ends_of_tasks_come_back,
            filters_give_what_they_say, a_list_pages, the_oldest_expire, a_reader_sees_whole_batches);
        $crate::conformance::suite!($open, outputs_model: any_cuts_give_the_same_bytes);
    };
    ($open:ident, $part:ident: $($name:ident),+) => {
        mod $part {
            $(#[test] fn $name() { $crate::conformance::$part::$name(super::$open); })+
        }
    };
}
pub(crate) use suite;
