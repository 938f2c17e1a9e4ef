//! A guest that does not do what it is told. The clock is tokio's, which goes on to the next limit when there is nothing else to do.

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::types::mount::Mount;
use serde_json::json;

use super::*;
use crate::caller::Caller;
use crate::pod::process::Listed;

const SIGKILL: u32 = 9;

/// A pod with its sandbox container and another, which run.
async fn running() -> Bench {
    let mut bench = Bench::new();
    for container in [0, 1] {
        bench.make(container);
        bench.apply(Call::Start((container, None))).await.unwrap();
    }
    bench.published.take();
    bench
}

fn exit(bench: &Bench, container: usize) -> Option<u32> {
    let view = bench.pod.view(&key((container, None))).unwrap();
    view.lifecycle.exit().map(|exit| exit.status)
}

fn assert_all_are_killed(bench: &mut Bench) {
    let told = bench.told();
    for container in [0, 1] {
        assert_eq!(exit(bench, container), Some(KILLED));
        assert_eq!(told[CONTAINERS[container]], [Told::Exited]);
    }
    assert!(bench.pod.sandbox().is_err());
}

/// Kills a container of a guest that does not answer, with which all of the pod ends and can be removed.
async fn killed_without_an_answer(container: usize) {
    let mut bench = running().await;
    bench.agent.fall_silent();
    let pod = Arc::clone(&bench.pod);
    pod.kill(&key((container, None)), SIGKILL, false)
        .await
        .unwrap();
    assert_all_are_killed(&mut bench);
    bench.apply(Call::Delete((1, None))).await.unwrap();
    bench.apply(Call::Delete((0, None))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn killed_sandbox_of_a_guest_that_does_not_answer_ends_with_its_machine() {
    killed_without_an_answer(0).await;
}

#[tokio::test(start_paused = true)]
async fn killed_sandbox_that_does_not_end_ends_with_its_machine() {
    let mut bench = running().await;
    let (pod, holder) = (Arc::clone(&bench.pod), key((0, None)));
    pod.kill(&holder, SIGKILL, false).await.unwrap();
    assert_eq!(exit(&bench, 0), None);
    assert_eq!(pod.wait(&holder).await.unwrap().status, KILLED);
    assert_all_are_killed(&mut bench);
}

#[tokio::test(start_paused = true)]
async fn killed_sandbox_that_ends_leaves_the_machine_to_its_delete() {
    let bench = running().await;
    let pod = Arc::clone(&bench.pod);
    pod.kill(&key((0, None)), SIGKILL, false).await.unwrap();
    bench.apply(Call::Exited((0, None))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((exit(&bench, 0), exit(&bench, 1)), (Some(3), None));
    assert!(pod.sandbox().is_ok());
}

#[tokio::test(start_paused = true)]
async fn killed_member_of_a_guest_that_does_not_answer_ends_the_pod() {
    killed_without_an_answer(1).await;
}

#[tokio::test(start_paused = true)]
async fn killed_member_that_does_not_end_ends_the_pod() {
    for refuses in [false, true] {
        let mut bench = running().await;
        bench.agent.refuse(refuses);
        let (pod, member) = (Arc::clone(&bench.pod), key((1, None)));
        let killed = pod.kill(&member, SIGKILL, false).await;
        assert_eq!(killed.is_err(), refuses);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(exit(&bench, 1), None);
        assert_eq!(pod.wait(&member).await.unwrap().status, KILLED);
        assert_all_are_killed(&mut bench);
    }
}

#[tokio::test(start_paused = true)]
async fn killed_member_that_ends_leaves_the_pod_as_it_is() {
    let bench = running().await;
    bench.apply(Call::Pause(1)).await.unwrap();
    let pod = Arc::clone(&bench.pod);
    pod.kill(&key((1, None)), SIGKILL, true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.apply(Call::Exited((1, None))).await.unwrap();
    bench.apply(Call::Delete((1, None))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(exit(&bench, 0), None);
    assert!(pod.sandbox().is_ok());
}

#[tokio::test(start_paused = true)]
async fn signal_that_ends_no_container_is_an_error_of_a_guest_that_does_not_answer() {
    let bench = running().await;
    bench.apply(Call::Exec(1, 0)).await.unwrap();
    bench.apply(Call::Start((1, Some(0)))).await.unwrap();
    bench.agent.fall_silent();
    for (name, signal) in [((1, Some(0)), SIGKILL), ((1, None), 15), ((0, None), 15)] {
        let killed = bench.pod.kill(&key(name), signal, false).await;
        assert_timed_out(killed);
    }
    assert!(bench.pod.sandbox().is_ok());
}

#[tokio::test(start_paused = true)]
async fn containers_of_a_guest_that_does_not_answer_have_a_process_on_the_host() {
    let bench = running().await;
    let member = ContainerId::new("c1").unwrap();
    let ours = Listed::Machine(bench.pod.pid());
    // It has none in the guest's answer, as one that has ended.
    assert_eq!(bench.pod.list(&member).await.unwrap(), ours);
    bench.agent.refuse(true);
    assert_eq!(bench.pod.list(&member).await.unwrap(), ours);
    bench.agent.fall_silent();
    let begun = tokio::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(bench.pod.list(&member).await.unwrap(), ours);
    }
    // containerd gives each bundle 5 s when it is started again.
    assert!(begun.elapsed() < Duration::from_secs(4));
    bench.pod.end_without_the_guest().await;
    let listed = bench.pod.list(&member).await.unwrap();
    assert_eq!(listed, Listed::Machine(std::process::id()));
    let other = ContainerId::new("c2").unwrap();
    assert_eq!(why(&bench.pod.list(&other).await.unwrap_err()), No::Missing);
}

#[tokio::test(start_paused = true)]
async fn exec_is_killed_alone_whatever_else_is_asked_for() {
    let bench = running().await;
    bench.apply(Call::Exec(1, 0)).await.unwrap();
    let exec = key((1, Some(0)));
    // It has no process yet, as with runc.
    let killed = bench.pod.kill(&exec, SIGKILL, true).await;
    assert_eq!(why(&killed.unwrap_err()), No::State);
    bench.apply(Call::Start((1, Some(0)))).await.unwrap();
    bench.pod.kill(&exec, SIGKILL, true).await.unwrap();
    assert!(bench.agent.runs(&key((1, None))));
    assert!(!bench.agent.runs(&exec));
}

fn assert_timed_out<T: std::fmt::Debug>(result: Result<T, TaskError>) {
    assert!(
        matches!(result, Err(TaskError::Agent(AgentError::TimedOut { .. }))),
        "{result:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn start_that_is_not_answered_leaves_nothing_that_runs() {
    let mut bench = Bench::new();
    bench.make(1);
    bench.agent.leave_unanswered("StartProcess");
    assert_timed_out(bench.apply(Call::Start((1, None))).await);
    assert!(!bench.agent.runs(&key((1, None))));
    assert_eq!(bench.life((1, None)), Some(Life::Stopped));
    bench.apply(Call::Delete((1, None))).await.unwrap();
    assert_eq!(bench.told()["c1"], [Told::Deleted]);
}

#[tokio::test(start_paused = true)]
async fn exec_that_is_not_answered_leaves_its_name_free() {
    let bench = running().await;
    bench.agent.leave_unanswered("AddProcess");
    assert_timed_out(bench.apply(Call::Exec(1, 0)).await);
    assert!(!bench.agent.processes().contains(&key((1, Some(0)))));
    bench.agent.leave_unanswered("");
    bench.apply(Call::Exec(1, 0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn create_that_is_not_answered_leaves_its_name_free() {
    let bench = running().await;
    let bundle = tempfile::tempdir().unwrap();
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "c0",
        },
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    });
    std::fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
    let create = async || {
        let request = CreateTaskRequest {
            id: "c2".to_owned(),
            bundle: bundle.path().display().to_string(),
            rootfs: vec![Mount {
                type_: "tmpfs".to_owned(),
                source: "tmpfs".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let (caller, _waiting) = Caller::of_call();
        bench.pod.create(request, &caller).await
    };
    bench.agent.leave_unanswered("CreateContainer");
    assert_timed_out(create().await);
    assert!(!bench.agent.processes().contains(&key((2, None))));
    bench.agent.leave_unanswered("");
    create().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pause_that_is_not_answered_leaves_nothing_frozen() {
    let mut bench = running().await;
    bench.agent.leave_unanswered("PauseContainer");
    assert_timed_out(bench.apply(Call::Pause(1)).await);
    assert!(!bench.agent.is_frozen("c1"));
    assert_eq!(bench.life((1, None)), Some(Life::Running));
    assert!(bench.told().is_empty());
}
