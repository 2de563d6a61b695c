//! What a client may say wrong, and what it hears then.

use crate::scene::{Scene, command, soon, submit, submit_and_watch};
use essaim_net::hello::{greet, ours};
use essaim_net::limits::DIAL_TIME;
use essaim_net::{Connection, dial};
use essaim_proto::api::{JobList, JobPage, KeyRevoke, OutputAck, Watch};
use essaim_proto::frame::{FLAG_ANSWER, ValueType};
use essaim_proto::hello::PeerKind;
use essaim_proto::{Frame, Function, Refusal, RefusalCode};

/// A client by hand.
pub(crate) struct Wire {
    pub(crate) connection: Connection,
}

impl Wire {
    pub(crate) async fn open(scene: &Scene) -> Wire {
        let mut connection = dial(&scene.clients(), DIAL_TIME).await.unwrap();
        let hello = ours(PeerKind::Client, Some(scene.hub.admin_key()));
        soon(greet(&mut connection, hello)).await.unwrap();
        Wire { connection }
    }

    pub(crate) fn send(&self, frame: Frame) {
        self.connection.sender.control(frame).unwrap();
    }

    pub(crate) async fn next(&mut self) -> Frame {
        soon(self.connection.reader.next()).await.unwrap().expect("the connection stands")
    }

    async fn refusal(&mut self, id: u64) -> Refusal {
        let frame = self.next().await;
        assert_eq!((frame.function, frame.id, frame.has(FLAG_ANSWER)), (Function::REFUSED, id, true));
        frame.message().unwrap()
    }

    /// Does it still serve?
    async fn is_well(&mut self) {
        self.send(Frame::of(Function::JOB_LIST, 4_242, &JobList::default()));
        let frame = self.next().await;
        assert_eq!((frame.function, frame.id), (Function::JOB_LIST, 4_242), "{frame:?}");
        frame.message::<JobPage>().unwrap();
    }
}

// Is what cannot be understood answered by name, or skipped where an answer would end the connection?
#[tokio::test]
async fn nonsense_is_answered_and_the_connection_lives() {
    let scene = Scene::open().await;
    let mut wire = Wire::open(&scene).await;
    wire.send(Frame::empty(Function(999), 3));
    let refusal = wire.refusal(3).await;
    assert_eq!((refusal.code, refusal.param("function")), (RefusalCode::UnknownFunction, "999"));
    wire.send(Frame { value: vec![0xc1, 2, 3], value_type: ValueType::Value, ..Frame::empty(Function::SUBMIT, 4) });
    let refusal = wire.refusal(4).await;
    assert_eq!((refusal.code, refusal.param("function")), (RefusalCode::BadValue, "submit"));
    wire.send(Frame::of(Function::KEY_REVOKE, 5, &KeyRevoke { name: "no/name".into() }));
    assert_eq!(wire.refusal(5).await.code, RefusalCode::BadJob);
    // Not answered: no id, answers to nothing, acknowledgements and bytes of what is over.
    wire.send(Frame::empty(Function(999), 0));
    wire.send(Frame::empty(Function::SUBMIT, 0));
    wire.send(Frame::of(Function::JOB_LIST, 0, &JobList::default()));
    wire.send(Frame::empty(Function(999), 6).with_flag(FLAG_ANSWER));
    wire.send(Frame::of(Function::OUTPUT_ACK, 77, &OutputAck { received_bytes: u64::MAX }));
    wire.send(Frame::bytes(Function::BLOB_BYTES, 78, vec![1]));
    wire.send(Frame::empty(Function::UNWATCH, 79));
    wire.is_well().await;
    // Words for workers, and a second hello.
    for (n, function) in [Function::HELLO, Function::REGISTER, Function::ENDED, Function::JOIN].into_iter().enumerate()
    {
        let id = 100 + n as u64;
        wire.send(Frame::empty(function, id));
        assert_eq!(wire.refusal(id).await.code, RefusalCode::UnknownFunction);
    }
    wire.is_well().await;
}

// Is an id that is in use refused for another request, and free again afterwards?
#[tokio::test]
async fn an_id_in_use_is_refused() {
    let scene = Scene::open().await;
    let admin = scene.admin().await;
    let job = submit(&admin, command()).await;
    let mut wire = Wire::open(&scene).await;
    wire.send(Frame::of(Function::WATCH, 5, &Watch { job, output: true, ..Watch::default() }));
    assert_eq!(wire.next().await.function, Function::WATCH);
    assert_eq!(wire.next().await.function, Function::EVENT);
    wire.send(Frame::of(Function::JOB_LIST, 5, &JobList::default()));
    let refusal = wire.refusal(5).await;
    assert_eq!((refusal.code, refusal.param("function")), (RefusalCode::BadValue, "job_list"));
    wire.send(Frame::empty(Function::UNWATCH, 5));
    wire.send(Frame::of(Function::JOB_LIST, 5, &JobList::default()));
    assert_eq!(wire.next().await.function, Function::JOB_LIST);
    // A liar's acknowledgement breaks nothing.
    wire.send(Frame::of(Function::WATCH, 6, &Watch { job, output: true, ..Watch::default() }));
    wire.send(Frame::of(Function::OUTPUT_ACK, 6, &OutputAck { received_bytes: u64::MAX }));
    assert_eq!(wire.next().await.function, Function::WATCH);
}

// Is the 257th watch refused before its job is accepted?
#[tokio::test]
async fn too_many_watches_are_refused() {
    let scene = Scene::open().await;
    let client = scene.admin().await;
    let mut watchers = Vec::new();
    for _ in 0..256 {
        watchers.push(submit_and_watch(&client, command()).await);
    }
    let one_more = essaim_proto::api::Submit { watch: true, ..crate::scene::submit_of(command()) };
    let refusal = crate::scene::refused(soon(client.open(&one_more)).await);
    assert_eq!((refusal.code, refusal.param("limit")), (RefusalCode::TooMany, "256"));
    let refusal = crate::scene::refused(soon(client.open(&Watch { job: watchers[0].0, ..Watch::default() })).await);
    assert_eq!((refusal.code, refusal.param("what")), (RefusalCode::TooMany, "watched jobs"));
    let jobs = soon(client.request(&JobList { limit: 1, ..JobList::default() })).await.unwrap().jobs;
    assert_eq!(jobs[0].job.0, 256);
}
