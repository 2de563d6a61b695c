//! Starting, stopping, and who comes in.

use crate::scene::{Scene, Worker, config, connect, join_with, refused, refused_hello, refused_join, soon};
use essaim_hub::{RunningHub, StartError};
use essaim_net::hello::{HelloError, greet, ours};
use essaim_net::limits::DIAL_TIME;
use essaim_net::{DialError, DialTarget, HubFile, Ticket, TicketKind, dial};
use essaim_proto::api::{JobList, JoinLineMake, KeyCreate, KeyList, KeyRevoke};
use essaim_proto::hello::{PeerKind, Role, Secret};
use essaim_proto::{InstanceId, RefusalCode};
use std::os::unix::fs::PermissionsExt;

// Does a hub that is ready say so in its files, and keep others away from its folder by name?
#[tokio::test]
async fn a_hub_says_where_it_is_and_holds_its_folder() {
    let scene = Scene::open().await;
    let file = HubFile::read(&scene.path()).unwrap().unwrap();
    assert_eq!(file.pid, std::process::id());
    assert_eq!(file.hub, "lab");
    assert_eq!(file.authority, scene.hub.authority());
    assert_eq!(file.client_addresses, scene.hub.client_addresses());
    assert_eq!(file.worker_addresses, scene.hub.worker_addresses());

    let key = scene.path().join("admin.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let line = std::fs::read_to_string(&key).unwrap();
    assert_eq!(line.trim(), scene.hub.admin_key().0);

    let error = RunningHub::start(config(&scene.path())).await.err().unwrap();
    assert!(matches!(error, StartError::AlreadyRunning { .. }), "{error}");
    let sentence = error.to_string();
    assert!(sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
    assert!(sentence.contains(scene.path().to_str().unwrap()), "{sentence}");
    scene.admin().await;
}

// Is a taken port named with its owner, and is nothing left open by a hub that could not start?
#[tokio::test]
async fn a_hub_that_cannot_start_leaves_nothing_open() {
    let scene = Scene::open().await;
    let taken = scene.hub.worker_addresses()[0].clone();
    let home = tempfile::tempdir().unwrap();
    let free = essaim_net::tcp::listen("127.0.0.1:0").await.unwrap().local_addr().to_string();
    let wanted = essaim_hub::HubConfig { client_addr: free.clone(), worker_addr: taken.clone(), ..config(home.path()) };
    let error = RunningHub::start(wanted).await.err().unwrap();
    let sentence = error.to_string();
    assert!(sentence.contains(&taken) && sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
    // The clients' port, the folder and its lock are free again.
    let again = essaim_hub::HubConfig { client_addr: free, ..config(home.path()) };
    RunningHub::start(again).await.unwrap().shutdown().await;
}

// Does a shutdown say goodbye to everybody, give the ports back at once, and does a restart take the same ones?
#[tokio::test]
async fn a_shutdown_says_goodbye_and_a_restart_takes_the_same_ports() {
    let scene = Scene::open().await;
    let (client, mut worker) = (scene.admin().await, scene.worker().await);
    let silent = dial(&scene.clients(), DIAL_TIME).await.unwrap();
    let (clients, workers, authority) =
        (scene.hub.client_addresses(), scene.hub.worker_addresses(), scene.hub.authority());
    let key = scene.hub.admin_key();
    let Scene { hub, home } = scene;
    let begun = std::time::Instant::now();
    soon(hub.shutdown()).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    let lost = soon(client.closed()).await;
    assert_eq!(lost.to_string(), "the connection was closed (shutdown)");
    assert!(soon(worker.connection.reader.next()).await.unwrap().is_none());
    assert_eq!(worker.connection.reader.goodbye(), Some("shutdown"));
    drop(silent);
    assert!(HubFile::read(home.path()).unwrap().is_none());
    for address in clients.iter().chain(&workers) {
        drop(essaim_net::tcp::listen(address).await.unwrap());
    }

    let hub = RunningHub::start(config(home.path())).await.unwrap();
    assert_eq!((hub.client_addresses(), hub.worker_addresses()), (clients.clone(), workers));
    assert_eq!((hub.authority(), hub.admin_key().0), (authority, key.0.clone()));
    let target = DialTarget { addresses: clients, authority, identity: None, bind: None };
    connect(target, key).await.unwrap();
}

// Is each door for its own kind of peer, and a wrong key a wrong key?
#[tokio::test]
async fn wrong_keys_and_wrong_doors_are_refused_by_name() {
    let scene = Scene::open().await;
    let wrong = Ticket {
        kind: TicketKind::Key,
        authority: scene.hub.authority(),
        secret: essaim_net::ticket::new_secret(),
        addresses: Vec::new(),
    };
    assert_eq!(refused_hello(connect(scene.clients(), wrong.to_line()).await).code, RefusalCode::WrongKey);
    assert_eq!(refused_hello(connect(scene.clients(), Secret("x".into())).await).code, RefusalCode::WrongKey);
    let at_workers = refused_hello(connect(scene.workers(), scene.hub.admin_key()).await);
    assert_eq!((at_workers.code, at_workers.param("door")), (RefusalCode::WrongDoor, "workers"));

    let identity = scene.machine().await;
    for (kind, target, door) in [
        (PeerKind::Worker, scene.clients(), "clients"),
        (PeerKind::Joiner, scene.clients(), "clients"),
        // Without a certificate.
        (PeerKind::Worker, scene.workers(), "workers"),
    ] {
        let mut connection = dial(&target, DIAL_TIME).await.unwrap();
        match soon(greet(&mut connection, ours(kind, None))).await {
            Err(HelloError::Refused(refusal)) => {
                assert_eq!((refusal.code, refusal.param("door")), (RefusalCode::WrongDoor, door));
            }
            other => panic!("{other:?}"),
        }
    }
    // And the right ones still come in.
    scene.admin().await;
    Worker::connect(scene.workers(), identity, InstanceId([1; 16]), Vec::new()).await;
}

// Is a join line that is used, expired, unknown or another hub's refused as exactly that?
#[tokio::test]
async fn join_lines_are_refused_by_name() {
    let scene = Scene::open().await;
    let admin = scene.admin().await;
    let make = JoinLineMake { uses: 2, ..JoinLineMake::default() };
    let line = soon(admin.request(&make)).await.unwrap().line;
    let (first, second) = (join_with(&line).await.unwrap(), join_with(&line).await.unwrap());
    assert_eq!((first.name.as_str(), second.name.as_str()), ("pc", "pc-2"));
    assert_eq!(refused_join(join_with(&line).await), RefusalCode::JoinUsed);

    let short = soon(admin.request(&JoinLineMake { ttl_ms: 1, ..JoinLineMake::default() })).await.unwrap();
    let unix_ms = || std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    while unix_ms() <= short.expires_ms {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await; // poll: until it has expired, in a millisecond
    }
    assert_eq!(refused_join(join_with(&short.line).await), RefusalCode::JoinExpired);

    let ticket: Ticket = line.0.parse().unwrap();
    let unknown = Ticket { secret: essaim_net::ticket::new_secret(), ..ticket.clone() };
    assert_eq!(refused_join(join_with(&unknown.to_line()).await), RefusalCode::JoinUnknown);

    // The line of another hub that once had this address.
    let other = Scene::open().await;
    let foreign = Ticket { addresses: ticket.addresses, ..other.hub.local_join_line(1).await.0.parse().unwrap() };
    let target = DialTarget { addresses: foreign.addresses, authority: foreign.authority, identity: None, bind: None };
    assert!(matches!(dial(&target, DIAL_TIME).await, Err(DialError::OtherHub { .. })));
}

// Does a join line with `open` make another address reachable at once, name it, and is what is open already no mistake?
#[tokio::test]
async fn a_second_address_is_opened_without_a_restart() {
    let scene = Scene::open().await;
    let admin = scene.admin().await;
    let make = JoinLineMake {
        open: Some("127.0.0.2".into()),
        open_clients: Some("127.0.0.3".into()),
        uses: 2,
        ..JoinLineMake::default()
    };
    let made = soon(admin.request(&make)).await.unwrap();
    let port = scene.hub.worker_addresses()[0].rsplit_once(':').unwrap().1.to_owned();
    let second = format!("127.0.0.2:{port}");
    assert!(made.addresses.contains(&second), "{:?}", made.addresses);
    let file = HubFile::read(&scene.path()).unwrap().unwrap();
    assert!(file.worker_addresses.contains(&second));
    let ticket: Ticket = made.line.0.parse().unwrap();
    let only = Ticket { addresses: vec![second.clone()], ..ticket };
    let identity = join_with(&only.to_line()).await.unwrap();
    let target = DialTarget { addresses: vec![second.clone()], ..scene.workers() };
    Worker::connect(target, identity.into(), InstanceId([1; 16]), Vec::new()).await;
    let third = file.client_addresses.iter().find(|address| address.starts_with("127.0.0.3:")).unwrap().clone();
    connect(DialTarget { addresses: vec![third], ..scene.clients() }, scene.hub.admin_key()).await.unwrap();

    // Again, and the first one by another name: open already.
    for open in ["127.0.0.2", &second, &scene.hub.worker_addresses()[0], &format!("localhost:{port}")] {
        let make = JoinLineMake { open: Some(open.to_owned()), ..JoinLineMake::default() };
        assert_eq!(soon(admin.request(&make)).await.unwrap().addresses, made.addresses, "{open}");
    }
    let foreign = JoinLineMake { open: Some("192.0.2.1".into()), ..JoinLineMake::default() };
    let refusal = refused(soon(admin.request(&foreign)).await);
    assert_eq!(refusal.code, RefusalCode::CannotListen);
    assert!(refusal.param("why").contains("is not an address of this machine"), "{refusal:?}");
    let taken = scene.hub.client_addresses()[0].clone();
    let refusal = refused(soon(admin.request(&JoinLineMake { open: Some(taken), ..JoinLineMake::default() })).await);
    assert_eq!(refusal.code, RefusalCode::CannotListen);
}

// Do keys come, show, and go with their sessions?
#[tokio::test]
async fn a_revoked_key_ends_its_sessions() {
    let scene = Scene::open().await;
    let admin = scene.admin().await;
    let create = KeyCreate { name: "ann".into(), role: Role::User, ..KeyCreate::default() };
    let made = soon(admin.request(&create)).await.unwrap();
    assert_eq!(made.addresses, scene.hub.client_addresses());
    assert_eq!(refused(soon(admin.request(&create)).await).code, RefusalCode::KeyExists);
    let ann = connect(scene.clients(), made.key.clone()).await.unwrap();
    assert_eq!((ann.welcome().you.as_str(), ann.welcome().role), ("ann", Role::User));
    assert_eq!(refused(soon(ann.request(&KeyList {})).await).code, RefusalCode::NotAllowed);
    let keys = soon(admin.request(&KeyList {})).await.unwrap().keys;
    let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["admin", "ann"]);

    soon(admin.request(&KeyRevoke { name: "ann".into() })).await.unwrap();
    assert_eq!(soon(ann.closed()).await.to_string(), "the connection was closed (key_revoked)");
    assert_eq!(refused_hello(connect(scene.clients(), made.key).await).code, RefusalCode::WrongKey);
    assert_eq!(refused(soon(admin.request(&KeyRevoke { name: "bob".into() })).await).code, RefusalCode::NoSuchKey);
    assert_eq!(refused(soon(admin.request(&KeyRevoke { name: "admin".into() })).await).code, RefusalCode::LastAdmin);
    soon(admin.request(&JobList::default())).await.unwrap();
}
