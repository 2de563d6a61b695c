//! Ctrl+C and its relatives, as something to wait for.
//!
//! `run`, `up`, `hub`, `worker` and the following commands ask for [`Interrupts`]: the first one cancels cleanly, the
//! second one forces; what that means is the subcommand's business. Always true: SIGINT and SIGTERM are heard once we
//! listen; SIGHUP too, unless whoever started us had it ignored (`nohup`).
//! Deliberately not here: signals for other processes (`supervise`).

use crate::exit::Failure;

#[cfg(not(unix))]
pub(crate) use other::Interrupts;
#[cfg(unix)]
pub(crate) use unix::Interrupts;

#[cfg(unix)]
mod unix {
    use super::Failure;
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// The signals that ask us to end.
    pub(crate) struct Interrupts {
        int: Signal,
        term: Signal,
        hup: Option<Signal>,
    }

    impl Interrupts {
        /// Listens from now on; the signals' usual effect is gone.
        pub(crate) fn listen() -> Result<Interrupts, Failure> {
            let listen = |kind| {
                signal(kind).map_err(|error| Failure::broken("signals", "signals cannot be listened to", &error))
            };
            let hup = if hangup_is_ignored() { None } else { Some(listen(SignalKind::hangup())?) };
            Ok(Interrupts { int: listen(SignalKind::interrupt())?, term: listen(SignalKind::terminate())?, hup })
        }

        /// Waits for the next one.
        pub(crate) async fn next(&mut self) {
            let hup = async {
                match &mut self.hup {
                    Some(hup) => hup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.int.recv() => {}
                _ = self.term.recv() => {}
                _ = hup => {}
            }
        }
    }

    /// Was SIGHUP ignored when we were started? Linux says so in `/proc`; elsewhere we listen to it.
    fn hangup_is_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        mask & 1 != 0
    }
}

#[cfg(not(unix))]
mod other {
    use super::Failure;

    /// The signals that ask us to end.
    pub(crate) struct Interrupts(());

    impl Interrupts {
        /// Listens from now on.
        pub(crate) fn listen() -> Result<Interrupts, Failure> {
            Ok(Interrupts(()))
        }

        /// Waits for the next one.
        pub(crate) async fn next(&mut self) {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
