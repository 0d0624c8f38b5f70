//! Frames of SPDY/3.1: what is on the wire, and nothing about what it means.
//!
//! ```text
//! control  1|version 3 (15) | type (16)   flags (8) | length (24)   payload
//! data     0|stream (31)                  flags (8) | length (24)   payload
//! ```
//!
//! Control frames are small and read whole, up to [`CONTROL_MAX_BYTES`]. Data frames may be up to 16 MiB long; they are
//! handed on in pieces of at most [`PIECE_MAX_BYTES`], so that memory does not depend on what the peer announces. The
//! flag that ends a stream comes with the last piece.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::spdy_headers::{Deflater, HeaderError, Headers, Inflater};

/// Longest control frame: a compressed header block, or a list of settings.
pub const CONTROL_MAX_BYTES: usize = 64 * 1024;
/// Longest piece of data handed on, and longest data frame sent.
pub const PIECE_MAX_BYTES: usize = 32 * 1024;

const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
const ID_MASK: u32 = 0x7fff_ffff;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Why a stream is reset.
pub mod reset {
    /// The frame makes no sense here.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// The stream is not wanted; nothing was done.
    pub const REFUSED_STREAM: u32 = 3;
}

/// Why a connection ends.
pub mod goaway {
    /// As planned.
    pub const OK: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// A frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The stream.
        id: u32,
        /// The stream it belongs to, or 0.
        associated: u32,
        /// 0 (highest) to 7.
        priority: u8,
        /// The opener sends nothing more.
        fin: bool,
        /// The other side may not answer.
        unidirectional: bool,
        /// What the stream is.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        id: u32,
        /// The accepter will send nothing.
        fin: bool,
        /// May be empty.
        headers: Headers,
    },
    /// Ends a stream at once.
    RstStream {
        /// The stream.
        id: u32,
        /// See [`reset`].
        status: u32,
    },
    /// Settings; they are read over.
    Settings,
    /// To be sent back by the side that did not choose the number.
    Ping(u32),
    /// No more streams.
    GoAway {
        /// The last stream that was looked at.
        last: u32,
        /// See [`goaway`].
        status: u32,
    },
    /// More headers.
    Headers {
        /// The stream.
        id: u32,
        /// The sender sends nothing more.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// The receiver took this many bytes.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        id: u32,
        /// Bytes.
        delta: u32,
    },
    /// Bytes.
    Data {
        /// The stream.
        id: u32,
        /// The sender sends nothing more.
        fin: bool,
        /// At most [`PIECE_MAX_BYTES`] when read.
        bytes: Bytes,
    },
    /// A control frame of an unknown type; ignored.
    Unknown(u16),
}

/// What is wrong with the bytes received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("read a frame: {0}")]
    Io(#[from] std::io::Error),
    /// Another version of the protocol.
    #[error("control frame of version {0}, not 3")]
    Version(u16),
    /// Longer than anything useful.
    #[error("control frame of type {kind} is {length} bytes long, more than {CONTROL_MAX_BYTES}")]
    TooLong {
        /// Type of the frame.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// The payload is too short or too long for its type.
    #[error("control frame of type {0} has the wrong length")]
    Length(u16),
    /// Headers.
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// Reads frames.
pub struct Reader<R> {
    io: R,
    inflater: Inflater,
    /// The rest of a data frame: stream, final flag, bytes to come.
    rest: Option<(u32, bool, usize)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// At the start of a connection.
    pub fn new(io: R) -> Reader<R> {
        Reader {
            io,
            inflater: Inflater::default(),
            rest: None,
        }
    }

    /// The next frame; `None` when the peer closed between frames. Not to be cancelled and called again.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some((id, fin, length)) = self.rest.take() {
            return self.data(id, fin, length).await.map(Some);
        }
        let mut head = [0u8; 8];
        if self.io.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut head[1..]).await?;
        let [a, b, c, d, flags, e, f, g] = head;
        let length = usize::try_from(u32::from_be_bytes([0, e, f, g])).unwrap_or(usize::MAX);
        let first = u16::from_be_bytes([a, b]);
        if first & CONTROL == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return self.data(id, flags & FLAG_FIN != 0, length).await.map(Some);
        }
        let (version, kind) = (first & !CONTROL, u16::from_be_bytes([c, d]));
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_MAX_BYTES {
            return Err(FrameError::TooLong { kind, length });
        }
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await?;
        control(kind, flags, &payload, &mut self.inflater).map(Some)
    }

    async fn data(&mut self, id: u32, fin: bool, length: usize) -> Result<Frame, FrameError> {
        let now = length.min(PIECE_MAX_BYTES);
        let mut bytes = BytesMut::zeroed(now);
        self.io.read_exact(&mut bytes).await?;
        let last = now == length;
        if !last {
            self.rest = Some((id, fin, length - now));
        }
        Ok(Frame::Data {
            id,
            fin: fin && last,
            bytes: bytes.freeze(),
        })
    }
}

