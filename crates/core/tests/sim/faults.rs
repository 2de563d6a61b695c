//! How faults are carried out, and how the world is mended.
//!
//! Called at the times that the plan names. Always true: whatever a fault begins has an end before, or at, the calm.
//! Deliberately not here: which faults come (`plan`).

use crate::net::{ConnId, Peer};
use crate::plan::Kind;
use crate::store::Disk;
use crate::trace;
use crate::world::{Event, Machine, World};
use essaim_core::hub::Input;

impl World {
    pub(crate) fn fault(&mut self, kind: Kind) {
        trace::line(self.now, || format!("--- fault: {kind:?}"));
        let worker = self.rng.index(self.workers.len());
        let client = self.rng.index(self.clients.len());
        let short = self.rng.below(4_000);
        let long = if self.rng.percent(50) { short } else { self.rng.between(4_000, 100_000) };
        match kind {
            Kind::Break => {
                if let Some(conn) = self.any_conn() {
                    self.cut(conn);
                }
            }
            Kind::Partition => self.partition(long),
            Kind::HubCrash => {
                let power = self.rng.percent(30);
                self.crash_hub(power, long);
            }
            Kind::HubRestart => {
                if self.hub.is_up {
                    self.command(Input::Drain);
                    self.queue.push(self.now + short, Event::HubStop(self.hub.generation));
                }
            }
            Kind::HubPause => self.pause(Machine::Hub, long),
            Kind::WorkerCrash => {
                let power = self.rng.percent(40);
                self.crash_worker(worker, power, long);
            }
            Kind::WorkerStop => self.stop_worker(worker, long),
            Kind::WorkerVanish => self.worker_vanishes(worker, long),
            Kind::WorkerDrain => self.drain_worker(worker),
            Kind::WorkerPause => self.pause(Machine::Worker(worker), long),
            Kind::StoreSlow => self.store.slow_until = self.now + long,
            Kind::StoreFails | Kind::StoreFull => {
                self.store.disk = match kind {
                    Kind::StoreFails => Disk::Failing,
                    // The reserve is large enough, mostly.
                    _ if self.rng.percent(70) => Disk::Reserve,
                    _ => Disk::Full,
                };
                self.queue.push(self.now + long, Event::DiskIsWell);
            }
            Kind::UnixJump => {
                let jump = self.rng.below(200_000_000) as i64 - 100_000_000;
                self.hub.unix_shift += jump;
            }
            Kind::RegisterAgain => self.leave_connection(worker),
            // Asked for where an end is told.
            Kind::EndAgain | Kind::WorkerFails => {}
            Kind::SubmitAgain => self.submit_again(client),
            Kind::ClientReconnect => self.client_leaves(client, false),
            Kind::ClientVanish => self.client_leaves(client, true),
        }
    }

    /// For good, if others remain and no job waits for this one by name.
    fn worker_vanishes(&mut self, at: usize, ms: u64) {
        let others = self.workers.iter().filter(|worker| !worker.is_gone).count() > 1;
        if others && self.plan.jobs.iter().all(|job| job.on != Some(at)) {
            self.workers[at].is_gone = true;
            match ms % 3 {
                0 => self.stop_worker(at, 0),
                power => self.crash_worker(at, power == 1, 0),
            }
        }
    }

    fn any_conn(&mut self) -> Option<ConnId> {
        let open: Vec<ConnId> = self.open_conns().into_iter().filter(|conn| !self.conns[*conn].is_cut).collect();
        open.get(self.rng.index(open.len())).copied()
    }

    fn partition(&mut self, ms: u64) {
        let machines = self.workers.len() + self.clients.len();
        let alone = self.rng.percent(60).then(|| self.rng.index(machines));
        // Not beyond the calm: what waits for it must not be overtaken by what comes after.
        let until = (self.now + ms).min(self.plan.chaos_ms);
        for at in (0..machines).filter(|at| alone.is_none_or(|alone| alone == *at)) {
            let workers = self.workers.len();
            let peer = if at < workers { Peer::Worker(at) } else { Peer::Client(at - workers) };
            self.partitioned[at] = self.partitioned[at].max(until);
            for conn in self.open_conns() {
                if self.conns[conn].peer != peer {
                    continue;
                }
                // A short one is a delay, a long one ends the connection.
                if ms < 25_000 {
                    self.conns[conn].stalled_until = self.conns[conn].stalled_until.max(until);
                } else {
                    self.cut(conn);
                }
            }
        }
    }

    /// The machine's processes stand still; with `sleep` its monotonic clock does too.
    fn pause(&mut self, machine: Machine, ms: u64) {
        let sleep = self.rng.percent(50);
        let until = (self.now + ms).min(self.plan.chaos_ms);
        let ms = until - self.now;
        let place = self.place_of(machine);
        if self.frozen[place] > self.now {
            return;
        }
        trace::line(self.now, || format!("{machine:?} stands still for {ms} ms, asleep: {sleep}"));
        self.frozen[place] = until;
        if machine == Machine::Hub && sleep {
            self.queue.push(until, Event::HubWokeUp { generation: self.hub.generation, slept: ms });
        }
        if let (Machine::Worker(at), true) = (machine, sleep) {
            self.workers[at].slept_ms += ms;
        }
        if ms > 25_000 {
            // Whoever waits for it gives the connection up.
            for conn in self.open_conns() {
                let is_his = match machine {
                    Machine::Hub => true,
                    Machine::Worker(at) => self.conns[conn].peer == Peer::Worker(at),
                    Machine::Client(at) => self.conns[conn].peer == Peer::Client(at),
                };
                if is_his && self.rng.percent(70) {
                    self.cut(conn);
                }
            }
        }
    }

    /// No fault goes on, and everybody comes back who is not gone for good.
    pub(crate) fn calm_down(&mut self) {
        trace::line(self.now, || "--- calm".to_owned());
        self.is_calm = true;
        self.calm_at = self.now;
        self.store.disk = Disk::Well;
        self.store.slow_until = 0;
        self.start_hub();
        (0..self.workers.len()).for_each(|at| self.start_worker(at));
    }
}
