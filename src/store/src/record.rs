//! The log's bytes.
//!
//! ```text
//! segment = header frame*
//! header  = "SKIFFLOG" version:u32 sequence:u64 last:u64 start:u64 reserved:u64 crc:u32
//! frame   = "SKrc" length:u32 durable:u64 crc:u32 payload
//! payload = 1 revision:u64 count:u32 (1 klen:u32 key vlen:u32 value | 2 klen:u32 key)*
//!         | 2 reserved:u64
//! ```
//!
//! All numbers are little-endian. A frame's checksum covers the segment's
//! sequence number, its length, `durable` and the payload. `durable` is how much of the
//! segment was known to be on stable storage when the frame was written. It
//! tells a torn tail from damage: a bad frame followed by a good one whose
//! `durable` lies behind the bad one cannot be the result of a power cut,
//! because the bad frame had been synced (and acknowledged) before.

use bytes::Bytes;

use crate::image::Change;

/// The format this version writes and the newest it reads.
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_LEN: usize = 48;
pub(crate) const FRAME_LEN: usize = 20;
const SEGMENT_MAGIC: &[u8; 8] = b"SKIFFLOG";
const FRAME_MAGIC: &[u8; 4] = b"SKrc";

/// How a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    /// The last revision in the log before this segment.
    pub(crate) last: u64,
    /// The store's revision when the segment was begun. More than `last` after
    /// a crash: revisions in between may have been given to relaxed writes
    /// that are lost, so they are never used again.
    pub(crate) start: u64,
    /// Revisions up to this one may be in use by relaxed writes.
    pub(crate) reserved: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for number in [self.sequence, self.last, self.start, self.reserved] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut reader = Reader(bytes);
        let magic = reader.take(8).ok_or(HeaderError::Torn)?;
        let version = reader.u32().ok_or(HeaderError::Torn)?;
        if magic == SEGMENT_MAGIC && version > VERSION {
            return Err(HeaderError::Version(version));
        }
        let mut next = || reader.u64().ok_or(HeaderError::Torn);
        let header = Self {
            sequence: next()?,
            last: next()?,
            start: next()?,
            reserved: next()?,
        };
        let crc = reader.u32().ok_or(HeaderError::Torn)?;
        let good = magic == SEGMENT_MAGIC && crc == crc32fast::hash(&bytes[..HEADER_LEN - 4]);
        if good { Ok(header) } else { Err(HeaderError::Torn) }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Short or with a wrong checksum.
    Torn,
    Version(u32),
}

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Commit { revision: u64, changes: Vec<Change> },
    Reserve { until: u64 },
}

