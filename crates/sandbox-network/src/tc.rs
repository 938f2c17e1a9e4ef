//! Traffic control: everything that comes in through one interface goes out through another.

use std::num::NonZeroU64;

use sandbox_netlink::packet::RouteNetlinkMessage;
use sandbox_netlink::packet::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};
use sandbox_netlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use sandbox_netlink::{Link, Netlink, NetlinkError};

use crate::NetworkError;

/// `ETH_P_ALL`, as a filter has it: in network byte order.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;
/// A filter's priority is in the upper half of its message's `info`.
const PRIORITY_SHIFT: u32 = 16;
/// The ingress discipline's handle.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// The handle of our limits, by which they are told from others'.
const LIMIT: TcHandle = TcHandle {
    major: 0x5b0c,
    minor: 0,
};
/// A frame with 64 KiB of segments, and headers.
const LEAST_BURST_BYTES: u32 = 68 << 10;
const LEAST_QUEUE_BYTES: u32 = 256 << 10;

const EEXIST: i32 = 17;
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const ENODEV: i32 = 19;

fn index(link: u32) -> i32 {
    i32::try_from(link).unwrap_or(0)
}

fn ingress(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.handle = INGRESS;
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// Gives an interface the ingress discipline, to which filters are added.
///
/// # Errors
/// [`NetworkError::Occupied`] when it has one.
pub(crate) fn add_ingress(netlink: &mut Netlink, link: &Link) -> Result<(), NetworkError> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(ingress(link.index));
    let what = format!("add the ingress discipline to {}", link.name);
    match netlink.change(&what, message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.errno() == Some(EEXIST) => Err(NetworkError::Occupied {
            name: link.name.clone(),
        }),
        other => Ok(other?),
    }
}

/// Takes the ingress discipline away, and all filters with it. That none is there is no error.
pub(crate) fn remove_ingress(netlink: &mut Netlink, link: &Link) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(ingress(link.index));
    let what = format!("remove the ingress discipline of {}", link.name);
    match netlink.change(&what, message, 0) {
        // The kernel's ways to say that there is none.
        Err(error) if matches!(error.errno(), Some(ENOENT | EINVAL | ENODEV)) => Ok(()),
        other => other,
    }
}

/// Lets no more than `bytes_per_second` out through an interface, counted with Ethernet headers: a token bucket filter
/// (tc-tbf(8)), in whose queue what is too fast waits, and is dropped when that is full.
///
/// # Errors
/// [`NetworkError::Shaped`] when the interface has a queueing discipline of somebody's, [`NetworkError::Limit`].
pub(crate) fn limit(
    netlink: &mut Netlink,
    link: &Link,
    bytes_per_second: NonZeroU64,
) -> Result<(), NetworkError> {
    let mut message = root(link.index);
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(limit_options(bytes_per_second)),
    ];
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    let what = format!("limit what goes out through {}", link.name);
    match netlink.change(&what, message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.errno() == Some(EEXIST) => Err(NetworkError::Shaped {
            name: link.name.clone(),
        }),
        Err(source) => Err(NetworkError::Limit(source)),
        Ok(()) => Ok(()),
    }
}

/// Has frames go out through an interface without waiting in a queue of the kernel's: a tap keeps them anyway until they are
/// read. By default the kernel makes a queue for each of the 256 that a tap may have if it may have several, 6 MiB altogether.
pub(crate) fn without_queue(netlink: &mut Netlink, link: &Link) -> Result<(), NetlinkError> {
    let mut message = root(link.index);
    message.header.handle = TcHandle::UNSPEC;
    message.attributes = vec![TcAttribute::Kind("noqueue".to_owned())];
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    let what = format!("take the queue of {} away", link.name);
    netlink.change(&what, message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes our limit away. That there is none, or one of somebody else's, is no error.
pub(crate) fn remove_limit(netlink: &mut Netlink, link: &Link) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(root(link.index));
    let what = format!("remove the limit of {}", link.name);
    match netlink.change(&what, message, 0) {
        Err(error) if matches!(error.errno(), Some(ENOENT | EINVAL | ENODEV)) => Ok(()),
        other => other,
    }
}

fn root(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.handle = LIMIT;
    message.header.parent = TcHandle::ROOT;
    message
}

/// `tc_tbf_qopt` and what does not fit into it (Linux: `include/uapi/linux/pkt_sched.h`, `net/sched/sch_tbf.c`).
fn limit_options(bytes_per_second: NonZeroU64) -> Vec<TcOption> {
    const PARAMETERS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    /// `TC_LINKLAYER_ETHERNET`: the kernel then needs no table of the times that packets take.
    const ETHERNET: u8 = 1;
    let rate = bytes_per_second.get();
    let cut = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    // A tenth of a second's, but not less than the largest frame: a larger one is never let through.
    let burst = cut(rate / 10).max(LEAST_BURST_BYTES);
    let queue = cut(rate / 5).max(LEAST_QUEUE_BYTES);
    let mut parameters = Vec::with_capacity(36);
    parameters.extend([0, ETHERNET]);
    parameters.extend([0; 6]);
    parameters.extend(cut(rate).to_ne_bytes());
    // No peak rate.
    parameters.extend([0; 12]);
    parameters.extend(queue.to_ne_bytes());
    parameters.extend([0; 8]);
    vec![
        TcOption::Other(DefaultNla::new(PARAMETERS, parameters)),
        TcOption::Other(DefaultNla::new(RATE64, rate.to_ne_bytes().to_vec())),
        TcOption::Other(DefaultNla::new(BURST, burst.to_ne_bytes().to_vec())),
    ]
}

/// What comes in through `from` goes out through `to`.
pub(crate) fn redirect(netlink: &mut Netlink, from: &Link, to: &Link) -> Result<(), NetlinkError> {
    let mut message = TcMessage::with_index(index(from.index));
    message.header.parent = INGRESS;
    message.header.info = (1 << PRIORITY_SHIFT) | EVERY_PROTOCOL;
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to.index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    // One key that compares nothing: everything matches.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    let what = format!(
        "redirect what comes in through {} to {}",
        from.name, to.name
    );
    netlink.change(
        &what,
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}
