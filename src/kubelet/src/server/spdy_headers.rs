//! Header compression of SPDY/3: one zlib stream per direction that lives as long as the connection, flushed after
//! every header block and primed with a dictionary both sides know.
//!
//! The deflate implementation in use has no preset dictionaries, and needs none:
//! - To read, the zlib head is taken off by hand; then the raw inflater is fed a *stored* block holding the
//!   dictionary and its output is thrown away. Its window now is what the peer's compressor started from, at a byte
//!   boundary, and the peer's blocks follow.
//! - To write, blocks are stored uncompressed: a valid zlib stream (it even names the dictionary) for the few dozen
//!   bytes of headers this side ever sends. An empty stored block after each is the flush a decompressor waits for.

use flate2::{Decompress, FlushDecompress, Status};

/// Most bytes of one header block once inflated: stream headers are a few short lines.
pub const HEADERS_MAX_BYTES: usize = 32 * 1024;
/// Most headers in one block.
const HEADERS_MAX: usize = 128;
/// Adler-32 of the dictionary, by which a zlib stream names it.
const DICTIONARY_ADLER: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// zlib head: deflate, 32 KiB window, preset dictionary follows by its checksum.
const ZLIB_HEAD: [u8; 2] = [0x78, 0x20];
const FLAG_DICTIONARY: u8 = 0x20;
/// A stored block that is empty, and so ends on a byte boundary with everything before it visible.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// Entries of the dictionary that carry a length in front.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of the dictionary: text without lengths.
const TAIL: &[&str] = &[
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information",
    "204 No Content",
    "301 Moved Permanently",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "500 Internal Server Error",
    "501 Not Implemented",
    "503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec",
    " 00:00:00",
    " Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,",
    "text/javascript,public",
    "privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
];

/// What is wrong with a header block.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Not a zlib stream, or one with another dictionary.
    #[error("header block does not begin a zlib stream with the dictionary of SPDY/3")]
    Head,
    /// The inflater refused it.
    #[error("header block is not valid deflate data")]
    Deflate,
    /// Too big.
    #[error("header block is larger than {HEADERS_MAX_BYTES} bytes or has more than {HEADERS_MAX} headers")]
    TooLarge,
    /// Lengths inside do not fit.
    #[error("header block is malformed")]
    Malformed,
}

/// Names and values. Names are lower case on the wire.
pub type Headers = Vec<(String, String)>;

