//! A hub that takes the place of another in the same process, after the store did not take a record.
//!
//! The driver makes a new [`Hub`] from what is durable and calls [`Hub::succeed`]. Always true: a client whose key is
//! durable keeps its session and the jobs that end with it; workers come back by themselves.
//! Deliberately not here: refusing what was not durable (the driver does), the restart of a process.

use super::effect::Out;
use super::input::SessionId;
use super::{Hub, Session};
use essaim_proto::JobId;
use std::collections::BTreeSet;

impl Hub {
    /// Takes over from `before`: its clients stay, and hear how the jobs in `watched` stand now. Says which clients stay;
    /// all other sessions are to be closed.
    pub fn succeed(&mut self, before: &Hub, watched: &[JobId], out: &mut Out) -> BTreeSet<SessionId> {
        let mut kept = BTreeSet::new();
        for (id, session) in &before.live.sessions {
            let Session::Client { key, role } = session else { continue };
            if self.durable.keys.get(key).is_some_and(|known| known.role == *role) {
                self.live.sessions.insert(*id, session.clone());
                kept.insert(*id);
            }
        }
        for (session, job) in before.live.ephemeral.held() {
            if kept.contains(&session) {
                self.live.ephemeral.adopt(session, job);
            }
        }
        self.live.draining = before.live.draining;
        self.live.late_messages = before.live.late_messages;
        watched.iter().for_each(|job| self.publish(*job, out));
        kept
    }
}