fn control(kind: u16, flags: u8, payload: &[u8], inflater: &mut Inflater) -> Result<Frame, FrameError> {
    let number = |at: usize| -> Result<u32, FrameError> {
        let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(FrameError::Length(kind))
    };
    let exactly = |length: usize| {
        if payload.len() == length {
            Ok(())
        } else {
            Err(FrameError::Length(kind))
        }
    };
    let fin = flags & FLAG_FIN != 0;
    Ok(match kind {
        1 => Frame::SynStream {
            id: number(0)? & ID_MASK,
            associated: number(4)? & ID_MASK,
            priority: payload.get(8).ok_or(FrameError::Length(kind))? >> 5,
            fin,
            unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
            headers: inflater.read(payload.get(10..).ok_or(FrameError::Length(kind))?)?,
        },
        2 | 8 => {
            let (id, block) = (number(0)? & ID_MASK, payload.get(4..).unwrap_or_default());
            let headers = inflater.read(block)?;
            if kind == 2 {
                Frame::SynReply { id, fin, headers }
            } else {
                Frame::Headers { id, fin, headers }
            }
        }
        3 => {
            exactly(8)?;
            Frame::RstStream {
                id: number(0)? & ID_MASK,
                status: number(4)?,
            }
        }
        4 => {
            let count = usize::try_from(number(0)?).unwrap_or(usize::MAX);
            exactly(count.saturating_mul(8).saturating_add(4))?;
            Frame::Settings
        }
        6 => {
            exactly(4)?;
            Frame::Ping(number(0)?)
        }
        7 => {
            exactly(8)?;
            Frame::GoAway {
                last: number(0)? & ID_MASK,
                status: number(4)?,
            }
        }
        9 => {
            exactly(8)?;
            Frame::WindowUpdate {
                id: number(0)? & ID_MASK,
                delta: number(4)? & ID_MASK,
            }
        }
        other => Frame::Unknown(other),
    })
}

/// Turns frames into bytes.
#[derive(Default)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// At the start of a connection.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// Appends a frame. Settings and unknown frames are never sent.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let fin_flag = |fin: bool| if fin { FLAG_FIN } else { 0 };
        match frame {
            Frame::SynStream {
                id,
                associated,
                priority,
                fin,
                unidirectional,
                headers,
            } => {
                let block = self.deflater.write(headers);
                let flags = fin_flag(*fin) | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                control_head(out, 1, flags, 10 + block.len());
                out.put_u32(id & ID_MASK);
                out.put_u32(associated & ID_MASK);
                out.put_u8(priority << 5);
                out.put_u8(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } | Frame::Headers { id, fin, headers } => {
                let block = self.deflater.write(headers);
                let kind = if matches!(frame, Frame::SynReply { .. }) {
                    2
                } else {
                    8
                };
                control_head(out, kind, fin_flag(*fin), 4 + block.len());
                out.put_u32(id & ID_MASK);
                out.put_slice(&block);
            }
            Frame::RstStream { id, status } => pair(out, 3, *id, *status),
            Frame::GoAway { last, status } => pair(out, 7, *last, *status),
            Frame::WindowUpdate { id, delta } => pair(out, 9, *id, delta & ID_MASK),
            Frame::Ping(number) => {
                control_head(out, 6, 0, 4);
                out.put_u32(*number);
            }
            Frame::Data { id, fin, bytes } => {
                let mut rest = &bytes[..];
                loop {
                    let (piece, after) = rest.split_at(rest.len().min(PIECE_MAX_BYTES));
                    out.put_u32(id & ID_MASK);
                    out.put_u8(fin_flag(*fin && after.is_empty()));
                    out.put_uint(piece.len() as u64, 3);
                    out.put_slice(piece);
                    if after.is_empty() {
                        break;
                    }
                    rest = after;
                }
            }
            Frame::Settings | Frame::Unknown(_) => {}
        }
    }
}

fn control_head(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
}

