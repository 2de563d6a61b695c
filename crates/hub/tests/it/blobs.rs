//! Files that do not travel inside their job.

use crate::scene::{Scene, Watcher, command, noise, refused, soon, submit_and_watch, submit_of};
use essaim_net::transfer::Incoming;
use essaim_proto::api::{BlobPut, BlobsMissing, Done};
use essaim_proto::job::{FileSpec, JobSpec, JobState, Verdict};
use essaim_proto::limits::{BLOB_BYTES_MAX, BLOB_WINDOW_BYTES, CHUNK_BYTES};
use essaim_proto::link::{BlobWanted, Start};
use essaim_proto::{BlobHash, Frame, Function, Refusal, RefusalCode};

fn job_with(bytes: &[u8]) -> JobSpec {
    let hash = BlobHash::of(bytes);
    let file = FileSpec { path: "data".into(), hash, size_bytes: bytes.len() as u64, ..FileSpec::default() };
    JobSpec { files: vec![file], ..command() }
}

// Does a large file travel whole to the worker that needs it, within its window, and no other blob?
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_travels_to_the_worker_that_needs_it() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let (bytes, secret) = (noise((5 << 20) + 77, 3), noise(1_000, 4));
    let (hash, other) = (BlobHash::of(&bytes), BlobHash::of(&secret));
    let missing = BlobsMissing { hashes: vec![hash, other] };
    assert_eq!(soon(client.request(&missing)).await.unwrap().hashes, [hash, other]);
    let refusal = refused(soon(client.request(&submit_of(job_with(&bytes)))).await);
    assert_eq!((refusal.code, refusal.param("hash")), (RefusalCode::BlobMissing, hash.to_string().as_str()));
    for bytes in [&bytes, &secret] {
        soon(client.put_blob(BlobHash::of(bytes), bytes.len() as u64, bytes.as_slice())).await.unwrap();
    }
    soon(client.put_blob(BlobHash::of(b""), 0, b"".as_slice())).await.unwrap();
    assert!(soon(client.request(&missing)).await.unwrap().hashes.is_empty());

    let (_, mut watcher): (_, Watcher) = submit_and_watch(&client, job_with(&bytes)).await;
    let start: Start = worker.expect(Function::START).await;
    let attempt = start.attempt;
    let sender = worker.connection.sender.clone();
    let get = |id, hash, offset| {
        sender.control(Frame::of(Function::BLOB_GET, id, &BlobWanted { attempt, hash, offset })).unwrap();
    };
    get(7, other, 0);
    let refusal = worker.expect::<Refusal>(Function::REFUSED).await;
    assert_eq!((refusal.code, refusal.param("hash")), (RefusalCode::BlobMissing, other.to_string().as_str()));

    get(8, hash, 0);
    worker.expect::<Done>(Function::BLOB_GET).await;
    let (mut incoming, mut got) = (Incoming::new(8, Some(hash), Some(bytes.len() as u64)), Vec::new());
    loop {
        let frame = worker.next().await;
        assert_eq!((frame.function, frame.id), (Function::BLOB_BYTES, 8));
        let is_last = incoming.accept(&frame).unwrap();
        got.extend_from_slice(&frame.value);
        if is_last {
            break;
        }
        // No credit before the hub has stopped at the window's end.
        if got.len() as u64 == BLOB_WINDOW_BYTES {
            let pause = std::time::Duration::from_millis(100);
            assert!(tokio::time::timeout(pause, worker.connection.reader.next()).await.is_err());
            incoming.wrote(got.len() - CHUNK_BYTES);
            let credit = essaim_proto::api::Credit { bytes: BLOB_WINDOW_BYTES };
            worker.connection.sender.control(Frame::of(Function::CREDIT, 8, &credit)).unwrap();
        } else if got.len() as u64 > BLOB_WINDOW_BYTES {
            let credit = essaim_proto::api::Credit { bytes: frame.value.len() as u64 };
            incoming.wrote(frame.value.len());
            worker.connection.sender.control(Frame::of(Function::CREDIT, 8, &credit)).unwrap();
        }
    }
    assert!(got == bytes);
    // Continued where a connection broke, and never more at once than a session may have open.
    get(9, hash, bytes.len() as u64 - 5);
    worker.expect::<Done>(Function::BLOB_GET).await;
    assert_eq!(worker.next().await.value, bytes[bytes.len() - 5..]);
    for id in 100..200 {
        get(id, hash, 0);
    }
    let refusal = loop {
        let frame = worker.next().await;
        if frame.function == Function::REFUSED {
            break frame.message::<Refusal>().unwrap();
        }
    };
    assert_eq!(refusal.code, RefusalCode::TooMany);
    // Transfers that their attempt gave up are over with it.
    let result = essaim_proto::job::TaskResult { verdict: Verdict::Ok, ..Default::default() };
    let ended = essaim_proto::link::Ended { attempt, result };
    worker.connection.sender.bulk(Frame::of(Function::ENDED, 0, &ended)).await.unwrap();
    assert_eq!(watcher.finish().await.state, JobState::Done);
}

