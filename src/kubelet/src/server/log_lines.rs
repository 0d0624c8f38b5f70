//! Log records to lines: what is asked for, and the pure part of answering it.
//!
//! A record is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; `P` marks a part of a line that goes on in the next
//! record of the same stream. Parts are put together per stream, so that lines of both streams never mix, unless a
//! line is longer than [`LINE_MAX_BYTES`] or has to be shown before it is finished (a prompt, while following).

use std::time::{Duration, SystemTime};

use super::Refusal;
use super::query::Query;

/// A line is gathered up to this size before its parts are handed on as they come.
const LINE_MAX_BYTES: usize = 1 << 20;

/// What a reader asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on while the container runs.
    pub follow: bool,
    /// The container before this one.
    pub previous: bool,
    /// Put each line's time in front.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only records from this moment on.
    pub since: Option<SystemTime>,
    /// Only so many bytes.
    pub limit_bytes: Option<u64>,
    /// Only one stream: `stdout` or `stderr`.
    pub stream: Option<Stream>,
}

/// Where a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

fn number(query: &Query, name: &str, least: u64) -> Result<Option<u64>, Refusal> {
    let Some(text) = query.get(name).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(number) if number >= least => Ok(Some(number)),
        _ => Err(Refusal::bad(format!(
            "invalid {name} {text:?}: must be a number not below {least}"
        ))),
    }
}

impl Options {
    /// Reads the query.
    pub fn parse(query: &Query, now: SystemTime) -> Result<Options, Refusal> {
        let time = query.get("sinceTime").filter(|text| !text.is_empty());
        let seconds = number(query, "sinceSeconds", 1)?;
        let since = match (seconds, time) {
            (Some(_), Some(_)) => {
                return Err(Refusal::bad(
                    "at most one of `sinceTime` or `sinceSeconds` may be specified",
                ));
            }
            (Some(seconds), None) => now.checked_sub(Duration::from_secs(seconds)),
            (None, Some(text)) => {
                let parsed = text.parse::<jiff::Timestamp>();
                Some(
                    parsed
                        .map_err(|_| Refusal::bad(format!("invalid sinceTime {text:?}")))?
                        .into(),
                )
            }
            (None, None) => None,
        };
        let stream = match query.get("stream").unwrap_or_default() {
            "" | "All" => None,
            "Stdout" => Some(Stream::Stdout),
            "Stderr" => Some(Stream::Stderr),
            other => {
                return Err(Refusal::bad(format!(
                    "invalid stream {other:?}: must be All, Stdout or Stderr"
                )));
            }
        };
        Ok(Options {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines: number(query, "tailLines", 0)?,
            since,
            limit_bytes: number(query, "limitBytes", 1)?,
            stream,
        })
    }
}

/// A record taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its time, as written.
    pub time: &'a [u8],
    /// Its stream.
    pub stream: Stream,
    /// True at the end of a line.
    pub full: bool,
    /// Text without the line end.
    pub text: &'a [u8],
}

impl Record<'_> {
    /// Takes a line of a log file apart; `None` when it is not a record.
    pub fn parse(line: &[u8]) -> Option<Record<'_>> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = fields.next()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // More tags may follow the first one, separated by colons.
        let full = match fields.next()?.split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Record {
            time,
            stream,
            full,
            text: fields.next().unwrap_or_default(),
        })
    }

    fn at(&self) -> Option<SystemTime> {
        std::str::from_utf8(self.time)
            .ok()?
            .parse::<jiff::Timestamp>()
            .ok()
            .map(SystemTime::from)
    }
}

#[derive(Default)]
struct Part {
    text: Vec<u8>,
    /// Its beginning was handed on already.
    begun: bool,
    /// It is a line that is not shown.
    hidden: bool,
}

/// Puts lines together and writes those asked for.
pub struct Lines {
    timestamps: bool,
    since: Option<SystemTime>,
    stream: Option<Stream>,
    left: Option<u64>,
    skip: u64,
    parts: [Part; 2],
}

impl Lines {
    /// For these options; the first `skip` lines of the streams asked for are left out.
    pub fn new(options: &Options, skip: u64) -> Lines {
        Lines {
            timestamps: options.timestamps,
            since: options.since,
            stream: options.stream,
            left: options.limit_bytes,
            skip,
            parts: Default::default(),
        }
    }

    /// True when everything that may be written was.
    pub fn full(&self) -> bool {
        self.left == Some(0)
    }

    /// Takes one line of a log file.
    pub fn take(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = Record::parse(line) else { return };
        if self.stream.is_some_and(|stream| stream != record.stream) {
            return;
        }
        let part = &mut self.parts[record.stream as usize];
        if part.text.is_empty() && !part.begun && !part.hidden {
            part.hidden = self
                .since
                .is_some_and(|since| record.at().is_some_and(|at| at < since));
            if self.timestamps && !part.hidden {
                part.text.extend_from_slice(record.time);
                part.text.push(b' ');
            }
        }
        if !part.hidden {
            part.text.extend_from_slice(record.text);
        }
        if record.full {
            let mut part = std::mem::take(part);
            if self.skip > 0 {
                self.skip -= 1;
            } else if !part.hidden {
                part.text.push(b'\n');
                self.write(&part.text, out);
            }
        } else if part.text.len() >= LINE_MAX_BYTES {
            let text = std::mem::take(&mut part.text);
            if self.skip > 0 {
                part.hidden = true;
            } else {
                part.begun = true;
                self.write(&text, out);
            }
        }
    }

