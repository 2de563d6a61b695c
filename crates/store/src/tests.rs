//! The durable back-end: the suite, and what only something on a disk can be asked.
//!
//! Always true: a part of these tests runs in a process of its own, which is this same test program with a role
//! (`roles`), because it is killed, limited or has fewer rights than we.
//! Deliberately not here: backup and restore (`backup`), the parts by themselves.

mod crash;
mod faults;
mod roles;
mod threads;

use crate::conformance::{Opened, suite};
use crate::{Store, StoreLimits};
use std::path::Path;

fn open(limits: StoreLimits) -> Opened {
    let folder = tempfile::tempdir().expect("a folder for the store");
    let store = Store::open(&folder.path().join("store"), limits).expect("a store");
    Opened { store, folder }
}

fn again(folder: &Path, limits: StoreLimits) -> Store {
    Store::open(&folder.join("store"), limits).expect("a store again")
}

suite!(open, again again);
