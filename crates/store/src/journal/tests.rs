//! The durable back-end: the suite, and what only something durable can be asked.
//!
//! Deliberately not here: whole stores that are backed up and restored (`backup`).

use crate::conformance::{Opened, suite};
use crate::{Store, StoreLimits};

fn open(limits: StoreLimits) -> Opened {
    let folder = tempfile::tempdir().expect("a folder for the store");
    let store = Store::open(folder.path(), limits).expect("a store");
    Opened { store, _folder: folder }
}

suite!(open);
