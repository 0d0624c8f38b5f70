use std::io::Write;

use super::*;
use crate::server::log_lines::Stream;

fn record(text: &str) -> String {
    format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n")
}

fn gzip(path: &Path, text: &str) {
    let mut encoder = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap();
}

/// Reads to the end of what is there.
fn read(reader: &mut Reader) -> String {
    let mut out = Vec::new();
    while reader.step(&mut out).unwrap() == Progress::More {}
    String::from_utf8(out).unwrap()
}

fn append(path: &Path, text: &str) {
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

#[test]
fn rotated_files_come_first_whatever_their_naming() {
    for names in [
        ["0.log.10.gz", "0.log.9", "0.log.1"],
        [
            "0.log.20251231-235959.gz",
            "0.log.20260101-000000",
            "0.log.20260102-000000",
        ],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        for (name, text) in names.iter().zip(["a", "b", "c"]) {
            let texts = record(&format!("{text}1")) + &record(&format!("{text}2"));
            match name.ends_with(".gz") {
                true => gzip(&folder.path().join(name), &texts),
                false => append(&folder.path().join(name), &texts),
            }
        }
        append(&path, &record("d1"));
        append(&folder.path().join("0.log.tmp"), &record("no"));
        append(&folder.path().join("1.log"), &record("no"));
        append(&folder.path().join("10.log.1"), &record("no"));
        for (tail, want) in [
            (None, "a1\na2\nb1\nb2\nc1\nc2\nd1\n"),
            (Some(100), "a1\na2\nb1\nb2\nc1\nc2\nd1\n"),
            (Some(6), "a2\nb1\nb2\nc1\nc2\nd1\n"),
            (Some(3), "c1\nc2\nd1\n"),
            (Some(2), "c2\nd1\n"),
            (Some(1), "d1\n"),
            (Some(0), ""),
        ] {
            let options = Options {
                tail_lines: tail,
                ..Options::default()
            };
            assert_eq!(
                read(&mut Reader::open(&path, &options).unwrap()),
                want,
                "tail {tail:?}"
            );
        }
    }
}

#[test]
fn the_tail_of_one_stream_is_counted_in_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    append(
        &path,
        "T stderr F e1\nT stdout F o1\nT stderr P e\nT stdout F o2\nT stderr F 2\nT stdout F o3\nT stdout P o4",
    );
    append(&path, "\n");
    let tail = |stream, lines| {
        let options = Options {
            stream,
            tail_lines: Some(lines),
            ..Options::default()
        };
        let mut reader = Reader::open(&path, &options).unwrap();
        let mut out = read(&mut reader).into_bytes();
        reader.flush(&mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(tail(Some(Stream::Stderr), 1), "e2\n");
    assert_eq!(tail(Some(Stream::Stdout), 2), "o3\no4");
    assert_eq!(tail(None, 4), "o2\ne2\no3\no4");
}

#[test]
fn a_follower_goes_through_rotations_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let numbered = |number: usize| folder.path().join(format!("0.log.{number}"));
    append(&path, &record("1"));
    let mut reader = Reader::open(&path, &Options::default()).unwrap();
    assert_eq!(read(&mut reader), "1\n");
    append(&path, "2026-01-01T00:00:00.000000000Z stdout F 2");
    assert_eq!(read(&mut reader), "", "half a record is not a record");
    append(&path, &format!("\n{}", record("3")));
    fs::rename(&path, numbered(1)).unwrap();
    assert_eq!(read(&mut reader), "2\n3\n", "the new file is not there yet");
    append(&numbered(1), &record("4"));
    append(&path, &record("5"));
    assert_eq!(read(&mut reader), "4\n5\n");
    // Two rotations between two looks.
    for (old, text) in [(1, "6"), (2, "7")] {
        append(&path, &record(text));
        if old == 2 {
            fs::rename(numbered(1), numbered(2)).unwrap();
        }
        fs::rename(&path, numbered(1)).unwrap();
    }
    append(&path, &record("8"));
    assert_eq!(read(&mut reader), "6\n7\n8\n");
    // The file being read is compressed away while two more come.
    append(&path, &record("9"));
    gzip(&folder.path().join("0.log.3.gz"), &(record("8") + &record("9")));
    fs::remove_file(&path).unwrap();
    append(&numbered(1), "");
    fs::remove_file(numbered(2)).unwrap();
    fs::write(numbered(1), record("10")).unwrap();
    append(&path, &record("11"));
    assert_eq!(read(&mut reader), "9\n10\n11\n");
}

#[test]
fn a_file_cut_short_begins_anew_and_a_missing_one_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut reader = Reader::open(
        &path,
        &Options {
            tail_lines: Some(1),
            ..Options::default()
        },
    )
    .unwrap();
    assert_eq!(read(&mut reader), "");
    append(&path, &(record("first") + &record("second")));
    assert_eq!(read(&mut reader), "first\nsecond\n");
    fs::write(&path, record("x")).unwrap();
    assert_eq!(read(&mut reader), "x\n");
}

#[test]
fn what_is_no_record_is_read_over_in_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    append(&path, &record("a"));
    append(&path, &"z".repeat(3 * RECORD_MAX_BYTES));
    append(&path, &format!("\n{}", record("b")));
    assert_eq!(
        read(&mut Reader::open(&path, &Options::default()).unwrap()),
        "a\nb\n"
    );
    let options = Options {
        limit_bytes: Some(3),
        ..Options::default()
    };
    let (mut reader, mut out) = (Reader::open(&path, &options).unwrap(), Vec::new());
    while reader.step(&mut out).unwrap() == Progress::More {}
    assert_eq!(out, b"a\nb");
}

#[test]
fn old_files_are_not_read_for_new_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    append(
        &folder.path().join("0.log.1"),
        "2020-01-01T00:00:00Z stdout F old\n2099-01-01T00:00:00Z stdout F odd\n",
    );
    append(
        &path,
        "2020-01-01T00:00:00Z stdout F old\n2098-01-01T00:00:00Z stdout F new\n",
    );
    let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::options()
        .write(true)
        .open(folder.path().join("0.log.1"))
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let since = Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(2_000_000_000));
    let options = Options {
        since,
        ..Options::default()
    };
    assert_eq!(read(&mut Reader::open(&path, &options).unwrap()), "new\n");
}
