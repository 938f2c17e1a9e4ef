use super::*;
use std::io::{Read as _, Write as _};

const ALL: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: true,
    terminal: false,
};

#[tokio::test]
async fn output_written_before_a_reader_attaches_arrives_whole() {
    let (streams, inherited) = Streams::new(ALL).unwrap();
    let [stdin, stdout, stderr] = inherited.unwrap();
    drop((stdin, stderr));
    let data: Vec<u8> = (0..8u32 << 18).flat_map(u32::to_le_bytes).collect();
    let expected = data.clone();
    let writer = std::thread::spawn(move || std::fs::File::from(stdout).write_all(&data));
    let output = streams.stdout.clone().unwrap();
    let (mut host, guest) = tokio::io::duplex(4096);
    let superseded = output.attach();
    let copy = tokio::spawn(async move { output.copy_to(guest, superseded).await });
    let mut received = Vec::new();
    host.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    drop(host);
    copy.await.unwrap();
    streams.drain(Duration::ZERO).await;
    writer.join().unwrap().unwrap();
}

#[tokio::test]
async fn output_that_a_broken_connection_did_not_take_goes_to_the_next() {
    let (streams, inherited) = Streams::new(ALL).unwrap();
    let [stdin, stdout, stderr] = inherited.unwrap();
    drop((stdin, stderr));
    std::fs::File::from(stdout).write_all(&[7; 10_000]).unwrap();
    let output = streams.stdout.clone().unwrap();

    let (mut host, guest) = tokio::io::duplex(1000);
    let superseded = output.attach();
    let first = output.clone();
    let copy = tokio::spawn(async move { first.copy_to(guest, superseded).await });
    host.read_exact(&mut [0; 500]).await.unwrap();
    let superseded = output.attach();
    copy.await.unwrap();
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).await.unwrap();

    let (mut host, guest) = tokio::io::duplex(1000);
    tokio::spawn(async move { output.copy_to(guest, superseded).await });
    let mut received = Vec::new();
    host.read_to_end(&mut received).await.unwrap();
    assert_eq!(500 + rest.len() + received.len(), 10_000);
}

#[tokio::test]
async fn stdin_ends_after_close_and_not_with_a_detach() {
    let (streams, inherited) = Streams::new(ALL).unwrap();
    let [stdin, ..] = inherited.unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::fs::File::from(stdin)
            .read_to_string(&mut text)
            .unwrap();
        text
    });
    let input = streams.stdin.clone().unwrap();
    for part in ["one ", "two"] {
        let hold = input.attach().unwrap();
        let (mut host, guest) = tokio::io::duplex(64);
        host.write_all(part.as_bytes()).await.unwrap();
        if part == "two" {
            input.close();
            assert!(input.attach().is_err());
        }
        drop(host);
        input.copy_from(guest, hold).await;
    }
    assert_eq!(reader.join().unwrap(), "one two");
}

#[tokio::test]
async fn stdin_of_a_process_that_does_not_read_takes_everything() {
    let (streams, inherited) = Streams::new(ALL).unwrap();
    drop(inherited);
    let input = streams.stdin.clone().unwrap();
    let hold = input.attach().unwrap();
    let (mut host, guest) = tokio::io::duplex(64);
    tokio::spawn(async move { input.copy_from(guest, hold).await });
    host.write_all(&[0; 1 << 20]).await.unwrap();
}

#[tokio::test]
async fn terminal_that_never_comes_ends_the_output() {
    let wanted = Wanted {
        terminal: true,
        ..ALL
    };
    let (streams, inherited) = Streams::new(wanted).unwrap();
    assert!(inherited.is_none() && streams.stderr.is_none());
    let output = streams.stdout.clone().unwrap();
    let superseded = output.attach();
    let (mut host, guest) = tokio::io::duplex(64);
    tokio::spawn(async move { output.copy_to(guest, superseded).await });
    streams.connect_terminal(None);
    assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
}
