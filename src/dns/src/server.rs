//! Messages in and out. hickory-server reads requests and writes responses (truncating what does not fit a UDP
//! packet); what is said comes from the index or from the node's name servers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use parking_lot::RwLock;
use skiff_base::metrics::{self, CounterVec};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::Zone;
use crate::answer::{Answer, answer};
use crate::forward::Forwarder;
use crate::index::Index;

/// Names an answer may lead through; more is a loop.
const MAX_ALIASES: usize = 8;
/// The largest UDP answer given: fits every link without fragments. Larger ones are asked for again over TCP.
const MAX_UDP_BYTES: u16 = 1232;
/// Connections waiting to be accepted.
const TCP_BACKLOG: i32 = 128;

/// What goes into a response.
#[derive(Debug, Default)]
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

/// Answers questions.
pub(crate) struct Handler {
    index: Arc<RwLock<Index>>,
    zone: Zone,
    forwarder: Forwarder,
    turn: AtomicUsize,
    questions: CounterVec,
}

impl Handler {
    pub(crate) fn new(index: Arc<RwLock<Index>>, zone: Zone, forwarder: Forwarder) -> Self {
        let questions = metrics::global().counter_vec(
            "skiff_dns_questions_total",
            "Questions answered, by who answered and the response code.",
            &["source", "code"],
        );
        Self {
            index,
            zone,
            forwarder,
            turn: AtomicUsize::new(0),
            questions,
        }
    }

    async fn reply(&self, name: &Name, kind: RecordType) -> Reply {
        let mut reply = Reply {
            authoritative: true,
            ..Reply::default()
        };
        let mut current = name.clone();
        for _ in 0..MAX_ALIASES {
            // The lock is released before anything is awaited.
            let said = answer(&current, kind, &self.index.read(), &self.zone);
            match said {
                Answer::Records {
                    mut answers,
                    additionals,
                } => {
                    // Clients take the first: let each get another one.
                    if answers.len() > 1 {
                        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % answers.len();
                        answers.rotate_left(turn);
                    }
                    reply.answers.append(&mut answers);
                    reply.additionals = additionals;
                    return reply;
                }
                Answer::Alias { record, target } => {
                    reply.answers.push(record);
                    if kind == RecordType::CNAME {
                        return reply;
                    }
                    current = target;
                }
                Answer::NoData { soa } => {
                    reply.authorities.push(soa);
                    return reply;
                }
                Answer::NxDomain { soa } => {
                    reply.code = ResponseCode::NXDomain;
                    reply.authorities.push(soa);
                    return reply;
                }
                Answer::NotReady => {
                    return Reply {
                        code: ResponseCode::ServFail,
                        ..Reply::default()
                    };
                }
                Answer::NotOurs => {
                    let forwarded = self.forwarder.ask(&current, kind).await;
                    reply.authoritative &= !reply.answers.is_empty();
                    reply.code = forwarded.code;
                    reply.answers.extend(forwarded.answers);
                    reply.authorities = forwarded.authorities;
                    return reply;
                }
            }
        }
        Reply {
            code: ResponseCode::ServFail,
            ..Reply::default()
        }
    }

    async fn respond(&self, request: &Request) -> Reply {
        let refuse = |code| Reply {
            code,
            ..Reply::default()
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if request.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return refuse(ResponseCode::FormErr);
        };
        let query = info.query.original();
        if query.query_class() != DNSClass::IN {
            return refuse(ResponseCode::NotImp);
        }
        match query.query_type() {
            RecordType::AXFR | RecordType::IXFR => refuse(ResponseCode::Refused),
            kind => self.reply(query.name(), kind).await,
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut out: R,
    ) -> ResponseInfo {
        let reply = self.respond(request).await;
        let source = if reply.authoritative { "cluster" } else { "other" };
        self.questions.with(&[source, reply.code.to_str()]).inc();
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP_BYTES));
            edns.set_rcode_high(reply.code.high());
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            &reply.answers,
            &reply.authorities,
            std::iter::empty::<&Record>(),
            &reply.additionals,
        );
        match out.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(to = %request.src(), %error, "cannot send an answer");
                hickory_proto::op::Header {
                    metadata: Metadata::response_from_request(&request.metadata),
                    counts: Default::default(),
                }
                .into()
            }
        }
    }
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol, share: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match address.ip() {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.set_reuse_address(share)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The two sockets of an address, which need not exist yet. Must run inside a tokio runtime.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    // Another name server may have taken port 53 of *all* addresses. If it allows sharing, questions to this very
    // address still come here: the kernel prefers the more exact socket.
    let udp = match socket(address, Type::DGRAM, Protocol::UDP, false) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            socket(address, Type::DGRAM, Protocol::UDP, true)?
        }
        other => other?,
    };
    let tcp = socket(address, Type::STREAM, Protocol::TCP, true)?;
    tcp.listen(TCP_BACKLOG)?;
    Ok((
        UdpSocket::from_std(udp.into())?,
        TcpListener::from_std(tcp.into())?,
    ))
}
