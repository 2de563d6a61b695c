//! Doors over loopback: who comes in, who does not, and that rude peers cost the others nothing.

use crate::scene::{Scene, echo, identity, target, welcome};
use essaim_net::hello::{await_hello, greet, join, ours, refuse, send_welcome};
use essaim_net::limits::DIAL_TIME;
use essaim_net::ticket::{new_secret, random};
use essaim_net::{
    Accepted, Authority, Connection, DialError, DialTarget, DoorKind, HelloError, Identity, JoinError, ReadError,
    Ticket, TicketKind, dial, tcp,
};
use essaim_proto::frame::FLAG_ANSWER;
use essaim_proto::hello::{Join, Joined, PeerKind};
use essaim_proto::{Frame, Function, NodeName, RefusalCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// A workers' door that tells the test who came, and greets.
async fn watched_door() -> (Scene, mpsc::UnboundedReceiver<(Option<NodeName>, Option<String>)>) {
    let (seen, arrivals) = mpsc::unbounded_channel();
    let scene = Scene::open(DoorKind::Worker, move |mut accepted: Accepted| {
        let seen = seen.clone();
        async move {
            seen.send((accepted.node.take(), accepted.serial.take())).unwrap();
            echo(accepted).await;
        }
    })
    .await;
    (scene, arrivals)
}

async fn raw(address: SocketAddr) -> tcp::Stream {
    tcp::connect(address, None, DIAL_TIME).await.unwrap()
}

/// The hub still serves: a whole round through the door.
async fn assert_serves(scene: &Scene) {
    let mut connection = scene.dial().await;
    greet(&mut connection, ours(PeerKind::Client, None)).await.unwrap();
    let frame = Frame::bytes(Function::OUTPUT, 5, vec![7; 300_000]);
    connection.sender.bulk(frame.clone()).await.unwrap();
    assert_eq!(connection.reader.next().await.unwrap().unwrap(), frame);
}

// The whole way: TCP, TLS, hello, frames, on both doors.
#[tokio::test]
async fn frames_pass_through_both_doors() {
    for kind in [DoorKind::Client, DoorKind::Worker] {
        let scene = Scene::open(kind, echo).await;
        let connection = scene.dial().await;
        assert_eq!(connection.peer, Some(scene.address));
        assert!(connection.local.unwrap().ip().is_loopback());
        assert_serves(&scene).await;
    }
}

// The hub that was meant must be told from any other, and be found behind another one's address.
#[tokio::test]
async fn another_hub_is_refused() {
    let (right, wrong) = (Scene::open(DoorKind::Client, echo).await, Scene::open(DoorKind::Client, echo).await);
    let only_wrong = target(right.authority.hash(), &[wrong.address.to_string()]);
    let error = dial(&only_wrong, DIAL_TIME).await.unwrap_err();
    assert!(matches!(&error, DialError::OtherHub { address } if *address == wrong.address.to_string()), "{error:?}");
    assert!(!error.is_retryable());
    assert_eq!(error.to_string(), format!("another hub answers at {}", wrong.address));
    let both = target(right.authority.hash(), &[wrong.address.to_string(), right.address.to_string()]);
    dial(&both, DIAL_TIME).await.unwrap();
    assert_serves(&wrong).await;
}

// A worker knows the authority's certificate and has one of its own: it must not be able to play the hub with them.
#[tokio::test]
async fn a_worker_cannot_play_the_hub() {
    let (scene, _arrivals) = watched_door().await;
    let worker = identity(&scene.authority, "pc-1");
    let chain = worker.chain_hex.iter().map(|hex| hex::decode(hex).unwrap().into()).collect();
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(worker.key_pem.0.as_bytes()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(essaim_net::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![essaim_net::tls::ALPN.to_vec()];
    let false_door = essaim_net::Door::bind("127.0.0.1:0", Arc::new(config)).await.unwrap();
    let address = false_door.local_addr().to_string();
    let serving = tokio::spawn(false_door.serve(echo, std::future::pending()));
    let error = dial(&target(scene.authority.hash(), &[address]), DIAL_TIME).await.unwrap_err();
    assert!(matches!(error, DialError::Tls { .. }), "{error:?}");
    serving.abort();
}

// The door must know a worker by its certificate, a stranger as a stranger, and never let in another hub's worker.
#[tokio::test]
async fn certificates_tell_who_comes() {
    let (scene, mut arrivals) = watched_door().await;
    let mut worker = scene.dial_as(identity(&scene.authority, "pc-1")).await.unwrap();
    greet(&mut worker, ours(PeerKind::Worker, None)).await.unwrap();
    let (node, serial) = arrivals.recv().await.unwrap();
    assert_eq!(node, Some("pc-1".parse().unwrap()));
    assert_eq!(serial.unwrap().len(), 32);

    let mut stranger = scene.dial().await;
    greet(&mut stranger, ours(PeerKind::Joiner, None)).await.unwrap();
    assert_eq!(arrivals.recv().await.unwrap(), (None, None));

    let folder = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(folder.path()).unwrap();
    let mut spy = scene.dial_as(identity(&other, "pc-1")).await.unwrap();
    let error = greet(&mut spy, ours(PeerKind::Worker, None)).await.unwrap_err();
    assert!(matches!(error, HelloError::Lost(_)), "{error:?}");
    assert_serves(&scene).await;
    assert_eq!(arrivals.recv().await.unwrap(), (None, None), "the spy was never handed over");
    assert!(arrivals.try_recv().is_err());
}

// The way of a new machine: line, key, certificate, and from then on its name.
#[tokio::test]
async fn a_machine_joins_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Arc::new(Authority::load_or_create(folder.path()).unwrap());
    let secret = new_secret();
    let (seen, mut arrivals) = mpsc::unbounded_channel();
    let (handler_signer, handler_secret) = (Arc::clone(&signer), secret.clone());
    let handler = move |accepted: Accepted| {
        let (signer, secret, seen) = (Arc::clone(&handler_signer), handler_secret.clone(), seen.clone());
        async move {
            seen.send((accepted.node, accepted.serial)).unwrap();
            admit(accepted.connection, &signer, &secret).await;
        }
    };
    let door = essaim_net::Door::bind("127.0.0.1:0", signer.server_config(DoorKind::Worker)).await.unwrap();
    let address = door.local_addr().to_string();
    let serving = tokio::spawn(door.serve(handler, std::future::pending()));

    let mut ticket =
        Ticket { kind: TicketKind::Join, authority: signer.hash(), secret, addresses: vec![address.clone()] };
    let at = target(ticket.authority, &ticket.addresses);
    let mut joining = dial(&at, DIAL_TIME).await.unwrap();
    let joined = join(&mut joining, &ticket, Some("laptop".parse().unwrap())).await.unwrap();
    assert_eq!((joined.name.as_str(), &joined.addresses), ("laptop-1", &vec![address]));
    assert_eq!(arrivals.recv().await.unwrap(), (None, None));

    joined.save(folder.path()).unwrap();
    let kept = Identity::load(folder.path()).unwrap().unwrap();
    let mut worker = dial(&DialTarget { identity: Some(Arc::new(kept)), ..at.clone() }, DIAL_TIME).await.unwrap();
    greet(&mut worker, ours(PeerKind::Worker, None)).await.unwrap();
    assert_eq!(arrivals.recv().await.unwrap().0, Some("laptop-1".parse().unwrap()));

    ticket.secret = new_secret();
    let mut joining = dial(&at, DIAL_TIME).await.unwrap();
    match join(&mut joining, &ticket, None).await {
        Err(JoinError::Hello(HelloError::Refused(no))) => assert_eq!(no.code, RefusalCode::JoinUnknown),
        other => panic!("{other:?}"),
    }
    serving.abort();
}

/// What a hub does with a joiner, in short.
async fn admit(mut connection: Connection, authority: &Authority, secret: &essaim_proto::hello::Secret) {
    let hello = await_hello(&mut connection).await.unwrap();
    if hello.kind != PeerKind::Joiner {
        send_welcome(&mut connection, &welcome()).unwrap();
        while let Ok(Some(_)) = connection.reader.next().await {}
        return;
    }
    let frame = connection.reader.next().await.unwrap().unwrap();
    let wish: Join = frame.message().unwrap();
    if wish.secret != *secret {
        return refuse(&connection.sender, frame.id, &RefusalCode::JoinUnknown.into()).unwrap();
    }
    let name: NodeName = format!("{}-1", wish.name.unwrap()).parse().unwrap();
    let signed = authority.sign_worker(&wish.csr, &name).unwrap();
    let chain = signed.chain.into_iter().map(Into::into).collect();
    let joined = Joined { chain, name: name.to_string() };
    connection.sender.control(Frame::of(Function::JOIN, frame.id, &joined).with_flag(FLAG_ANSWER)).unwrap();
}

// A refusal must reach a peer that has sent more than the hub has read: closing must not reset the connection.
#[tokio::test]
async fn last_words_arrive_although_not_all_was_read() {
    let scene = Scene::open(DoorKind::Client, |mut accepted: Accepted| async move {
        await_hello(&mut accepted.connection).await.unwrap();
        refuse(&accepted.connection.sender, 0, &RefusalCode::WrongKey.into()).unwrap();
    })
    .await;
    for _ in 0..50 {
        let mut connection = scene.dial().await;
        let sender = connection.sender.clone();
        tokio::spawn(
            async move { while sender.bulk(Frame::bytes(Function::STDIN, 1, vec![0; 10_000])).await.is_ok() {} },
        );
        match greet(&mut connection, ours(PeerKind::Client, None)).await {
            Err(HelloError::Refused(no)) => assert_eq!(no.code, RefusalCode::WrongKey),
            other => panic!("{other:?}"),
        }
    }
}

// All that was queued must arrive at a slow peer whose own words nobody read: a reset would take the rest with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_arrives_although_not_all_was_read() {
    const FRAMES: u64 = 200;
    let scene = Scene::open(DoorKind::Client, |mut accepted: Accepted| async move {
        await_hello(&mut accepted.connection).await.unwrap();
        for id in 0..FRAMES {
            accepted.connection.sender.bulk(Frame::bytes(Function::OUTPUT, id, vec![1; 65_536])).await.unwrap();
        }
    })
    .await;
    let mut connection = scene.dial().await;
    connection.reader.trust();
    connection.sender.control(Frame::of(Function::HELLO, 0, &ours(PeerKind::Client, None))).unwrap();
    for _ in 0..4 {
        connection.sender.bulk(Frame::bytes(Function::STDIN, 1, vec![0; 65_536])).await.unwrap();
    }
    for id in 0..FRAMES {
        tokio::time::sleep(Duration::from_millis(1)).await; // poll: not a wait, the reader is slow on purpose
        assert_eq!(connection.reader.next().await.unwrap().unwrap().id, id);
    }
    assert!(connection.reader.next().await.unwrap().is_none());
    assert_eq!(connection.reader.goodbye(), Some("done"));
}

// Garbage before TLS and garbage inside it must end that connection and no other.
#[tokio::test]
async fn garbage_ends_only_its_own_connection() {
    let (ends, mut ended) = mpsc::unbounded_channel();
    let scene = Scene::open(DoorKind::Client, move |mut accepted: Accepted| {
        let ends = ends.clone();
        async move {
            let first = await_hello(&mut accepted.connection).await;
            if first.is_ok() {
                send_welcome(&mut accepted.connection, &welcome()).unwrap();
                while let Ok(Some(frame)) = accepted.connection.reader.next().await {
                    accepted.connection.sender.bulk(frame).await.unwrap();
                }
            }
            let _ = ends.send(first);
        }
    })
    .await;
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), random::<4096>().to_vec(), vec![0x16, 3, 1, 0xff, 0xff]] {
        let mut stream = raw(scene.address).await;
        stream.write_all(&garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        // An alert or a reset: either way it ends.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let config = essaim_net::tls::client_config(scene.authority.hash(), None).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for garbage in [vec![0xff; 16], random::<1024>().to_vec()] {
        let name = rustls::pki_types::ServerName::try_from("essaim-hub").unwrap();
        let mut stream = connector.connect(name, raw(scene.address).await).await.unwrap();
        let mut garbage = garbage;
        garbage[3] = 0xff; // Whatever the rest says: 4 GB are announced.
        stream.write_all(&garbage).await.unwrap();
        let first = ended.recv().await.unwrap();
        assert!(matches!(first, Err(HelloError::Lost(ReadError::Frame(_)))), "{first:?}");
    }
    assert_serves(&scene).await;
}

