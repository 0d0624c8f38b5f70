//! The netlink socket: requests, acknowledgements and consistent dumps.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

use tokio::sync::Mutex;

use crate::{Error, NetNs};

/// How often a dump is repeated when the kernel says the table changed under it. Each attempt takes milliseconds;
/// a table that changes faster than that is not going to settle.
const DUMP_ATTEMPTS: usize = 16;

/// How long to wait for an abandoned dump to end: about what reading a large table takes.
const DUMP_PAUSE: Duration = Duration::from_millis(5);

/// A handle on the routing state of one network namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel reads one table at a time for a socket and refuses a second one with EBUSY.
    dumping: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens a handle on the namespace of the calling thread. Must run inside a tokio runtime, which then drives the
    /// socket until the last clone is dropped.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            dumping: Arc::default(),
        })
    }

    /// Opens a handle on another namespace. Must run inside a tokio runtime.
    pub fn open_in(namespace: &NetNs) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run(move || {
            let _entered = runtime.enter();
            Self::open()
        })?
    }

    /// Sends a request and waits for the kernel's acknowledgement.
    pub(crate) async fn ack(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl Fn() -> String,
    ) -> Result<(), Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut replies = handle
            .request(request)
            .map_err(|source| Error::Protocol { what: what(), source })?;
        while let Some(reply) = replies.next().await {
            if let NetlinkPayload::Error(error) = reply.payload
                && error.code.is_some()
            {
                return Err(Error::Refused {
                    what: what(),
                    source: error.to_io(),
                });
            }
        }
        Ok(())
    }

    /// Asks for one object.
    pub(crate) async fn get(
        &self,
        message: RouteNetlinkMessage,
        what: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.collect(message, NLM_F_REQUEST, &what)
            .await
            .map(|(found, _)| found)
    }

    /// Reads a whole table; repeated when it changed meanwhile.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        what: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let _alone = self.dumping.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            match self
                .collect(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, &what)
                .await
            {
                Ok((found, false)) => return Ok(found),
                Ok((_, true)) => {}
                // A caller that gave up left its dump behind; the socket's task is still reading it.
                Err(error) if error.errno() == Some(libc::EBUSY) => tokio::time::sleep(DUMP_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::Unstable { what: what() })
    }

    async fn collect(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &impl Fn() -> String,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut handle = self.handle.clone();
        let mut replies = handle
            .request(request)
            .map_err(|source| Error::Protocol { what: what(), source })?;
        let mut found = Vec::new();
        let mut interrupted = false;
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Error::Refused {
                        what: what(),
                        source: error.to_io(),
                    });
                }
                _ => {}
            }
        }
        Ok((found, interrupted))
    }
}
