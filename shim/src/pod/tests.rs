//! Any order of calls against what must come of it, with an agent that does what it is told or refuses.

mod agent;
mod silent;

use std::collections::BTreeMap;

use containerd_shim_protos::api::ExecProcessRequest;
use proptest::prelude::*;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;

use self::agent::Agent;
use super::*;
use crate::events::Published;

/// The pod's sandbox container, with which the machine goes, and two others.
const CONTAINERS: [&str; 3] = ["c0", "c1", "c2"];
const EXECS: usize = 2;

/// A process: its container, and which of the execs it is.
type Name = (usize, Option<usize>);

fn key((container, exec): Name) -> ProcessKey {
    let container = CONTAINERS[container];
    let exec = exec
        .map(|exec| format!("{container}-e{exec}"))
        .unwrap_or_default();
    ProcessKey::new(container, &exec).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// A container is there, as after a create.
    Made(usize),
    Exec(usize, usize),
    Start(Name),
    Kill(Name),
    Delete(Name),
    Pause(usize),
    Resume(usize),
    /// The guest says that it ended.
    Exited(Name),
}

fn name() -> impl Strategy<Value = Name> {
    (0..CONTAINERS.len(), prop::option::of(0..EXECS))
}

fn call() -> impl Strategy<Value = Call> {
    let container = || 0..CONTAINERS.len();
    prop_oneof![
        2 => container().prop_map(Call::Made),
        2 => (container(), 0..EXECS).prop_map(|(container, exec)| Call::Exec(container, exec)),
        4 => name().prop_map(Call::Start),
        1 => name().prop_map(Call::Kill),
        2 => name().prop_map(Call::Delete),
        1 => container().prop_map(Call::Pause),
        1 => container().prop_map(Call::Resume),
        2 => name().prop_map(Call::Exited),
    ]
}

/// What the world is told of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Added,
    Started,
    Paused,
    Resumed,
    Exited,
    Deleted,
}

/// How a call ends that is not done.
#[derive(Debug, PartialEq, Eq)]
enum No {
    Missing,
    Exists,
    State,
    Agent,
}