fn pair(out: &mut BytesMut, kind: u16, id: u32, value: u32) {
    control_head(out, kind, 0, 8);
    out.put_u32(id & ID_MASK);
    out.put_u32(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> Vec<Result<Frame, String>> {
        let mut reader = Reader::new(bytes);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(Ok(frame)),
                Ok(None) => return frames,
                Err(error) => {
                    frames.push(Err(error.to_string()));
                    return frames;
                }
            }
        }
    }

    /// The layouts as the specification draws them.
    #[tokio::test]
    async fn frames_on_the_wire() {
        let data = |id, fin, text: &'static str| Frame::Data {
            id,
            fin,
            bytes: Bytes::from_static(text.as_bytes()),
        };
        let table: &[(&[u8], Frame)] = &[
            (
                &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5],
                Frame::RstStream { id: 5, status: 5 },
            ),
            (&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9], Frame::Ping(9)),
            (
                &[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0],
                Frame::GoAway {
                    last: 7,
                    status: goaway::OK,
                },
            ),
            (
                &[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 1, 0, 0],
                Frame::WindowUpdate { id: 1, delta: 65536 },
            ),
            (&[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i'], data(3, true, "hi")),
            (&[0, 0, 0, 3, 0, 0, 0, 0], data(3, false, "")),
            (
                &[
                    0x80, 3, 0, 2, 0, 0, 0, 24, 0, 0, 0, 1, 0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2, 0, 4, 0,
                    0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff,
                ],
                Frame::SynReply {
                    id: 1,
                    fin: false,
                    headers: Vec::new(),
                },
            ),
        ];
        for (bytes, frame) in table {
            assert_eq!(read_all(bytes).await, [Ok(frame.clone())]);
            let mut out = BytesMut::new();
            Encoder::new().encode(frame, &mut out);
            assert_eq!(out, *bytes, "{frame:?}");
        }
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 100];
        assert_eq!(read_all(&settings).await, [Ok(Frame::Settings)]);
        assert_eq!(
            read_all(&[0x80, 3, 0, 99, 0, 0, 0, 1, 7]).await,
            [Ok(Frame::Unknown(99))]
        );
    }

    #[tokio::test]
    async fn headers_travel_in_order() {
        let headers = |value: &str| vec![("streamtype".to_owned(), value.to_owned())];
        let syn = |id, fin| Frame::SynStream {
            id,
            associated: 0,
            priority: 3,
            fin,
            unidirectional: false,
            headers: headers("stdin"),
        };
        let frames = [
            syn(1, false),
            Frame::Headers {
                id: 1,
                fin: true,
                headers: headers("x"),
            },
            syn(3, true),
            Frame::Ping(1),
        ];
        let (mut encoder, mut out) = (Encoder::new(), BytesMut::new());
        frames.iter().for_each(|frame| encoder.encode(frame, &mut out));
        assert_eq!(read_all(&out).await, frames.map(Ok));
    }

    #[tokio::test]
    async fn long_data_comes_in_pieces_and_ends_once() {
        let mut bytes = vec![0, 0, 0, 1, 1, 1, 0, 0];
        bytes.resize(8 + 65536, b'x');
        let frames = read_all(&bytes).await;
        let seen: Vec<(usize, bool)> = frames
            .into_iter()
            .map(|frame| match frame {
                Ok(Frame::Data { id: 1, fin, bytes }) => (bytes.len(), fin),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, [(PIECE_MAX_BYTES, false), (PIECE_MAX_BYTES, true)]);
    }

    #[tokio::test]
    async fn refuses_what_is_broken() {
        for (bytes, error) in [
            (
                &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9][..],
                "control frame of version 2, not 3",
            ),
            (
                &[0x80, 3, 0, 6, 0, 0, 0, 5, 0, 0, 0, 9, 9],
                "control frame of type 6 has the wrong length",
            ),
            (
                &[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 9],
                "control frame of type 1 has the wrong length",
            ),
            (
                &[0x80, 3, 0, 1, 0, 0xff, 0, 0],
                "control frame of type 1 is 16711680 bytes long, more than 65536",
            ),
            (
                &[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
                "control frame of type 4 has the wrong length",
            ),
            (&[0x80, 3], "read a frame: early eof"),
            (&[0, 0, 0, 1, 0, 0, 0, 9, 1], "read a frame: early eof"),
        ] {
            assert_eq!(read_all(bytes).await, [Err(error.to_owned())]);
        }
    }
}
