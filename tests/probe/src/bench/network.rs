//! The other side of what a benchmark measures of a network.
//!
//! A connection begins with nine bytes: what is wanted, and how many bytes of it (little-endian).
//!
//! | wanted | what happens |
//! | --- | --- |
//! | `e` | every byte comes back as it arrives, until the other side closes |
//! | `i` | so many bytes are read, and then one is sent |
//! | `o` | so many bytes are sent |

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Component, Path};

/// How much is read or written at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// Says `up` when it listens on every address, and serves one connection after the other until it is killed.
///
/// # Errors
/// When the port cannot be listened on.
pub(crate) fn serve(port: &str) -> Result<(), String> {
    each_connection(port, answer)
}

/// Says `up` when it listens, and serves the files of `folder` by HTTP until it is killed.
///
/// # Errors
/// When the port cannot be listened on.
pub(crate) fn web(port: &str, folder: &str) -> Result<(), String> {
    each_connection(port, |stream| page(stream, Path::new(folder)))
}

fn each_connection(
    port: &str,
    mut serve: impl FnMut(TcpStream) -> io::Result<()>,
) -> Result<(), String> {
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    println!("up");
    loop {
        // One that breaks off is the other side's to report.
        if let Ok((stream, _)) = listener.accept() {
            let _ = serve(stream);
        }
    }
}

/// The longest request that is read, in bytes.
const MAX_REQUEST: u64 = 16 << 10;

/// Answers one request.
fn page(mut stream: TcpStream, folder: &Path) -> io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?).take(MAX_REQUEST);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let path = Path::new(path.trim_start_matches('/'));
    let below = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match below.then(|| fs::read(folder.join(path))) {
        Some(Ok(content)) => {
            let head = format!(
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
                content.len()
            );
            stream.write_all(head.as_bytes())?;
            stream.write_all(&content)
        }
        _ => stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n"),
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0u8; 9];
    stream.read_exact(&mut wanted)?;
    let [what, count @ ..] = wanted;
    let mut left = u64::from_le_bytes(count);
    let mut chunk = vec![0u8; CHUNK];
    match what {
        b'e' => loop {
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                length => stream.write_all(&chunk[..length])?,
            }
        },
        b'i' => {
            while left > 0 {
                match stream.read(&mut chunk)? {
                    0 => return Ok(()),
                    length => left = left.saturating_sub(length as u64),
                }
            }
            stream.write_all(b"!")
        }
        b'o' => {
            while left > 0 {
                let length = left.min(CHUNK as u64);
                let part = usize::try_from(length).unwrap_or(CHUNK);
                stream.write_all(&chunk[..part])?;
                left -= length;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(what: u8, count: u64) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || answer(listener.accept().unwrap().0));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[what]).unwrap();
        stream.write_all(&count.to_le_bytes()).unwrap();
        stream
    }

    #[test]
    fn pages_are_files_of_the_folder_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("probe-web-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a"), "content").unwrap();
        for (path, wanted) in [
            ("/a", "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\ncontent"),
            ("/b", "HTTP/1.0 404 Not Found\r\n\r\n"),
            ("/../a", "HTTP/1.0 404 Not Found\r\n\r\n"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            page(listener.accept().unwrap().0, &folder).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, wanted);
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn bytes_come_back_go_in_and_come_out() {
        let mut byte = [0u8; 1];
        let mut echo = connect(b'e', 0);
        echo.write_all(b"x").unwrap();
        echo.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");

        let mut inwards = connect(b'i', 100_000);
        inwards.write_all(&vec![1; 100_000]).unwrap();
        inwards.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");

        let mut out = Vec::new();
        connect(b'o', 100_000).read_to_end(&mut out).unwrap();
        assert_eq!(out.len(), 100_000);
    }
}
