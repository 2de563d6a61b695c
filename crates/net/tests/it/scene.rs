//! What the tests share: a hub's doors on loopback, with handlers that the tests give.

use essaim_net::door::{Accepted, Door};
use essaim_net::hello::{await_hello, refuse, send_welcome};
use essaim_net::limits::DIAL_TIME;
use essaim_net::transfer::{Incoming, Window, send};
use essaim_net::{Authority, Connection, DialError, DialTarget, DoorKind, FrameSender, Identity, dial};
use essaim_proto::api::{BlobGet, BlobPut, Done, JobEvent, Submit, Submitted};
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::hello::{Role, Welcome};
use essaim_proto::id::AuthorityHash;
use essaim_proto::{BlobHash, Frame, Function, JobId, Refusal, RefusalCode};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// A hub with one open door. Dropping it closes the door.
pub(crate) struct Scene {
    _folder: TempDir,
    pub(crate) authority: Arc<Authority>,
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Option<oneshot::Sender<()>>,
    pub(crate) served: tokio::task::JoinHandle<()>,
}

impl Scene {
    pub(crate) async fn open<H, F>(kind: DoorKind, handler: H) -> Scene
    where
        H: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(folder.path()).unwrap());
        let door = Door::bind("127.0.0.1:0", authority.server_config(kind)).await.unwrap();
        let address = door.local_addr();
        let (shutdown, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(door.serve(handler, async {
            let _ = stopped.await;
        }));
        Scene { _folder: folder, authority, address, shutdown: Some(shutdown), served }
    }

    pub(crate) fn target(&self) -> DialTarget {
        target(self.authority.hash(), &[self.address.to_string()])
    }

    pub(crate) async fn dial(&self) -> Connection {
        dial(&self.target(), DIAL_TIME).await.unwrap()
    }

    pub(crate) async fn dial_as(&self, identity: Identity) -> Result<Connection, DialError> {
        dial(&DialTarget { identity: Some(Arc::new(identity)), ..self.target() }, DIAL_TIME).await
    }
}

pub(crate) fn target(authority: AuthorityHash, addresses: &[String]) -> DialTarget {
    DialTarget { addresses: addresses.to_vec(), authority, identity: None, bind: None }
}

/// A certificate of `authority` for `name`, without the way over the wire.
pub(crate) fn identity(authority: &Authority, name: &str) -> Identity {
    let request = Identity::generate_csr().unwrap();
    let signed = authority.sign_worker(&request.csr_der, &name.parse().unwrap()).unwrap();
    Identity {
        name: name.parse().unwrap(),
        authority: authority.hash(),
        addresses: Vec::new(),
        key_pem: request.key_pem,
        chain_hex: signed.chain.iter().map(hex::encode).collect(),
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        proto: 1,
        hub: "test".to_owned(),
        heartbeat_ms: 5_000,
        silence_ms: 30_000,
        role: Role::User,
        ..Welcome::default()
    }
}

/// Welcomes, then sends every frame back as it came.
pub(crate) async fn echo(accepted: Accepted) {
    let mut connection = accepted.connection;
    if await_hello(&mut connection).await.is_err() || send_welcome(&mut connection, &welcome()).is_err() {
        return;
    }
    while let Ok(Some(frame)) = connection.reader.next().await {
        if connection.sender.bulk(frame).await.is_err() {
            return;
        }
    }
}

/// A toy hub: jobs that count to three, blobs in memory.
#[derive(Clone, Default)]
pub(crate) struct ToyHub {
    pub(crate) blobs: Arc<Mutex<HashMap<BlobHash, Vec<u8>>>>,
}

impl ToyHub {
    pub(crate) async fn serve(self, accepted: Accepted) {
        let mut connection = accepted.connection;
        let hello = await_hello(&mut connection).await.unwrap();
        if hello.key.is_none() {
            refuse(&connection.sender, 0, &RefusalCode::WrongKey.into()).unwrap();
            return;
        }
        send_welcome(&mut connection, &welcome()).unwrap();
        let sender = connection.sender.clone();
        let mut incoming: HashMap<u64, (Incoming, BlobPut, Vec<u8>)> = HashMap::new();
        let mut windows: HashMap<u64, Arc<Window>> = HashMap::new();
        while let Ok(Some(frame)) = connection.reader.next().await {
            let id = frame.id;
            match frame.function {
                Function::SUBMIT => submit(&sender, &frame).await,
                Function::KEY_LIST => sender.close("shutdown"),
                Function::NODE_LIST => {} // Never answered.
                Function::BLOB_PUT => {
                    let put: BlobPut = frame.message().unwrap();
                    incoming.insert(id, (Incoming::new(id, Some(put.hash), Some(put.size_bytes)), put, Vec::new()));
                }
                Function::BLOB_BYTES => {
                    let Some((mut transfer, put, mut bytes)) = incoming.remove(&id) else { continue };
                    match transfer.accept(&frame) {
                        Err(error) => refuse(&sender, id, &error.refusal(put.hash)).unwrap(),
                        Ok(is_last) => {
                            bytes.extend_from_slice(&frame.value);
                            if is_last {
                                self.blobs.lock().unwrap().insert(put.hash, bytes);
                                answer(&sender, Function::BLOB_PUT, id, &Done {});
                                continue;
                            }
                            if let Some(credit) = transfer.wrote(frame.value.len()) {
                                sender.control(credit).unwrap();
                            }
                            incoming.insert(id, (transfer, put, bytes));
                        }
                    }
                }
                Function::BLOB_GET => {
                    let get: BlobGet = frame.message().unwrap();
                    let Some(bytes) = self.blobs.lock().unwrap().get(&get.hash).cloned() else {
                        refuse(&sender, id, &Refusal::new(RefusalCode::BlobMissing).with("hash", get.hash)).unwrap();
                        continue;
                    };
                    answer(&sender, Function::BLOB_GET, id, &Done {});
                    let window = Arc::new(Window::new());
                    windows.insert(id, Arc::clone(&window));
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        let bytes = &bytes[get.offset as usize..];
                        send(&sender, id, &window, bytes.len() as u64, bytes).await.unwrap();
                    });
                }
                Function::CREDIT => windows[&id].add(frame.message().unwrap()),
                function => {
                    let no = Refusal::new(RefusalCode::UnknownFunction).with("function", function.0);
                    refuse(&sender, id, &no).unwrap();
                }
            }
        }
    }
}

async fn submit(sender: &FrameSender, frame: &Frame) {
    let submit: Submit = frame.message().unwrap();
    answer(sender, Function::SUBMIT, frame.id, &Submitted { job: JobId(frame.id), repeated: false, clamped: vec![] });
    for last in [false, false, true].into_iter().filter(|_| submit.watch) {
        let event = JobEvent { job: JobId(frame.id), last, ..JobEvent::default() };
        sender.bulk(Frame::of(Function::EVENT, frame.id, &event)).await.unwrap();
    }
}

fn answer<T: serde::Serialize>(sender: &FrameSender, function: Function, id: u64, value: &T) {
    sender.control(Frame::of(function, id, value).with_flag(FLAG_ANSWER)).unwrap();
}
