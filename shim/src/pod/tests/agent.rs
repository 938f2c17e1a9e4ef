//! An agent on the other end of a connection, which keeps a book of its processes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use protobuf::Message as _;
use sandbox_protocol::agent::{
    AddProcessRequest, ContainerRequest, CreateContainerRequest, ProcessRequest,
    SignalProcessRequest,
};
use sandbox_types::ContainerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};
use ttrpc::proto::{Request, Response};

use crate::pod::ProcessKey;

/// What is not answered.
enum Silence {
    Nothing,
    /// Calls of this method, which are done all the same.
    Of(&'static str),
    /// Whatever is asked, and nothing is done.
    Everything,
}

/// The agent.
pub(super) struct Agent {
    refuses: AtomicBool,
    silence: Mutex<Silence>,
    /// Containers that are paused.
    frozen: Mutex<HashSet<String>>,
    /// Container and exec, and whether it runs.
    book: Mutex<HashMap<(String, String), bool>>,
}

impl Agent {
    /// An agent that answers on `stream`.
    pub(super) fn behind(stream: UnixStream) -> Arc<Self> {
        let agent = Arc::new(Self {
            refuses: AtomicBool::new(false),
            silence: Mutex::new(Silence::Nothing),
            frozen: Mutex::default(),
            book: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&agent).serve(stream));
        agent
    }

    /// Whether it refuses from now on whatever it is asked.
    pub(super) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    /// It answers nothing from now on, and does nothing.
    pub(super) fn fall_silent(&self) {
        *self.silence.lock().unwrap() = Silence::Everything;
    }

    /// It answers no calls of a method from now on, which it does; of none, if that is empty.
    pub(super) fn leave_unanswered(&self, method: &'static str) {
        *self.silence.lock().unwrap() = match method {
            "" => Silence::Nothing,
            method => Silence::Of(method),
        };
    }

    /// A container was made.
    pub(super) fn made(&self, id: &ContainerId) {
        let name = (id.to_string(), String::new());
        self.book.lock().unwrap().insert(name, false);
    }

    /// A process ended by itself.
    pub(super) fn ended(&self, key: &ProcessKey) {
        let exec = key.exec.as_ref().map(ToString::to_string);
        let name = (key.container.to_string(), exec.unwrap_or_default());
        if let Some(runs) = self.book.lock().unwrap().get_mut(&name) {
            *runs = false;
        }
    }

    /// Whether a container is paused.
    pub(super) fn is_frozen(&self, container: &str) -> bool {
        self.frozen.lock().unwrap().contains(container)
    }

    /// Whether a process runs.
    pub(super) fn runs(&self, key: &ProcessKey) -> bool {
        let exec = key.exec.as_ref().map(ToString::to_string);
        let name = (key.container.to_string(), exec.unwrap_or_default());
        self.book.lock().unwrap().get(&name) == Some(&true)
    }

    /// The processes that it has.
    pub(super) fn processes(&self) -> Vec<ProcessKey> {
        let book = self.book.lock().unwrap();
        book.keys()
            .map(|(container, exec)| ProcessKey::new(container, exec).unwrap())
            .collect()
    }

    async fn serve(self: Arc<Self>, mut stream: UnixStream) {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        while stream.read_exact(&mut header).await.is_ok() {
            let header = MessageHeader::from(&header);
            let mut body = vec![0; usize::try_from(header.length).unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let request = Request::parse_from_bytes(&body).unwrap();
            let unanswered = match &*self.silence.lock().unwrap() {
                Silence::Everything => continue,
                Silence::Of(method) => request.method == *method,
                Silence::Nothing => false,
            };
            let mut response = Response::new();
            if self.refuses.load(Ordering::Relaxed) || !self.does(&request) {
                let status = ttrpc::get_status(Code::FAILED_PRECONDITION, "no");
                response.status = Some(status).into();
            }
            if unanswered {
                continue;
            }
            let payload = response.write_to_bytes().unwrap();
            let header: Vec<u8> = MessageHeader {
                length: u32::try_from(payload.len()).unwrap(),
                type_: MESSAGE_TYPE_RESPONSE,
                ..header
            }
            .into();
            let answer = [header, payload].concat();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    /// Whether it can do what it is asked, and then it has.
    fn does(&self, request: &Request) -> bool {
        let mut book = self.book.lock().unwrap();
        let process = || {
            let process = ProcessRequest::parse_from_bytes(&request.payload).unwrap();
            (process.container_id, process.exec_id)
        };
        match request.method.as_str() {
            "PauseContainer" | "ResumeContainer" => {
                let container = ContainerRequest::parse_from_bytes(&request.payload).unwrap();
                let mut frozen = self.frozen.lock().unwrap();
                match request.method == "PauseContainer" {
                    true => frozen.insert(container.container_id),
                    false => frozen.remove(&container.container_id),
                };
                true
            }
            "CreateContainer" => {
                let create = CreateContainerRequest::parse_from_bytes(&request.payload).unwrap();
                let name = (create.container_id, String::new());
                book.insert(name, false).is_none()
            }
            "SignalProcess" => {
                let signal = SignalProcessRequest::parse_from_bytes(&request.payload).unwrap();
                let name = (signal.container_id, signal.exec_id);
                for (of, runs) in book.iter_mut() {
                    if signal.signal == 9 && (*of == name || signal.all && of.0 == name.0) {
                        *runs = false;
                    }
                }
                true
            }
            "AddProcess" => {
                let add = AddProcessRequest::parse_from_bytes(&request.payload).unwrap();
                book.insert((add.container_id, add.exec_id), false);
                true
            }
            "StartProcess" => match book.get_mut(&process()) {
                Some(runs) => !std::mem::replace(runs, true),
                None => false,
            },
            "DeleteProcess" => {
                let name = process();
                if book.get(&name).is_none_or(|runs| *runs) {
                    return false;
                }
                match name.1.is_empty() {
                    true => book.retain(|(container, _), _| *container != name.0),
                    false => drop(book.remove(&name)),
                }
                true
            }
            _ => true,
        }
    }
}