/// Payloads waiting to be written, back to back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Payloads {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Payloads {
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        // One huge burst must not keep its memory for ever.
        self.bytes.shrink_to(64 << 10);
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        let base = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|end| base + end));
    }

    pub(crate) fn push_commit(&mut self, revision: u64, changes: &[Change]) {
        let out = &mut self.bytes;
        out.push(1);
        out.extend_from_slice(&revision.to_le_bytes());
        out.extend_from_slice(&(changes.len() as u32).to_le_bytes());
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    out.push(1);
                    put_bytes(out, key.as_bytes());
                    put_bytes(out, value);
                }
                Change::Delete { key } => {
                    out.push(2);
                    put_bytes(out, key.as_bytes());
                }
            }
        }
        self.ends.push(self.bytes.len());
    }

    pub(crate) fn push_reserve(&mut self, until: u64) {
        self.bytes.push(2);
        self.bytes.extend_from_slice(&until.to_le_bytes());
        self.ends.push(self.bytes.len());
    }

    /// Frames all payloads for a place in a segment.
    pub(crate) fn frames(&self, sequence: u64, durable: u64, out: &mut Vec<u8>) {
        let mut start = 0;
        for &end in &self.ends {
            let payload = &self.bytes[start..end];
            start = end;
            out.extend_from_slice(FRAME_MAGIC);
            out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            out.extend_from_slice(&durable.to_le_bytes());
            out.extend_from_slice(&frame_crc(sequence, durable, payload).to_le_bytes());
            out.extend_from_slice(payload);
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn frame_crc(sequence: u64, durable: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&durable.to_le_bytes());
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// A frame found in a segment.
pub(crate) struct Frame {
    pub(crate) record: Record,
    /// Where the next frame begins.
    pub(crate) end: usize,
}

/// Reads the frame at `at`. None when there is no good frame.
pub(crate) fn read_frame(segment: &Bytes, sequence: u64, at: usize) -> Option<Frame> {
    let (payload, _) = checked_payload(segment, sequence, at)?;
    let end = at + FRAME_LEN + payload.len();
    let record = decode(&segment.slice(at + FRAME_LEN..end))?;
    Some(Frame { record, end })
}

/// Whether a good frame behind `bad` proves that `bad` had been synced.
pub(crate) fn proves_damage(segment: &[u8], sequence: u64, bad: usize) -> bool {
    let tail = segment.get(bad + 1..).unwrap_or_default();
    tail.windows(FRAME_MAGIC.len())
        .enumerate()
        .filter(|(_, window)| window == FRAME_MAGIC)
        .filter_map(|(offset, _)| checked_payload(segment, sequence, bad + 1 + offset))
        .any(|(_, durable)| durable > bad as u64)
}

fn checked_payload(segment: &[u8], sequence: u64, at: usize) -> Option<(&[u8], u64)> {
    let mut reader = Reader(segment.get(at..)?);
    if reader.take(4)? != FRAME_MAGIC {
        return None;
    }
    let length = reader.u32()?;
    let durable = reader.u64()?;
    let crc = reader.u32()?;
    let payload = reader.take(length as usize)?;
    (crc == frame_crc(sequence, durable, payload)).then_some((payload, durable))
}

fn decode(payload: &Bytes) -> Option<Record> {
    let mut reader = Reader(payload);
    let record = match reader.u8()? {
        1 => {
            let revision = reader.u64()?;
            let count = reader.u32()?;
            let mut changes = Vec::with_capacity((count as usize).min(crate::types::MAX_OPS));
            for _ in 0..count {
                let kind = reader.u8()?;
                let key = str::from_utf8(reader.bytes()?).ok()?.to_owned();
                changes.push(match kind {
                    // A copy of its own: a slice would keep the whole segment in memory.
                    1 => Change::Put {
                        key,
                        value: Bytes::copy_from_slice(reader.bytes()?),
                    },
                    2 => Change::Delete { key },
                    _ => return None,
                });
            }
            Record::Commit { revision, changes }
        }
        2 => Record::Reserve { until: reader.u64()? },
        _ => return None,
    };
    reader.0.is_empty().then_some(record)
}

/// A cursor that never reads past the end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Payloads, Vec<Record>) {
        let changes = vec![
            Change::Put {
                key: "/a".into(),
                value: "value".into(),
            },
            Change::Delete { key: "/b".into() },
        ];
        let mut payloads = Payloads::default();
        payloads.push_commit(7, &changes);
        payloads.push_reserve(4_000);
        payloads.push_commit(8, &[]);
        let records = vec![
            Record::Commit { revision: 7, changes },
            Record::Reserve { until: 4_000 },
            Record::Commit {
                revision: 8,
                changes: vec![],
            },
        ];
        (payloads, records)
    }

    fn read_all(segment: &Bytes) -> Vec<Record> {
        let mut at = 0;
        let mut records = vec![];
        while let Some(frame) = read_frame(segment, 3, at) {
            records.push(frame.record);
            at = frame.end;
        }
        records
    }

    #[test]
    fn frames_come_back_and_every_flipped_bit_is_noticed() {
        let (payloads, records) = sample();
        let mut bytes = vec![];
        payloads.frames(3, 0, &mut bytes);
        assert_eq!(read_all(&bytes.clone().into()), records);
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let got = read_all(&broken.into());
            assert!(
                got.len() < records.len() && got == records[..got.len()],
                "bit {bit}"
            );
        }
        assert!(
            read_frame(&bytes.into(), 4, 0).is_none(),
            "a frame of another segment"
        );
    }

    #[test]
    fn a_later_sync_tells_damage_from_a_torn_tail() {
        let (payloads, _) = sample();
        let mut bytes = vec![];
        payloads.frames(3, 0, &mut bytes);
        let synced = bytes.len();
        let mut torn = bytes.clone();
        torn[30] ^= 1;
        assert!(
            !proves_damage(&torn, 3, 0),
            "the frames behind it came in the same write"
        );
        payloads.frames(3, synced as u64, &mut bytes);
        bytes[30] ^= 1;
        assert!(proves_damage(&bytes, 3, 0));
        assert!(!proves_damage(&bytes[..synced], 3, 0));
    }

    #[test]
    fn headers_come_back() {
        let header = Header {
            sequence: 1,
            last: 2,
            start: 3,
            reserved: 4,
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(Header::decode(&bytes[..40]), Err(HeaderError::Torn));
        let mut newer = bytes;
        newer[8] = 9;
        assert_eq!(Header::decode(&newer), Err(HeaderError::Version(9)));
    }
}
