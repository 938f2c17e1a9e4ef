//! Events for containerd: published in order, by one task, through containerd's ttrpc socket.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{mpsc, oneshot};
use ttrpc::context::with_duration;

/// Where containerd listens for events; set by containerd for its shims.
pub(crate) const ADDRESS_VARIABLE: &str = "TTRPC_ADDRESS";
/// Events that wait for containerd to come back; beyond it the oldest are dropped, and that is logged.
const MAX_WAITING: usize = 2048;
/// How long one attempt to publish may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause between attempts while containerd is away.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the last events may take when the shim ends.
const FLUSH: Duration = Duration::from_secs(5);

/// A moment as protobuf has it.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Default::default()
    }
}

/// An event that containerd knows.
pub(crate) trait Event: Message {
    /// Its topic.
    const TOPIC: &'static str;
}

macro_rules! events {
    ($($event:ty => $topic:ident),* $(,)?) => {
        $(impl Event for $event {
            const TOPIC: &'static str = topics::$topic;
        })*
    };
}

events! {
    TaskCreate => TASK_CREATE_EVENT_TOPIC,
    TaskStart => TASK_START_EVENT_TOPIC,
    TaskExecAdded => TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted => TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused => TASK_PAUSED_EVENT_TOPIC,
    TaskResumed => TASK_RESUMED_EVENT_TOPIC,
    TaskOOM => TASK_OOM_EVENT_TOPIC,
    TaskExit => TASK_EXIT_EVENT_TOPIC,
    TaskDelete => TASK_DELETE_EVENT_TOPIC,
}

/// What waits to be published.
enum Item {
    /// An event.
    Event(Envelope),
    /// Say when everything before this is published.
    Flush(oneshot::Sender<()>),
}

/// Takes events; hands them to the task that publishes them.
#[derive(Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: Option<mpsc::UnboundedSender<Item>>,
}

impl Publisher {
    /// A publisher to the containerd of the environment; without one, events go nowhere.
    pub(crate) fn from_environment(namespace: &str) -> Self {
        let address = std::env::var(ADDRESS_VARIABLE)
            .ok()
            .filter(|address| !address.is_empty());
        let queue = address.map(|address| {
            // A pod has few events; while containerd is away, `publish` drops what is too much.
            let (queue, receiver) = mpsc::unbounded_channel();
            tokio::spawn(publish(address, namespace.to_owned(), receiver));
            queue
        });
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Waits, bounded, until everything that was sent is published.
    pub(crate) async fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, published) = oneshot::channel();
        if queue.send(Item::Flush(done)).is_ok()
            && tokio::time::timeout(FLUSH, published).await.is_err()
        {
            tracing::warn!("containerd did not take the last events in time");
        }
    }

    /// Queues an event.
    pub(crate) fn send<E: Event>(&self, event: &E) {
        let Some(queue) = &self.queue else { return };
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!("cannot encode an event for {}: {error}", E::TOPIC);
                return;
            }
        };
        let any = Any {
            type_url: E::descriptor_full_name(),
            value,
            ..Default::default()
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(any).into(),
            ..Default::default()
        };
        // The receiver lives as long as any publisher.
        let _ = queue.send(Item::Event(envelope));
    }
}

trait FullName {
    fn descriptor_full_name() -> String;
}

impl<E: Event> FullName for E {
    fn descriptor_full_name() -> String {
        // containerd's type URL is the message's full name (github.com/containerd/typeurl).
        let short = E::NAME;
        format!(
            "containerd.events.{}",
            short.rsplit('.').next().unwrap_or(short)
        )
    }
}

async fn publish(address: String, namespace: String, mut receiver: mpsc::UnboundedReceiver<Item>) {
    let mut client: Option<EventsClient> = None;
    let mut waiting: VecDeque<Item> = VecDeque::new();
    while let Some(item) = receiver.recv().await {
        waiting.push_back(item);
        while let Some(next) = waiting.pop_front() {
            let envelope = match next {
                Item::Flush(done) => {
                    let _ = done.send(());
                    continue;
                }
                Item::Event(envelope) => envelope,
            };
            let Err(error) = forward(&mut client, &address, &namespace, &envelope).await else {
                continue;
            };
            tracing::warn!("cannot publish {} yet: {error}", envelope.topic);
            client = None;
            waiting.push_front(Item::Event(envelope));
            tokio::time::sleep(RETRY_AFTER).await;
            while let Ok(more) = receiver.try_recv() {
                waiting.push_back(more);
            }
            while waiting.len() > MAX_WAITING {
                if let Some(Item::Event(lost)) = waiting.pop_front() {
                    tracing::error!("dropped an event for {}", lost.topic);
                }
            }
        }
    }
}

async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    namespace: &str,
    envelope: &Envelope,
) -> Result<(), ttrpc::Error> {
    let connected = match client {
        Some(client) => client,
        None => {
            let address = match address.strip_prefix("unix://") {
                Some(_) => address.to_owned(),
                None => format!("unix://{address}"),
            };
            client.insert(EventsClient::new(Client::connect(&address).await?))
        }
    };
    let request = ForwardRequest {
        envelope: Some(envelope.clone()).into(),
        ..Default::default()
    };
    let mut context = with_duration(ATTEMPT);
    context.set(
        "containerd-namespace-ttrpc".to_owned(),
        vec![namespace.to_owned()],
    );
    connected.forward(context, &request).await?;
    Ok(())
}

/// What a test's publisher was to publish.
#[cfg(test)]
pub(crate) struct Published(mpsc::UnboundedReceiver<Item>);

#[cfg(test)]
impl Published {
    /// The events since the last call: the topic of each, and the process or container that it is of.
    pub(crate) fn take(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        while let Ok(Item::Event(envelope)) = self.0.try_recv() {
            let value = &envelope.event.value;
            let id = match envelope.topic.as_str() {
                topics::TASK_EXIT_EVENT_TOPIC => {
                    TaskExit::parse_from_bytes(value).unwrap_or_default().id
                }
                // Both have the exec's identifier behind the container's.
                topics::TASK_EXEC_ADDED_EVENT_TOPIC | topics::TASK_EXEC_STARTED_EVENT_TOPIC => {
                    let event = TaskExecAdded::parse_from_bytes(value);
                    event.unwrap_or_default().exec_id
                }
                // The first field of all others is the container's identifier.
                _ => {
                    TaskOOM::parse_from_bytes(value)
                        .unwrap_or_default()
                        .container_id
                }
            };
            all.push((envelope.topic, id));
        }
        all
    }
}

#[cfg(test)]
impl Publisher {
    /// One whose events a test takes.
    pub(crate) fn to_test(namespace: &str) -> (Self, Published) {
        let (queue, receiver) = mpsc::unbounded_channel();
        let publisher = Self {
            namespace: namespace.to_owned(),
            queue: Some(queue),
        };
        (publisher, Published(receiver))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_url_is_containerds() {
        assert_eq!(
            TaskExit::descriptor_full_name(),
            "containerd.events.TaskExit"
        );
        assert_eq!(TaskOOM::descriptor_full_name(), "containerd.events.TaskOOM");
    }
}
