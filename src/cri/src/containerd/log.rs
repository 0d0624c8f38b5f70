//! Log files in the CRI format, and their rotation.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; `P` marks a part of a longer line.
//! Rotation renames `0.log` to `0.log.1` and so on and starts a new `0.log`; readers that follow a log
//! notice that the path names another file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest piece of a line in one record, as in other runtimes.
pub const RECORD_MAX_BYTES: usize = 16 * 1024;

/// When a log is rotated, and how many files are kept in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Rotate above this size.
    pub file_max_bytes: u64,
    /// Files kept, the current one included.
    pub files_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            file_max_bytes: 10 * 1024 * 1024,
            files_max: 5,
        }
    }
}

/// Appends records for `data` to `out` and returns how much of `data` they cover. An unfinished last
/// line is left over unless `flush` asks for it as a part.
pub fn format(data: &[u8], time: &str, stream: &str, flush: bool, out: &mut Vec<u8>) -> usize {
    let mut done = 0;
    let mut record = |tag: u8, text: &[u8]| {
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
        out.extend_from_slice(stream.as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    while done < data.len() {
        let rest = &data[done..];
        let window = &rest[..rest.len().min(RECORD_MAX_BYTES + 1)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                record(b'F', &rest[..end]);
                done += end + 1;
            }
            None if rest.len() > RECORD_MAX_BYTES || (flush && rest.len() == RECORD_MAX_BYTES) => {
                record(b'P', &rest[..RECORD_MAX_BYTES]);
                done += RECORD_MAX_BYTES;
            }
            None if flush => {
                record(b'P', rest);
                done += rest.len();
            }
            None => break,
        }
    }
    done
}

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    size: u64,
}

impl LogFile {
    /// Opens for appending, making folders.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_path_buf(),
            limits,
            file,
            size,
        })
    }

    /// Appends whole records, rotating between records when the file is full.
    pub fn append(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let room = self
                .limits
                .file_max_bytes
                .saturating_sub(self.size)
                .min(usize::MAX as u64) as usize;
            let fits = match records.len() <= room {
                true => records.len(),
                false => records[..room]
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1),
            };
            // A record larger than a whole file goes into a file of its own.
            let piece = match (fits, self.size) {
                (0, 0) => records
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(records.len(), |end| end + 1),
                (0, _) => {
                    self.rotate()?;
                    continue;
                }
                (fits, _) => fits,
            };
            self.file.write_all(&records[..piece])?;
            self.size += piece as u64;
            records = &records[piece..];
        }
        Ok(())
    }

    /// Opens the path again, after somebody moved the file.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.limits)?;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let kept = self.limits.files_max.saturating_sub(1);
        if kept == 0 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        for number in (1..kept).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::rename(&self.path, numbered(1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.reopen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_records() {
        let long = "x".repeat(RECORD_MAX_BYTES);
        for (data, flush, want, covered) in [
            (
                "a\nb\n".to_owned(),
                false,
                "T stdout F a\nT stdout F b\n".to_owned(),
                4,
            ),
            ("a\nrest".to_owned(), false, "T stdout F a\n".to_owned(), 2),
            ("rest".to_owned(), true, "T stdout P rest\n".to_owned(), 4),
            ("\n".to_owned(), false, "T stdout F \n".to_owned(), 1),
            (
                format!("{long}\n"),
                false,
                format!("T stdout F {long}\n"),
                RECORD_MAX_BYTES + 1,
            ),
            (long.clone(), false, String::new(), 0),
            (
                format!("{long}y"),
                false,
                format!("T stdout P {long}\n"),
                RECORD_MAX_BYTES,
            ),
            (
                format!("{long}y\n"),
                false,
                format!("T stdout P {long}\nT stdout F y\n"),
                RECORD_MAX_BYTES + 2,
            ),
        ] {
            let mut out = Vec::new();
            let done = format(data.as_bytes(), "T", "stdout", flush, &mut out);
            assert_eq!((String::from_utf8(out).unwrap(), done), (want, covered));
        }
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod/0.log");
        let mut log = LogFile::open(
            &path,
            LogLimits {
                file_max_bytes: 10,
                files_max: 3,
            },
        )
        .unwrap();
        log.append(b"aaaaaa\nbbbbbb\n").unwrap();
        log.append(b"cccccc\ndddddd\n").unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join("pod").join(name)).ok();
        assert_eq!(read("0.log").as_deref(), Some("dddddd\n"));
        assert_eq!(read("0.log.1").as_deref(), Some("cccccc\n"));
        assert_eq!(read("0.log.2").as_deref(), Some("bbbbbb\n"));
        assert_eq!(read("0.log.3"), None);
        log.append(b"larger than a file\nee\n").unwrap();
        assert_eq!(read("0.log.1").as_deref(), Some("larger than a file\n"));
        assert_eq!(read("0.log").as_deref(), Some("ee\n"));
    }
}
