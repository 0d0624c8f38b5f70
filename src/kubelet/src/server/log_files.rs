//! A container's log files in order: rotated ones (plain or compressed) first, the current one last.
//!
//! Rotation renames `0.log` and makes a new one. Older files are `0.log.2` (higher is older) or `0.log.20260101-120000`
//! (higher is newer), possibly with `.gz`. All files are opened before the first byte is read, so that a rotation in
//! between loses nothing: an open file stays what it is, whatever it is called now. A follower that comes to the end of
//! the current file compares it with what the path names; when that is another file, it takes the rest of its own (the
//! writer may have added to it before the rename), then goes on with the files that are newer.
//!
//! Everything here blocks; callers put it on a thread for blocking work.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

use super::log_lines::{Count, Lines, Options};

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;
/// Longest line of a log file; records are 16 KiB. Anything longer is no record and is thrown away.
const RECORD_MAX_BYTES: usize = 1 << 20;
/// Most files of one container that are looked at, newest first.
const FILES_MAX: usize = 64;
/// How often the files are opened anew when they are rotated meanwhile.
const OPEN_ATTEMPTS: usize = 5;

/// Which file it is, whatever its name.
type Identity = (u64, u64);

fn identity(file: &File) -> io::Result<Identity> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

enum Bytes {
    Plain(File),
    Compressed(Box<MultiGzDecoder<File>>),
}

struct Source {
    id: Identity,
    bytes: Bytes,
    /// Bytes read so far.
    position: u64,
}

impl Source {
    fn open(path: &Path) -> io::Result<Source> {
        let file = File::open(path)?;
        let id = identity(&file)?;
        let compressed = path.extension() == Some(OsStr::new("gz"));
        let bytes = if compressed {
            Bytes::Compressed(Box::new(MultiGzDecoder::new(file)))
        } else {
            Bytes::Plain(file)
        };
        Ok(Source {
            id,
            bytes,
            position: 0,
        })
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.bytes {
            Bytes::Plain(file) => {
                // A file that was cut short begins anew.
                if file.metadata()?.len() < self.position {
                    file.rewind()?;
                    self.position = 0;
                }
                file.read(buffer)?
            }
            Bytes::Compressed(decoder) => decoder.read(buffer)?,
        };
        self.position += count as u64;
        Ok(count)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.position = 0;
        match &mut self.bytes {
            Bytes::Plain(file) => file.rewind(),
            Bytes::Compressed(decoder) => {
                let mut file = decoder.get_ref().try_clone()?;
                file.rewind()?;
                **decoder = MultiGzDecoder::new(file);
                Ok(())
            }
        }
    }
}

/// Age of a rotated file by the end of its name, newest first when sorted; `None` for a file of another kind.
fn age(suffix: &str) -> Option<(u8, std::cmp::Reverse<String>, u64)> {
    let suffix = suffix.strip_suffix(".gz").unwrap_or(suffix);
    let reverse = |text: &str| std::cmp::Reverse(text.to_owned());
    if let Ok(number) = suffix.parse::<u64>()
        && suffix.len() < 8
    {
        return Some((0, reverse(""), number));
    }
    let (day, time) = suffix.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(day) && digits(time)).then(|| (1, reverse(suffix), 0))
}

/// Paths of the files, newest first, the current one in front.
fn list(current: &Path) -> Vec<PathBuf> {
    let mut files = vec![current.to_owned()];
    let (Some(folder), Some(name)) = (current.parent(), current.file_name().and_then(OsStr::to_str)) else {
        return files;
    };
    let mut rotated: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let age = age(entry
                .file_name()
                .to_str()?
                .strip_prefix(name)?
                .strip_prefix('.')?)?;
            Some((age, entry.path()))
        })
        .collect();
    rotated.sort();
    files.extend(rotated.into_iter().map(|(_, path)| path));
    files.truncate(FILES_MAX);
    files
}

