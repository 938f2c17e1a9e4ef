//! A guest that takes every connection and never answers: each call ends in the time that it has, with an error that names it. The
//! clock is tokio's, which goes on to the next limit when there is nothing else to do.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;

use sandbox_protocol::agent::StreamKind;
use sandbox_protocol::{AGENT_PORT, STREAM_PORT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::Instant;
use ttrpc::proto::{MESSAGE_TYPE_RESPONSE, MessageHeader};

use super::*;
use crate::vsock::{self, StreamError};

/// Every call that there is.
const SERVICE: &str = include_str!("../../../sandbox-protocol/proto/agent.proto");

type Call<'a> = Pin<Box<dyn Future<Output = Result<(), AgentError>> + 'a>>;

fn calls<'a>(agent: &'a AgentClient, id: &'a ContainerId) -> Vec<(&'static str, Call<'a>)> {
    /// A call without its answer.
    async fn ends<T>(call: impl Future<Output = Result<T, AgentError>>) -> Result<(), AgentError> {
        call.await.map(|_| ())
    }
    macro_rules! calls {
        ($($name:literal => $call:expr,)*) => {
            vec![$(($name, Box::pin(async move { ends($call).await }) as Call<'a>),)*]
        };
    }
    calls! {
        "configure the guest" => agent.configure_guest(1, "host"),
        "configure the guest's network" => agent.configure_network(&ConfigureNetworkRequest::default()),
        "create the container" => agent.create_container(&CreateContainerRequest::default()),
        "add a process" => agent.add_process(&AddProcessRequest::default()),
        "start the process" => agent.start_process(id, None),
        "signal the process" => agent.signal_process(id, None, 9, true),
        "resize the terminal" => agent.resize_terminal(id, None, 80, 24),
        "close standard input" => agent.close_stdin(id, None),
        "set the clock" => agent.set_clock(),
        "change the limits" => agent.update_container(id, Vec::new()),
        "bring processors up" => agent.bring_up_processors(VcpuCount::ONE),
        "read the guest's memory" => agent.guest_memory(),
        "read the statistics" => agent.container_stats(id),
        "delete the process" => agent.delete_process(id, None),
        "list the processes" => agent.list_processes(id),
        "pause the container" => agent.pause(id),
        "resume the container" => agent.resume(id),
        "shut the guest down" => agent.shutdown(),
    }
}

/// Makes every call to a peer, which is held for as long as it takes.
async fn each_call_ends(peer: impl Fn(UnixStream)) {
    let id = ContainerId::new("c1").unwrap();
    let count = SERVICE.matches("\n  rpc ").count();
    for number in 0..count {
        let (ours, theirs) = UnixStream::pair().unwrap();
        peer(theirs);
        let agent = AgentClient::new(ours);
        let mut calls = calls(&agent, &id);
        assert_eq!(calls.len(), count, "a call is missing here");
        let (name, call) = calls.swap_remove(number);
        let begun = Instant::now();
        let error = call.await.unwrap_err();
        let took = begun.elapsed();
        let AgentError::TimedOut { call, after } = error else {
            panic!("{name}: {error:?}");
        };
        assert_eq!(call, name);
        assert!(
            after <= CREATE_TIMEOUT && took <= after + Duration::from_secs(1),
            "{name}: {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn silent_agent_ends_each_call_in_its_time() {
    each_call_ends(|mut peer| {
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while peer.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        });
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn agent_that_does_not_even_read_ends_each_call_in_its_time() {
    let (hold, mut held) = tokio::sync::mpsc::unbounded_channel();
    each_call_ends(|peer| hold.send(peer).unwrap()).await;
    drop(hold);
    let mut count = 0;
    while held.recv().await.is_some() {
        count += 1;
    }
    assert!(count > 0);
}

#[tokio::test(start_paused = true)]
async fn statistics_of_a_silent_agent_are_waited_for_once_until_it_answers() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let agent = AgentClient::new(ours);
    let id = ContainerId::new("c1").unwrap();
    let begun = Instant::now();
    for number in 0..10 {
        let error = agent.container_stats(&id).await.unwrap_err();
        match number {
            0 => assert!(matches!(error, AgentError::TimedOut { .. }), "{error:?}"),
            _ => assert!(matches!(error, AgentError::Mute { .. }), "{error:?}"),
        }
        assert!(agent.list_processes(&id).await.is_err());
    }
    assert!(begun.elapsed() < 2 * LOOK_TIMEOUT, "{:?}", begun.elapsed());
    // The answer to the first, which comes late: nobody waits for it, and the next is asked for again.
    let late: Vec<u8> = MessageHeader {
        length: 0,
        stream_id: 1,
        type_: MESSAGE_TYPE_RESPONSE,
        flags: 0,
    }
    .into();
    theirs.write_all(&late).await.unwrap();
    while agent.pulse.is_mute() {
        tokio::task::yield_now().await;
    }
    let error = agent.container_stats(&id).await.unwrap_err();
    assert!(matches!(error, AgentError::TimedOut { .. }), "{error:?}");
}

/// What a device or agent says of a connection before it is silent.
async fn streams_end(said: &'static [&'static [u8]]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut peer, _)) = listener.accept().await {
            for part in said {
                if peer.write_all(part).await.is_err() {
                    break;
                }
            }
            held.push(peer);
        }
    });
    let id = ContainerId::new("c1").unwrap();
    let stdout = StreamKind::STREAM_KIND_STDOUT;
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let connected = said.iter().any(|part| part.contains(&b'\n'));
    if !connected {
        ends_in_time(AGENT_PORT, vsock::connect(&path, AGENT_PORT)).await;
    }
    ends_in_time(STREAM_PORT, vsock::open_stream(&path, &id, None, stdout)).await;
    ends_in_time(STREAM_PORT, vsock::open_loopback(&path, loopback)).await;
    assert!(Path::new(&path).exists());
}

async fn ends_in_time(wanted: u32, call: impl Future<Output = Result<UnixStream, StreamError>>) {
    let begun = Instant::now();
    let error = call.await.unwrap_err();
    let took = begun.elapsed();
    let StreamError::TimedOut { port, after } = error else {
        panic!("{error:?}");
    };
    assert_eq!(port, wanted);
    // Of the device and of the agent, each.
    assert!(took <= 2 * after + Duration::from_secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn silent_guest_ends_each_stream_in_its_time() {
    // The device says nothing; it begins to; it is done, and the agent says nothing; the agent begins to.
    streams_end(&[]).await;
    streams_end(&[b"OK 1"]).await;
    streams_end(&[b"OK 1\n"]).await;
    streams_end(&[b"OK 1\n", &[0, 0]]).await;
    streams_end(&[b"OK 1\n", &[0, 0, 0, 200, 1]]).await;
}