// Are wrong bytes, too many, too few and too large ones refused by name, and does the connection live on?
#[tokio::test]
async fn wrong_uploads_are_refused() {
    let scene = Scene::open().await;
    let client = scene.admin().await;
    let bytes = noise(200_000, 3);
    let hash = BlobHash::of(&bytes);
    let wrong = soon(client.put_blob(BlobHash::of(b"other"), bytes.len() as u64, bytes.as_slice())).await;
    assert_eq!(refused(wrong).code, RefusalCode::BlobMismatch);
    let large = soon(client.request(&BlobPut { hash, size_bytes: BLOB_BYTES_MAX + 1 })).await;
    assert_eq!(refused(large).code, RefusalCode::TooLarge);
    // By hand: another length than was announced, and a sender that waits for no credit.
    for (announced, chunks, code) in [
        (10, vec![noise(11, 1)], RefusalCode::TooLarge),
        (12, vec![noise(11, 1)], RefusalCode::BlobMismatch),
        (10 << 20, vec![vec![0; CHUNK_BYTES]; 200], RefusalCode::BadValue),
    ] {
        let mut wire = crate::requests::Wire::open(&scene).await;
        wire.send(Frame::of(Function::BLOB_PUT, 4, &BlobPut { hash, size_bytes: announced }));
        let last = chunks.len() - 1;
        for (n, chunk) in chunks.into_iter().enumerate() {
            let frame = Frame::bytes(Function::BLOB_BYTES, 4, chunk);
            let frame = if n == last { frame.with_flag(essaim_proto::frame::FLAG_LAST) } else { frame };
            // The hub may have closed nothing: what comes after the refusal is skipped.
            soon(wire.connection.sender.bulk(frame)).await.unwrap();
        }
        let refusal = loop {
            let frame = wire.next().await;
            if frame.function == Function::REFUSED {
                assert_eq!(frame.id, 4);
                break frame.message::<Refusal>().unwrap();
            }
            // Credits may come before; a hub that is fast keeps up with a sender that does not wait.
            if frame.function == Function::CREDIT {
                continue;
            }
            panic!("{frame:?}");
        };
        assert!(
            refusal.code == code || (announced == 10 << 20 && refusal.code == RefusalCode::TooLarge),
            "{refusal:?}"
        );
        wire.send(Frame::of(Function::BLOBS_MISSING, 5, &BlobsMissing { hashes: vec![hash] }));
        assert_eq!(wire.next().await.message::<BlobsMissing>().unwrap().hashes, [hash]);
    }
}

// May only those upload who may submit, and is it the first thing that they hear?
#[tokio::test]
async fn who_may_not_submit_may_not_upload() {
    let scene = Scene::open().await;
    let admin = scene.admin().await;
    let role = essaim_proto::hello::Role::User;
    let create = essaim_proto::api::KeyCreate { name: "ann".into(), role, ..Default::default() };
    let made = soon(admin.request(&create)).await.unwrap();
    let ann = crate::scene::connect(scene.clients(), made.key).await.unwrap();
    let refusal = refused(soon(ann.put_blob(BlobHash::of(b"abc"), 3, b"abc".as_slice())).await);
    assert_eq!(refusal.code, RefusalCode::NotAllowed);
    let missing = BlobsMissing { hashes: vec![BlobHash::of(b"abc")] };
    assert_eq!(soon(admin.request(&missing)).await.unwrap().hashes.len(), 1);
}
