//! The device: what it offers, how its queues are laid out, and its threads. The tap is sockets that keep messages apart.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::{Interrupt, Registers, WorkerThread};

const STRIDE: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const LIMIT: Duration = Duration::from_secs(60);

fn bit(bit: u32) -> u64 {
    1 << bit
}

fn device(pairs: usize) -> (Net, Vec<UnixDatagram>) {
    let (taps, networks): (Vec<_>, Vec<_>) = (0..pairs)
        .map(|_| {
            let (ours, network) = UnixDatagram::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            network.set_read_timeout(Some(LIMIT)).unwrap();
            (Tap::of_messages(OwnedFd::from(ours).into()), network)
        })
        .unzip();
    let net = Net::new("net0", taps, MacAddress::local([1; 6]), 1500).unwrap();
    (net, networks)
}

fn activation(
    memory: &GuestMemoryMmap,
    device: &Net,
    features: u64,
    queues: Vec<Option<ActiveQueue>>,
) -> Activation {
    let thread = |(name, _): (String, ThreadKind)| WorkerThread::spawn(&name, || {}).unwrap();
    Activation {
        memory: memory.clone(),
        queues,
        interrupt: Interrupt::new(
            EventFd::new(EFD_NONBLOCK).unwrap(),
            Registers::alone().unwrap(),
        ),
        features,
        thread: thread(device.thread()),
        more_threads: device.more_threads().into_iter().map(thread).collect(),
    }
}

fn active(mock: &MockSplitQueue<'_, GuestMemoryMmap>) -> Option<ActiveQueue> {
    Some(ActiveQueue {
        queue: mock.create_queue::<Queue>().unwrap(),
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
    })
}

#[test]
fn offload_needs_checksums() {
    assert_eq!(offload(bit(VIRTIO_NET_F_GUEST_TSO4)), 0);
    let both = bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(offload(both), OFFLOAD_CSUM | OFFLOAD_TSO4);
}

#[test]
fn device_offers_several_pairs_and_their_control_only_where_there_are() {
    let several = bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ);
    for (pairs, queues, offered) in [(1, 2, 0), (2, 5, several), (MAX_PAIRS, 17, several)] {
        let (net, _networks) = device(pairs);
        assert_eq!(net.queue_max_sizes().len(), queues);
        assert_eq!(net.features() & several, offered);
        assert_eq!(net.more_threads().len(), pairs - 1);
        let mut count = [0; 2];
        net.read_config(8, &mut count);
        assert_eq!(usize::from(u16::from_le_bytes(count)), pairs);
    }
    for count in [0, MAX_PAIRS + 1] {
        let taps = (0..count).map(|_| {
            let (ours, _) = UnixDatagram::pair().unwrap();
            Tap::of_messages(OwnedFd::from(ours).into())
        });
        let refused = Net::new("net0", taps.collect(), MacAddress::local([1; 6]), 1500);
        assert!(matches!(refused, Err(NetError::Queues { count: found }) if found == count));
    }
}

/// `None` where the driver left a queue disabled; the number of pairs, and the control queue's ring.
fn layout(features: u64, enabled: [bool; 7]) -> Result<(usize, Option<u64>), ActivateError> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
    let (net, _networks) = device(3);
    let queues = (0_u64..).zip(enabled).map(|(index, enabled)| {
        let mock = MockSplitQueue::create(&memory, GuestAddress(index * STRIDE), 256);
        active(&mock).filter(|_| enabled)
    });
    let mut activation = activation(&memory, &net, features, queues.collect());
    let layout = Layout::of(&mut activation, 3)?;
    let control = layout.control.map(|it| it.queue.desc_table() / STRIDE);
    Ok((layout.pairs.len(), control))
}

#[test]
fn control_queue_is_behind_the_pairs_that_were_negotiated() {
    let (mq, control) = (bit(VIRTIO_NET_F_MQ), bit(VIRTIO_NET_F_CTRL_VQ));
    let all = [true; 7];
    assert_eq!(layout(mq | control, all).unwrap(), (3, Some(6)));
    assert_eq!(layout(control, all).unwrap(), (1, Some(2)));
    assert_eq!(layout(mq, all).unwrap(), (3, None));
    assert_eq!(layout(0, all).unwrap(), (1, None));
    let without_second = [true, true, true, false, true, true, true];
    assert_eq!(layout(mq | control, without_second).unwrap(), (1, Some(6)));
    let without_third = [true, true, true, true, false, true, true];
    assert_eq!(layout(mq | control, without_third).unwrap(), (2, Some(6)));
    for index in [0, 1] {
        let mut enabled = all;
        enabled[index] = false;
        let refused = layout(mq | control, enabled);
        assert!(
            matches!(refused, Err(ActivateError::QueueDisabled { index: at }) if at == index),
            "{refused:?}"
        );
    }
}

#[test]
fn every_pair_has_a_thread_and_the_device_comes_up_again_after_a_reset() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
    let (mut net, networks) = device(2);
    let features = net.features();
    for round in 0..2_u8 {
        let mocks: Vec<_> = (0..5)
            .map(|index| MockSplitQueue::create(&memory, GuestAddress(index * STRIDE), 256))
            .collect();
        let queues: Vec<_> = mocks.iter().map(active).collect();
        let kicks: Vec<EventFd> = queues
            .iter()
            .map(|queue| queue.as_ref().unwrap().kick.try_clone().unwrap())
            .collect();
        let frame = [round; 100];
        memory.write_slice(&frame, GuestAddress(DATA)).unwrap();
        let send = RawDescriptor::from(Descriptor::new(DATA, 100, 0, 0));
        let activation = activation(&memory, &net, features, queues);
        net.activate(activation).unwrap();
        assert!(!net.pairs.is_active(1));
        for (pair, network) in networks.iter().enumerate() {
            let tx = 2 * pair + 1;
            mocks[tx].build_multiple_desc_chains(&[send]).unwrap();
            kicks[tx].write(1).unwrap();
            let mut came = [0; 200];
            let length = network.recv(&mut came).unwrap();
            assert_eq!(came[..length], frame);
        }
        net.reset();
        assert!(matches!(net.state, State::Idle));
        for pair in 0..2 {
            assert!(net.pairs.get(pair).unwrap().tap.is_attached());
        }
        memory.write_slice(&[0; 0x6_0000], GuestAddress(0)).unwrap();
    }
}

#[test]
fn driver_that_resets_again_and_again_has_few_queues_detached_at_once_and_all_in_the_end() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
    let (mut net, _networks) = device(2);
    let features = net.features();
    let mocks: Vec<_> = (0..5)
        .map(|index| MockSplitQueue::create(&memory, GuestAddress(index * STRIDE), 256))
        .collect();
    let started = Instant::now();
    let mut detached = 0;
    for _ in 0..40 {
        net.reset();
        let queues = mocks.iter().map(active).collect();
        let activation = activation(&memory, &net, features, queues);
        net.activate(activation).unwrap();
        detached += u64::from(!net.pairs.is_active(1));
    }
    let more = started.elapsed().as_millis() / 500 + 1;
    assert!(detached >= 16, "{detached}");
    assert!(u128::from(detached) <= 16 + more, "{detached}");
    let deadline = Instant::now() + LIMIT;
    while net.pairs.is_active(1) || net.pairs.get(1).unwrap().tap.is_attached() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    net.reset();
    assert!(net.pairs.get(1).unwrap().tap.is_attached());
}