/// Opens the files, oldest first, each once.
fn open(current: &Path) -> io::Result<VecDeque<Source>> {
    for attempt in 1.. {
        let mut sources: VecDeque<Source> = VecDeque::new();
        for path in list(current) {
            match Source::open(&path) {
                Ok(source) if sources.iter().any(|one| one.id == source.id) => {}
                Ok(source) => sources.push_front(source),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // A rotation in between may have moved a file past the place that was looked at.
        let newest = sources.back().map(|source| source.id);
        let now = fs::metadata(current).ok().map(|meta| (meta.dev(), meta.ino()));
        if attempt >= OPEN_ATTEMPTS || now.is_none() || now == newest {
            return Ok(sources);
        }
    }
    Ok(VecDeque::new())
}

/// How far a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more to read at once.
    More,
    /// Nothing more right now.
    End,
    /// As many bytes as asked for were written.
    Full,
}

/// Reads a log from its beginning, or from its tail.
pub struct Reader {
    path: PathBuf,
    sources: VecDeque<Source>,
    lines: Lines,
    /// The beginning of a line whose end was not read yet.
    rest: Vec<u8>,
    /// The rest of a line too long to be a record is being read over.
    overlong: bool,
    /// The end of the current file was seen after it had been rotated.
    rotated: bool,
}

impl Reader {
    /// Opens the log whose current file is `path`; files that are not there yet are empty.
    pub fn open(path: &Path, options: &Options) -> io::Result<Reader> {
        let mut sources = open(path)?;
        if let Some(since) = options.since {
            // What was last written before is not looked at. The newest file is: more may come.
            while sources.len() > 1 && last_write(&sources[0]).is_some_and(|at| at < since) {
                sources.pop_front();
            }
        }
        let skip = match options.tail_lines {
            Some(lines) => tail(&mut sources, lines, options)?,
            None => 0,
        };
        let lines = Lines::new(options, skip);
        Ok(Reader {
            path: path.to_owned(),
            sources,
            lines,
            rest: Vec::new(),
            overlong: false,
            rotated: false,
        })
    }

    /// Reads a step further and appends to `out` what it gives.
    pub fn step(&mut self, out: &mut Vec<u8>) -> io::Result<Progress> {
        let Some(source) = self.sources.front_mut() else {
            // Not there yet.
            self.sources = open(&self.path)?;
            return Ok(if self.sources.is_empty() {
                Progress::End
            } else {
                Progress::More
            });
        };
        let mut buffer = vec![0; READ_BYTES];
        let count = match source.read(&mut buffer) {
            Ok(count) => count,
            // A damaged compressed file ends where the damage begins.
            Err(error) if matches!(source.bytes, Bytes::Compressed(_)) => {
                tracing::warn!(path = %self.path.display(), %error, "a rotated log is damaged");
                0
            }
            Err(error) => return Err(error),
        };
        if count > 0 {
            self.rotated = false;
            let lines = &mut self.lines;
            split(&mut self.rest, &mut self.overlong, &buffer[..count], |line| {
                lines.take(line, out)
            });
            return Ok(if self.lines.full() {
                Progress::Full
            } else {
                Progress::More
            });
        }
        if self.sources.len() == 1 && !self.newer()? {
            return Ok(Progress::End);
        }
        if self.sources.len() > 1 {
            self.sources.pop_front();
            self.rest.clear();
            self.overlong = false;
            self.rotated = false;
        }
        Ok(Progress::More)
    }

    /// Writes what there is of unfinished lines.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        self.lines.flush(out);
    }

    /// At the end of the newest file known: true when there are newer ones. The first time that only says to read on.
    fn newer(&mut self) -> io::Result<bool> {
        let Some(id) = self.sources.front().map(|source| source.id) else {
            return Ok(false);
        };
        match fs::metadata(&self.path) {
            Ok(meta) if (meta.dev(), meta.ino()) != id => {}
            Ok(_) => return Ok(false),
            // Between the rename and the new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        if !std::mem::replace(&mut self.rotated, true) {
            return Ok(true);
        }
        let mut found = open(&self.path)?;
        match found.iter().position(|source| source.id == id) {
            Some(at) => drop(found.drain(..=at)),
            // Removed or compressed meanwhile: what is newer than a compressed file is still plain.
            None => found.retain(|source| matches!(source.bytes, Bytes::Plain(_))),
        }
        self.sources.extend(found);
        Ok(self.sources.len() > 1)
    }
}

fn last_write(source: &Source) -> Option<SystemTime> {
    let file = match &source.bytes {
        Bytes::Plain(file) => file,
        Bytes::Compressed(decoder) => decoder.get_ref(),
    };
    file.metadata().and_then(|meta| meta.modified()).ok()
}

/// Gives whole lines of `rest` followed by `bytes`; what is left stays in `rest`.
fn split(rest: &mut Vec<u8>, overlong: &mut bool, bytes: &[u8], mut line: impl FnMut(&[u8])) {
    let mut parts = bytes.split_inclusive(|byte| *byte == b'\n');
    for part in &mut parts {
        let Some(text) = part.strip_suffix(b"\n") else {
            if !*overlong {
                rest.extend_from_slice(part);
            }
            if rest.len() > RECORD_MAX_BYTES {
                rest.clear();
                *overlong = true;
            }
            return;
        };
        if std::mem::replace(overlong, false) {
            continue;
        }
        if rest.is_empty() {
            line(text);
        } else {
            rest.extend_from_slice(text);
            line(rest);
            rest.clear();
        }
    }
}

/// Drops files that are not needed for the last `wanted` lines and says how many lines of the rest come before those.
fn tail(sources: &mut VecDeque<Source>, wanted: u64, options: &Options) -> io::Result<u64> {
    let mut total = 0;
    for at in (0..sources.len()).rev() {
        let source = &mut sources[at];
        let (mut count, mut rest, mut overlong) = (Count::new(options.stream), Vec::new(), false);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => split(&mut rest, &mut overlong, &buffer[..read], |line| count.take(line)),
                Err(_) if matches!(source.bytes, Bytes::Compressed(_)) => break,
                Err(error) => return Err(error),
            }
        }
        source.rewind()?;
        let newest = at + 1 == sources.len();
        total += count.finished()
            + if newest && wanted > 0 {
                count.unfinished()
            } else {
                0
            };
        if total >= wanted {
            sources.drain(..at);
            return Ok(total - wanted);
        }
    }
    Ok(0)
}

#[cfg(test)]
#[path = "log_files_tests.rs"]
mod tests;