/// The value of a header.
pub fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    for text in TAIL {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// Appends `data` as stored blocks.
fn store(data: &[u8], out: &mut Vec<u8>) {
    for part in data.chunks(usize::from(u16::MAX)) {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// Reads header blocks of one connection, in order.
#[derive(Default)]
pub struct Inflater {
    raw: Option<Decompress>,
}

impl Inflater {
    /// Reads one block. After an error the connection cannot go on.
    pub fn read(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        let raw = match &mut self.raw {
            Some(raw) => raw,
            None => {
                let head: [u8; 2] = block
                    .get(..2)
                    .and_then(|h| h.try_into().ok())
                    .ok_or(HeaderError::Head)?;
                if head[0] & 0x0f != 8 || !u16::from_be_bytes(head).is_multiple_of(31) {
                    return Err(HeaderError::Head);
                }
                block = &block[2..];
                let mut raw = Decompress::new(false);
                if head[1] & FLAG_DICTIONARY != 0 {
                    block = block.strip_prefix(&DICTIONARY_ADLER).ok_or(HeaderError::Head)?;
                    let mut stored = Vec::new();
                    store(&dictionary(), &mut stored);
                    inflate(&mut raw, &stored)?;
                }
                self.raw.insert(raw)
            }
        };
        parse(&inflate(raw, block)?)
    }
}

fn inflate(raw: &mut Decompress, input: &[u8]) -> Result<Vec<u8>, HeaderError> {
    let (mut out, mut done) = (Vec::with_capacity(1024), 0);
    let mut buffer = [0u8; 1024];
    loop {
        let (read, written) = (raw.total_in(), raw.total_out());
        let status = raw
            .decompress(&input[done..], &mut buffer, FlushDecompress::Sync)
            .map_err(|_| HeaderError::Deflate)?;
        let read = usize::try_from(raw.total_in() - read).unwrap_or(usize::MAX);
        let written = usize::try_from(raw.total_out() - written).unwrap_or(usize::MAX);
        done = done.saturating_add(read).min(input.len());
        out.extend_from_slice(buffer.get(..written).unwrap_or_default());
        if out.len() > HEADERS_MAX_BYTES {
            return Err(HeaderError::TooLarge);
        }
        match status {
            Status::StreamEnd => return Err(HeaderError::Deflate),
            Status::Ok | Status::BufError if read == 0 && written == 0 => break,
            Status::Ok | Status::BufError => {}
        }
    }
    if done < input.len() {
        Err(HeaderError::Deflate)
    } else {
        Ok(out)
    }
}

fn parse(mut bytes: &[u8]) -> Result<Headers, HeaderError> {
    let number = |bytes: &mut &[u8]| -> Result<usize, HeaderError> {
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
        *bytes = rest;
        usize::try_from(u32::from_be_bytes(*head)).map_err(|_| HeaderError::Malformed)
    };
    let count = number(&mut bytes)?;
    if count > HEADERS_MAX {
        return Err(HeaderError::TooLarge);
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let text = |bytes: &mut &[u8]| -> Result<String, HeaderError> {
            let length = number(bytes)?;
            let (head, rest) = bytes.split_at_checked(length).ok_or(HeaderError::Malformed)?;
            *bytes = rest;
            String::from_utf8(head.to_vec()).map_err(|_| HeaderError::Malformed)
        };
        let name = text(&mut bytes)?;
        let value = text(&mut bytes)?;
        headers.push((name, value));
    }
    if bytes.is_empty() {
        Ok(headers)
    } else {
        Err(HeaderError::Malformed)
    }
}

/// Writes header blocks of one connection, in order.
#[derive(Default)]
pub struct Deflater {
    begun: bool,
}

impl Deflater {
    /// One block.
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        let length = |text: usize| u32::try_from(text).unwrap_or(u32::MAX).to_be_bytes();
        plain.extend_from_slice(&length(headers.len()));
        for (name, value) in headers {
            for text in [&name.to_ascii_lowercase(), value] {
                plain.extend_from_slice(&length(text.len()));
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 16);
        if !std::mem::replace(&mut self.begun, true) {
            out.extend_from_slice(&ZLIB_HEAD);
            out.extend_from_slice(&DICTIONARY_ADLER);
        }
        store(&plain, &mut out);
        out.extend_from_slice(&FLUSH);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        b << 16 | a
    }

    fn headers(list: &[(&str, &str)]) -> Headers {
        list.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(adler32(&dictionary()).to_be_bytes(), DICTIONARY_ADLER);
    }

    /// Made with zlib itself: `deflateInit`, `deflateSetDictionary`, `deflate(Z_SYNC_FLUSH)` per block.
    #[test]
    fn reads_what_zlib_writes_with_the_dictionary() {
        let mut inflater = Inflater::default();
        for (hex, want) in ZLIB_BLOCKS {
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            assert_eq!(inflater.read(&bytes), Ok(headers(want)));
        }
    }

    const ZLIB_BLOCKS: &[(&str, &[(&str, &str)])] = &[
        (
            "78bbe3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff",
            &[("streamtype", "error")],
        ),
        ("c22e555c02cc2e00000000ffff", &[("streamtype", "stdin")]),
        (
            "0225550c295001940829cb8bc0d9c6c2c0c20048731641e23e139427180d00000000ffff",
            &[("streamtype", "data"), ("port", "8080"), ("requestid", "0")],
        ),
    ];

    #[test]
    fn reads_what_it_writes() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let long = "x".repeat(20_000);
        for list in [
            headers(&[]),
            headers(&[("a", "1"), ("b", "")]),
            headers(&[("long", &long)]),
            headers(&[]),
        ] {
            assert_eq!(inflater.read(&deflater.write(&list)), Ok(list));
        }
    }

    #[test]
    fn refuses_what_is_broken() {
        let good = Deflater::default().write(&headers(&[("a", "b")]));
        let mut other_dictionary = good.clone();
        other_dictionary[3] ^= 1;
        let mut bad_stored_length = good.clone();
        bad_stored_length[7] ^= 1;
        let big = Deflater::default().write(&headers(&[("a", &"x".repeat(HEADERS_MAX_BYTES))]));
        let mut many = ZLIB_HEAD.to_vec();
        many.extend_from_slice(&DICTIONARY_ADLER);
        store(&1_000u32.to_be_bytes(), &mut many);
        for (bytes, error) in [
            (&[][..], HeaderError::Head),
            (&[0x78, 0x21], HeaderError::Head),
            (&other_dictionary, HeaderError::Head),
            (&bad_stored_length, HeaderError::Deflate),
            (&good[..good.len() - 6], HeaderError::Malformed),
            (&big, HeaderError::TooLarge),
            (&many, HeaderError::TooLarge),
        ] {
            assert_eq!(Inflater::default().read(bytes), Err(error));
        }
    }
}