// Peers that connect and say nothing must be dropped after the handshake's time, and nobody waits for them.
#[tokio::test]
async fn silent_peers_are_dropped_while_others_are_served() {
    let scene = Scene::open(DoorKind::Client, echo).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(raw(scene.address).await);
    }
    assert_serves(&scene).await;
    for mut stream in silent {
        // Ends only when the hub has dropped it.
        assert!(matches!(stream.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    }
    assert_serves(&scene).await;
}

// When the door is closed its port must be free at once, even for a dial that follows immediately.
#[tokio::test]
async fn a_closed_door_is_closed() {
    let mut scene = Scene::open(DoorKind::Client, echo).await;
    let silent = raw(scene.address).await;
    assert_serves(&scene).await;
    scene.shutdown.take();
    (&mut scene.served).await.unwrap();
    let error = dial(&scene.target(), DIAL_TIME).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }) && error.is_retryable(), "{error:?}");
    tcp::listen(&scene.address.to_string()).await.unwrap();
    drop(silent);
}

// Each way in which a dial fails must be told apart.
#[tokio::test]
async fn failed_dials_are_told_apart() {
    let scene = Scene::open(DoorKind::Client, echo).await;
    let try_at = |addresses: &[&str], bind| {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        DialTarget { bind, ..target(scene.authority.hash(), &addresses) }
    };
    let fails = async |target: DialTarget| dial(&target, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(fails(try_at(&[], None)).await, DialError::NoAddress));
    assert!(matches!(fails(try_at(&["no port"], None)).await, DialError::Unresolved { .. }));

    // Accepts in the kernel and says nothing.
    let mute = tcp::listen("127.0.0.1:0").await.unwrap();
    let mute_address = mute.local_addr().to_string();
    let error = fails(try_at(&[&mute_address], None)).await;
    assert!(matches!(error, DialError::Timeout { .. }) && error.is_retryable(), "{error:?}");

    let here = scene.address.to_string();
    let elsewhere = tcp::parse_bind("203.0.113.7");
    let error = fails(try_at(&[&here], elsewhere)).await;
    assert!(matches!(error, DialError::CannotBind { .. }) && !error.is_retryable(), "{error:?}");

    let from = tcp::parse_bind("127.0.0.1");
    let connection = dial(&try_at(&[&mute_address, &here], from), Duration::from_millis(300)).await.unwrap();
    assert_eq!(connection.local.unwrap().ip(), from.unwrap().ip());

    // A program that speaks another language.
    let mail = tcp::listen("127.0.0.1:0").await.unwrap();
    let mail_address = mail.local_addr().to_string();
    let babble = tokio::spawn(async move {
        let (mut stream, _) = mail.accept().await;
        while stream.write_all(b"220 mail.example ESMTP\r\n").await.is_ok() {
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    let error = fails(try_at(&[&mail_address], None)).await;
    assert!(matches!(error, DialError::Tls { .. }), "{error:?}");
    babble.abort();
}
