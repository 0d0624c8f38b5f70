//! Notification that links, addresses, routes or neighbours of a namespace changed.
//!
//! Level-triggered on purpose: a burst of a thousand messages becomes one wake-up, nothing piles up behind a slow
//! reader, and an overrun of the kernel's buffer is just another reason to look again.

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourState;
use tokio::sync::watch;

use crate::{Error, Netlink};

/// What to be told about. Dynamic neighbour entries come and go all the time, so only permanent ones count.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// Wakes its owner when the namespace's network state changed.
#[derive(Debug)]
pub struct Changes {
    generation: watch::Receiver<u64>,
}

impl Changes {
    /// Waits for a change since the last call (or since the subscription). `None` when the kernel's side is closed.
    pub async fn next(&mut self) -> Option<()> {
        self.generation.changed().await.ok()
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl futures::Stream<Item = ()> {
        futures::stream::unfold(self, |mut changes| async move {
            changes.next().await.map(|()| ((), changes))
        })
    }
}

fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message),
        ) => message.header.state == NeighbourState::Permanent,
        _ => true,
    }
}

impl Netlink {
    /// Subscribes to changes in the namespace of the calling thread. Must run inside a tokio runtime.
    pub fn subscribe() -> Result<Changes, Error> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(Error::Open)?;
        let (sender, generation) = watch::channel(0);
        let connection = tokio::spawn(connection);
        tokio::spawn(async move {
            // The connection ends when its last handle does: keep it while somebody listens.
            let _handle = handle;
            loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some((message, _)) if matters(&message.payload) => sender.send_modify(|n| *n += 1),
                        Some(_) => {}
                        None => break,
                    },
                    () = sender.closed() => break,
                }
            }
            connection.abort();
        });
        Ok(Changes { generation })
    }
}