fn why(error: &TaskError) -> No {
    match error {
        TaskError::NotFound { .. } => No::Missing,
        TaskError::AlreadyExists { .. } => No::Exists,
        TaskError::Lifecycle(_) => No::State,
        TaskError::Agent(AgentError::Refused { .. }) => No::Agent,
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Created,
    Running,
    Paused,
    Stopped,
}

/// What there must be.
#[derive(Default)]
struct Model {
    machine: bool,
    lives: BTreeMap<Name, Life>,
    told: BTreeMap<String, Vec<Told>>,
}

impl Model {
    fn life(&self, name: Name) -> Result<Life, No> {
        self.lives.get(&name).copied().ok_or(No::Missing)
    }

    fn tell(&mut self, name: Name, told: Told) {
        self.told
            .entry(key(name).event_id())
            .or_default()
            .push(told);
    }

    fn end(&mut self, name: Name) {
        if self.life(name).is_ok_and(|life| life != Life::Stopped) {
            self.lives.insert(name, Life::Stopped);
            self.tell(name, Told::Exited);
        }
    }

    /// What comes of a call, with an agent that refuses what it is asked, or does it.
    fn apply(&mut self, call: Call, refuses: bool) -> Result<(), No> {
        let machine = if self.machine {
            Ok(())
        } else {
            Err(No::Missing)
        };
        let agent = if refuses { Err(No::Agent) } else { Ok(()) };
        let must = |life: Life, wanted: &[Life]| match wanted.contains(&life) {
            true => Ok(()),
            false => Err(No::State),
        };
        match call {
            Call::Made(container) => {
                self.lives.insert((container, None), Life::Created);
            }
            Call::Exec(container, exec) => {
                machine?;
                must(self.life((container, None))?, &[Life::Running])?;
                let name = (container, Some(exec));
                if self.life(name).is_ok() {
                    return Err(No::Exists);
                }
                agent?;
                self.lives.insert(name, Life::Created);
                self.tell(name, Told::Added);
            }
            Call::Start(name) => {
                machine?;
                must(self.life(name)?, &[Life::Created])?;
                if name.1.is_some() && self.life((name.0, None))? == Life::Paused {
                    return Err(No::State);
                }
                if refuses {
                    // It never ran, so that nobody is told of an end.
                    self.lives.insert(name, Life::Stopped);
                }
                agent?;
                self.lives.insert(name, Life::Running);
                self.tell(name, Told::Started);
            }
            Call::Kill(name) => {
                let life = self.life(name)?;
                // An exec has no process before it is started.
                if life != Life::Created || name.1.is_some() {
                    must(life, &[Life::Running, Life::Paused])?;
                }
                machine?;
                agent?;
            }
            Call::Delete(name) => {
                must(self.life(name)?, &[Life::Created, Life::Stopped])?;
                if name == (0, None) {
                    self.machine = false;
                    let all: Vec<Name> = self.lives.keys().copied().collect();
                    all.into_iter().for_each(|name| self.end(name));
                }
                if name.1.is_none() {
                    self.lives.retain(|(container, _), _| *container != name.0);
                    self.tell(name, Told::Deleted);
                }
                self.lives.remove(&name);
            }
            Call::Pause(container) => {
                must(self.life((container, None))?, &[Life::Running])?;
                machine?;
                agent?;
                self.lives.insert((container, None), Life::Paused);
                self.tell((container, None), Told::Paused);
            }
            Call::Resume(container) => {
                must(self.life((container, None))?, &[Life::Paused])?;
                machine?;
                agent?;
                self.lives.insert((container, None), Life::Running);
                self.tell((container, None), Told::Resumed);
            }
            Call::Exited(name) => self.end(name),
        }
        Ok(())
    }
}

/// A pod whose machine runs, without a machine.
struct Bench {
    pod: Arc<Pod>,
    agent: Arc<Agent>,
    published: Published,
}

impl Bench {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (publisher, published) = Publisher::to_test("ns");
        let pod = Pod::to_test(publisher);
        let sandbox = Sandbox::without_machine(ours, PathBuf::from("/nonexistent"));
        {
            let mut state = pod.state();
            state.sandbox = Some(Arc::new(sandbox));
            state.contents = Contents::Pod(ContainerId::new("c0").unwrap());
        }
        Self {
            pod: Arc::new(pod),
            agent: Agent::behind(theirs),
            published,
        }
    }

    fn make(&self, container: usize) {
        let id = ContainerId::new(CONTAINERS[container]).unwrap();
        self.agent.made(&id);
        let container = Container {
            bundle: PathBuf::from("/nonexistent"),
            hooks: Hooks::default(),
            demand: crate::spec::size::Demand::default(),
            places: Places::default(),
            oom_score: None,
            init: Process::new(StdioPaths::default()),
            execs: HashMap::new(),
            oom_told: None,
        };
        self.pod.state().containers.insert(id, container);
    }

    async fn apply(&self, call: Call) -> Result<(), TaskError> {
        let pod = &self.pod;
        match call {
            Call::Made(container) => {
                self.make(container);
                Ok(())
            }
            Call::Exec(container, exec) => {
                let key = key((container, Some(exec)));
                let request = ExecProcessRequest {
                    id: key.container.to_string(),
                    exec_id: key.event_id(),
                    spec: Some(Any {
                        value: br#"{"user":{"uid":0,"gid":0},"args":["x"],"cwd":"/"}"#.to_vec(),
                        ..Default::default()
                    })
                    .into(),
                    ..Default::default()
                };
                pod.exec(&request).await
            }
            Call::Start(name) => pod.start(&key(name)).await.map(drop),
            Call::Kill(name) => pod.kill(&key(name), 15, false).await,
            Call::Delete(name) => pod.delete(&key(name)).await.map(drop),
            Call::Pause(container) => pod.pause(&key((container, None))).await,
            Call::Resume(container) => pod.resume(&key((container, None))).await,
            Call::Exited(name) => {
                let key = key(name);
                self.agent.ended(&key);
                let exit = Exit::now(3);
                pod.change(&key, |process| process.lifecycle.exited(exit));
                Ok(())
            }
        }
    }

    fn life(&self, name: Name) -> Option<Life> {
        let view = self.pod.view(&key(name)).ok()?;
        Some(match view.lifecycle {
            Lifecycle::Created => Life::Created,
            Lifecycle::Running => Life::Running,
            Lifecycle::Paused => Life::Paused,
            Lifecycle::Stopped(_) => Life::Stopped,
            Lifecycle::Starting { .. } => panic!("nothing is being started"),
        })
    }

    /// What was told of each process, in order.
    fn told(&mut self) -> BTreeMap<String, Vec<Told>> {
        let mut told: BTreeMap<String, Vec<Told>> = BTreeMap::new();
        for (topic, id) in self.published.take() {
            let what = match topic.as_str() {
                "/tasks/exec-added" => Told::Added,
                "/tasks/start" | "/tasks/exec-started" => Told::Started,
                "/tasks/paused" => Told::Paused,
                "/tasks/resumed" => Told::Resumed,
                "/tasks/exit" => Told::Exited,
                "/tasks/delete" => Told::Deleted,
                other => panic!("{other}"),
            };
            told.entry(id).or_default().push(what);
        }
        told
    }
}