    /// Writes what there is of unfinished lines.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if self.skip > 0 {
            return;
        }
        for at in 0..self.parts.len() {
            let text = std::mem::take(&mut self.parts[at].text);
            if !text.is_empty() {
                self.parts[at].begun = true;
                self.write(&text, out);
            }
        }
    }

    fn write(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let Some(left) = &mut self.left else {
            return out.extend_from_slice(text);
        };
        let shown = usize::try_from(*left).unwrap_or(usize::MAX).min(text.len());
        out.extend_from_slice(&text[..shown]);
        *left -= shown as u64;
    }
}

/// Counts lines as [`Lines`] would write them without a start.
#[derive(Default)]
pub struct Count {
    stream: Option<Stream>,
    lines: u64,
    open: [bool; 2],
}

impl Count {
    /// Of one stream, or of both.
    pub fn new(stream: Option<Stream>) -> Count {
        Count {
            stream,
            ..Count::default()
        }
    }

    /// Takes one line of a log file.
    pub fn take(&mut self, line: &[u8]) {
        let Some(record) = Record::parse(line) else { return };
        if self.stream.is_none_or(|stream| stream == record.stream) {
            self.lines += u64::from(record.full);
            self.open[record.stream as usize] = !record.full;
        }
    }

    /// Finished lines.
    pub fn finished(&self) -> u64 {
        self.lines
    }

    /// Lines begun and not finished.
    pub fn unfinished(&self) -> u64 {
        self.open.iter().map(|open| u64::from(*open)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr P err\n\
        2026-01-01T00:00:03.000000000Z stdout P tw\n\
        2026-01-01T00:00:04.000000000Z stderr F or\n\
        not a record\n\
        2026-01-01T00:00:05.000000000Z stdout F o\n\
        2026-01-01T00:00:06.000000000Z stdout F \n\
        2026-01-01T00:00:07.000000000Z stdout P > ";

    fn at(second: u64) -> Option<SystemTime> {
        let start: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Some(SystemTime::from(start) + Duration::from_secs(second))
    }

    #[test]
    fn lines_are_put_together_and_chosen() {
        let base = Options::default();
        let table: &[(Options, u64, &str)] = &[
            (base.clone(), 0, "one\nerror\ntwo\n\n> "),
            (base.clone(), 1, "error\ntwo\n\n> "),
            (base.clone(), 2, "two\n\n> "),
            (base.clone(), 4, "> "),
            (base.clone(), 5, ""),
            (
                Options {
                    stream: Some(Stream::Stderr),
                    ..base.clone()
                },
                0,
                "error\n",
            ),
            (
                Options {
                    stream: Some(Stream::Stdout),
                    ..base.clone()
                },
                1,
                "two\n\n> ",
            ),
            (
                Options {
                    since: at(3),
                    ..base.clone()
                },
                0,
                "two\n\n> ",
            ),
            (
                Options {
                    since: at(100),
                    ..base.clone()
                },
                0,
                "",
            ),
            (
                Options {
                    limit_bytes: Some(6),
                    ..base.clone()
                },
                0,
                "one\ner",
            ),
            (
                Options {
                    timestamps: true,
                    stream: Some(Stream::Stdout),
                    ..base.clone()
                },
                0,
                "2026-01-01T00:00:01.000000000Z one\n2026-01-01T00:00:03.000000000Z two\n\
                 2026-01-01T00:00:06.000000000Z \n2026-01-01T00:00:07.000000000Z > ",
            ),
        ];
        for (options, skip, want) in table {
            let (mut lines, mut out) = (Lines::new(options, *skip), Vec::new());
            LOG.lines().for_each(|line| lines.take(line.as_bytes(), &mut out));
            lines.flush(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), *want, "{options:?} skip {skip}");
        }
    }

    #[test]
    fn a_line_too_long_to_gather_is_handed_on_in_parts() {
        let (mut lines, mut out) = (
            Lines::new(
                &Options {
                    timestamps: true,
                    ..Options::default()
                },
                0,
            ),
            Vec::new(),
        );
        let part = "x".repeat(16 * 1024);
        for _ in 0..100 {
            lines.take(format!("T stdout P {part}").as_bytes(), &mut out);
        }
        assert!(out.len() > LINE_MAX_BYTES && lines.parts[0].text.len() < LINE_MAX_BYTES);
        lines.take(b"T stdout F end", &mut out);
        assert_eq!(out.len(), "T ".len() + 100 * part.len() + "end\n".len());
    }

    #[test]
    fn counts() {
        let mut all = Count::new(None);
        let mut stderr = Count::new(Some(Stream::Stderr));
        for line in LOG.lines() {
            all.take(line.as_bytes());
            stderr.take(line.as_bytes());
        }
        assert_eq!((all.finished(), all.unfinished()), (4, 1));
        assert_eq!((stderr.finished(), stderr.unfinished()), (1, 0));
    }

    #[test]
    fn options_are_read() {
        let parse = |text: &str| Options::parse(&Query::parse(text), at(100).unwrap());
        assert_eq!(parse(""), Ok(Options::default()));
        let all = parse(
            "follow=true&previous=1&timestamps=true&tailLines=5&sinceSeconds=10&limitBytes=9&stream=Stderr",
        );
        let want = Options {
            follow: true,
            previous: true,
            timestamps: true,
            tail_lines: Some(5),
            since: at(90),
            limit_bytes: Some(9),
            stream: Some(Stream::Stderr),
        };
        assert_eq!(all, Ok(want));
        assert_eq!(
            parse("sinceTime=2026-01-01T01:00:05%2B01:00").unwrap().since,
            at(5)
        );
        for text in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceTime=x",
            "stream=x",
            "tailLines=x",
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
