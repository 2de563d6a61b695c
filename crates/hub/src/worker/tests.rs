//! A worker's session by hand, against a real driver and a real store: each word comes when the test says so.

use super::*;
use crate::hub::tests::scene::{Scene, command, config, soon, submit};
use crate::hub::tests::shared;
use essaim_net::limits::DIAL_TIME;
use essaim_proto::api::JobShow;
use essaim_proto::job::{JobState, TaskResult, Verdict};
use essaim_proto::link::AttemptOutput;
use essaim_proto::{InstanceId, JobId};
use essaim_store::{OutputError, Settle};

/// More than travels with the record of an end, so that the end must wait for the disk.
const PRINTED: usize = 2 * essaim_store::limits::SMALL_BYTES_MAX;

struct ByHand {
    worker: WorkerSession,
    mail: mpsc::Receiver<Mail>,
    settled: mpsc::UnboundedReceiver<Word>,
    /// Never read: what the session says goes there.
    _connection: Connection,
    scene: Scene,
}

impl ByHand {
    /// A session that has registered.
    async fn open() -> ByHand {
        let home = tempfile::tempdir().expect("a folder");
        let hub = crate::RunningHub::start(config(home.path())).await.expect("a hub");
        let scene = Scene { hub, home };
        let shared = shared(&scene);
        let connection = essaim_net::dial(&scene.workers(), DIAL_TIME).await.expect("a connection");
        let (session, mail) = shared.handle.open(MAILBOX_MAX).await;
        let register = Box::new(Register { instance: InstanceId([1; 16]), slots: 1, ..Register::default() });
        let name = "pc".parse().expect("a name");
        shared.handle.input(Input::Register { session, name, register }, 0).await;
        let (words, settled) = mpsc::unbounded_channel();
        let worker = WorkerSession {
            shared,
            session,
            sender: connection.sender.clone(),
            registering: 1,
            mine: BTreeMap::new(),
            tasks: JoinSet::new(),
            downloads: BTreeMap::new(),
            words,
        };
        ByHand { worker, mail, settled, _connection: connection, scene }
    }

    /// Takes what the driver says until it is what is wanted.
    async fn told<T>(&mut self, mut wanted: impl FnMut(&ToWorker, &[Arc<Feed>]) -> Option<T>) -> T {
        loop {
            let Some(Mail::Tell { message, feeds }) = soon(self.mail.recv()).await else { panic!("no word") };
            let found = wanted(&message, &feeds);
            self.worker.tell(message, feeds);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Starts a job, prints and ends: its end waits for its output.
    async fn end_that_waits(&mut self) -> (JobId, Start, Vec<Arc<Feed>>) {
        let client = self.scene.admin().await;
        let job = submit(&client, command()).await;
        let started = |message: &ToWorker, feeds: &[Arc<Feed>]| match message {
            ToWorker::Start(start) => Some((start.clone(), feeds.to_vec())),
            _ => None,
        };
        let (start, feeds) = self.told(started).await;
        let attempt = start.attempt;
        self.worker.output(AttemptOutput { attempt, bytes: vec![b'x'; PRINTED], ..AttemptOutput::default() });
        let result = TaskResult { verdict: Verdict::Ok, stdout_bytes: PRINTED as u64, ..TaskResult::default() };
        self.worker.ended(Box::new(Ended { attempt, result }), 0).await;
        assert!(self.worker.mine[&attempt].settling.is_ending(), "it waits");
        (job, *start, feeds)
    }

    /// The job is over, and the hub says so.
    async fn ends_done(mut self, job: JobId) {
        let acked = |message: &ToWorker, _: &[Arc<Feed>]| matches!(message, ToWorker::EndAck(_)).then_some(());
        while self.worker.mine.values().any(|mine| mine.settling.is_ending()) {
            let word = soon(self.settled.recv()).await.expect("a word");
            self.worker.settled(word).await;
        }
        self.told(acked).await;
        let client = self.scene.admin().await;
        let shown = soon(client.request(&JobShow { job })).await.expect("it is known");
        assert_eq!(shown.state, JobState::Done);
    }
}

// A worker that is told a second time to start what has ended already, because it did not name it among what it holds: does
// the end that waits for its output still reach the core?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_outlives_a_second_start() {
    let mut session = ByHand::open().await;
    let (job, start, feeds) = session.end_that_waits().await;
    session.worker.tell(ToWorker::Start(Box::new(start.clone())), feeds);
    assert!(session.worker.mine[&start.attempt].settling.is_ending(), "it waits on");
    session.ends_done(job).await;
}

// Output that could not be made durable, though there is room: is it tried again after a while, is nothing said before it
// worked, and does the end that waits for it come then?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_did_not_settle_is_tried_again() {
    let mut session = ByHand::open().await;
    let (job, start, _) = session.end_that_waits().await;
    let attempt = start.attempt;
    // What was asked with the output, and with the end.
    for _ in 0..2 {
        let Some(Word::Settled { when, .. }) = soon(session.settled.recv()).await else { panic!("no word") };
        let end = Err(OutputError::Io { attempt, source: std::io::Error::other("the disk was away") });
        session.worker.settled(Word::Settled { attempt, when, end }).await;
        assert!(session.worker.mine[&attempt].settling.is_ending(), "not before it is durable");
    }
    assert!(session.mail.try_recv().is_err(), "the core has not heard of it");
    let again = soon(session.settled.recv()).await.expect("a word");
    assert!(matches!(again, Word::Again { .. }), "{again:?}");
    session.worker.settled(again).await;
    let answered = soon(session.settled.recv()).await.expect("a word");
    assert!(matches!(answered, Word::Settled { when: Settle::Now, end: Ok(_), .. }), "{answered:?}");
    session.worker.settled(answered).await;
    session.ends_done(job).await;
}