fn names() -> impl Iterator<Item = Name> {
    let kinds = || std::iter::once(None).chain((0..EXECS).map(Some));
    (0..CONTAINERS.len()).flat_map(move |container| kinds().map(move |exec| (container, exec)))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Each call after the other, each with what must come of it.
async fn walk(calls: &[(Call, bool)]) -> Result<(), TestCaseError> {
    let mut bench = Bench::new();
    let mut model = Model {
        machine: true,
        ..Model::default()
    };
    for (number, (call, refuses)) in calls.iter().copied().enumerate() {
        // A container of that name is not made again, and none without a machine.
        if let Call::Made(container) = call
            && (model.life((container, None)).is_ok() || !model.machine)
        {
            continue;
        }
        bench.agent.refuse(refuses);
        let wanted = model.apply(call, refuses);
        let came = bench.apply(call).await.map_err(|error| why(&error));
        prop_assert_eq!(came, wanted, "call {}: {:?}", number, call);
        for name in names() {
            prop_assert_eq!(
                bench.life(name),
                model.life(name).ok(),
                "{:?} after call {}",
                name,
                number
            );
        }
    }
    prop_assert_eq!(bench.told(), model.told);
    prop_assert_eq!(bench.pod.sandbox().is_ok(), model.machine);
    Ok(())
}

/// Calls at the same time, some at once: whatever comes of them, their stories make sense, and nothing is left in the guest that the
/// pod does not know.
async fn crowd(before: &[Call], at_once: &[Call]) -> Result<(), TestCaseError> {
    let mut bench = Bench::new();
    for container in 0..CONTAINERS.len() {
        bench.make(container);
    }
    let is_made = |call: &&Call| matches!(call, Call::Made(_));
    for call in before.iter().filter(|call| !is_made(call)) {
        let _ = bench.apply(*call).await;
    }
    let calls = at_once.iter().filter(|call| !is_made(call));
    futures::future::join_all(calls.map(|call| bench.apply(*call))).await;
    for (id, told) in bench.told() {
        let place = |what| told.iter().position(|told| *told == what);
        for once in [Told::Started, Told::Exited, Told::Deleted] {
            let count = told.iter().filter(|told| **told == once).count();
            // The name of an exec is free again when it is deleted, which nobody is told.
            prop_assert!(count <= 1 || id.contains("-e"), "{}: {:?}", id, told);
        }
        if !id.contains("-e") {
            if let (Some(start), Some(exit)) = (place(Told::Started), place(Told::Exited)) {
                prop_assert!(start < exit, "{}: {:?}", id, told);
            }
            if let Some(deleted) = place(Told::Deleted) {
                prop_assert_eq!(deleted, told.len() - 1, "{}: {:?}", id, told);
            }
        }
    }
    if bench.pod.sandbox().is_ok() {
        for key in bench.agent.processes() {
            prop_assert!(
                bench.pod.view(&key).is_ok(),
                "{} is in the guest alone",
                key
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn calls_in_any_order_do_what_the_states_allow_and_are_told(
        calls in prop::collection::vec((call(), prop::bool::weighted(0.15)), 0..60),
    ) {
        block_on(walk(&calls))?;
    }

    #[test]
    fn calls_at_once_leave_nothing_that_the_pod_does_not_know(
        before in prop::collection::vec(call(), 0..30),
        at_once in prop::collection::vec(call(), 2..5),
    ) {
        block_on(crowd(&before, &at_once))?;
    }
}

#[tokio::test]
async fn demands_are_those_of_containers_and_of_what_is_under_way() {
    let bench = Bench::new();
    bench.make(1);
    bench.make(2);
    let of = |mib: i64| {
        let mut memory = oci_spec::runtime::LinuxMemory::default();
        memory.set_limit(Some(mib << 20));
        let mut resources = oci_spec::runtime::LinuxResources::default();
        resources.set_memory(Some(memory));
        Demand::of(Some(&resources))
    };
    let id = |name: &str| ContainerId::new(name).unwrap();
    let config = Config {
        memory_overhead_mib: 100,
        ..Config::default()
    };
    let mut state = bench.pod.state();
    let sum = |state: &State| Demand::sum(state.demands(), &config).0;
    state.container(&id("c1")).unwrap().demand = of(10);
    state.container(&id("c2")).unwrap().demand = of(20);
    assert_eq!(sum(&state), 130);
    state.claimed.insert(id("c2"), of(50));
    state.claimed.insert(id("c3"), of(1));
    assert_eq!(sum(&state), 161);
}

#[tokio::test]
async fn machine_is_killed_for_want_of_memory_as_the_last_of_its_containers() {
    let bench = Bench::new();
    let score = |container: usize, score| {
        let mut state = bench.pod.state();
        let id = ContainerId::new(CONTAINERS[container]).unwrap();
        state.container(&id).unwrap().oom_score = score;
        state.oom_score()
    };
    bench.make(0);
    assert_eq!(score(0, Some(-998)), Some(-998));
    bench.make(1);
    assert_eq!(score(1, Some(1000)), Some(1000));
    bench.make(2);
    assert_eq!(score(2, Some(937)), Some(937));
    assert_eq!(score(2, None), Some(1000));
    assert_eq!(score(1, None), Some(-998));
    assert_eq!(score(0, None), None);
}

#[tokio::test]
async fn machine_runs_where_its_live_containers_may() {
    let bench = Bench::new();
    let cpus = || {
        let cpus = bench.pod.state().places().cpus;
        cpus.map(|cpus| cpus.to_string())
    };
    let place = |container: usize, cpus: Option<&str>| {
        let mut state = bench.pod.state();
        let id = ContainerId::new(CONTAINERS[container]).unwrap();
        state.container(&id).unwrap().places.cpus = cpus.map(|cpus| cpus.parse().unwrap());
    };
    assert_eq!(cpus(), None);
    bench.make(0);
    place(0, Some("7"));
    assert_eq!(cpus().as_deref(), Some("7"));
    bench.make(1);
    place(1, Some("2-3"));
    assert_eq!(cpus().as_deref(), Some("2-3"));
    bench.make(2);
    assert_eq!(cpus(), None);
    place(2, Some("0,3"));
    assert_eq!(cpus().as_deref(), Some("0,2-3"));
    bench.apply(Call::Exited((1, None))).await.unwrap();
    assert_eq!(cpus().as_deref(), Some("0,3"));
    bench.apply(Call::Exited((2, None))).await.unwrap();
    assert_eq!(cpus().as_deref(), Some("7"));
}

#[tokio::test]
async fn update_that_names_what_the_host_has_not_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    bench.make(1);
    let id = ContainerId::new(CONTAINERS[1]).unwrap();
    let beyond = format!(
        r#"{{"cpu":{{"cpus":"{}"}}}}"#,
        sandbox_types::CpusetList::MAX
    );
    let refused = bench.pod.update(&id, beyond.into_bytes()).await;
    assert!(matches!(refused, Err(TaskError::Spec(_))), "{refused:?}");
    assert_eq!(bench.pod.state().places(), Places::default());
}

#[tokio::test]
async fn container_that_is_being_deleted_is_not_started() {
    let bench = Bench::new();
    bench.make(1);
    let name = (1, None);
    let (deleted, started) = futures::future::join(
        bench.apply(Call::Delete(name)),
        bench.apply(Call::Start(name)),
    )
    .await;
    deleted.unwrap();
    assert_eq!(why(&started.unwrap_err()), No::State);
    assert!(bench.agent.processes().is_empty());
}

#[tokio::test]
async fn container_deleted_twice_at_once_is_deleted_once() {
    let mut bench = Bench::new();
    bench.make(1);
    let name = (1, None);
    let (first, second) = futures::future::join(
        bench.apply(Call::Delete(name)),
        bench.apply(Call::Delete(name)),
    )
    .await;
    first.unwrap();
    assert_eq!(why(&second.unwrap_err()), No::Missing);
    assert_eq!(
        bench.told(),
        BTreeMap::from([("c1".to_owned(), vec![Told::Deleted])])
    );
}

#[tokio::test]
async fn guest_is_heard_about_its_own_containers_memory_now_and_then() {
    let mut bench = Bench::new();
    bench.make(1);
    let own = ContainerId::new("c1").unwrap();
    let others = ContainerId::new("somebody-else").unwrap();
    let now = Instant::now();
    for _ in 0..10_000 {
        bench.pod.out_of_memory(&own, now);
        bench.pod.out_of_memory(&others, now);
    }
    let told = |id: &str| ("/tasks/oom".to_owned(), id.to_owned());
    assert_eq!(bench.published.take(), [told("c1")]);
    bench.pod.out_of_memory(&own, now + OOM_INTERVAL);
    assert_eq!(bench.published.take(), [told("c1")]);
}

#[tokio::test]
async fn pod_for_which_a_container_is_being_made_is_not_forgotten() {
    let bench = Bench::new();
    let pod = &bench.pod;
    let id = ContainerId::new("c1").unwrap();
    pod.state().creating.insert(id.clone());
    pod.end_if_empty();
    assert!(!pod.state().unwanted);
    assert!(!*pod.ended.borrow());
    pod.state().creating.remove(&id);
    pod.end_if_empty();
    assert!(*pod.ended.borrow());
}
