//! What an ended container left to say: its termination message file, or the end of its log.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use skiff_cri::{Container, ContainerState};

use super::state::labels;

/// Longest termination message, as Kubernetes keeps it.
const MESSAGE_MAX_BYTES: usize = 4096;
/// Longest end of a log taken as termination message.
const LOG_MESSAGE_MAX_BYTES: usize = 2048;
/// Most lines of a log taken as termination message.
const LOG_MESSAGE_MAX_LINES: usize = 80;

/// What an ended container left to say.
pub fn termination_message(container: &Container) -> String {
    let ContainerState::Exited {
        exit_code, message, ..
    } = &container.state
    else {
        return String::new();
    };
    let file = container.annotations.get(labels::MESSAGE_FILE).map(Path::new);
    let text = file
        .and_then(|file| head(file, MESSAGE_MAX_BYTES))
        .unwrap_or_default();
    if !text.is_empty() {
        return text;
    }
    let fall_back = container
        .annotations
        .get(labels::MESSAGE_POLICY)
        .map(String::as_str)
        == Some("FallbackToLogsOnError");
    if fall_back && *exit_code != 0 {
        let end = container
            .log_path
            .as_deref()
            .and_then(log_end)
            .unwrap_or_default();
        if !end.is_empty() {
            return end;
        }
    }
    message.clone()
}

fn head(path: &Path, max: usize) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(max as u64)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log in the runtime's format, without time and stream.
fn log_end(path: &Path) -> Option<String> {
    const READ_BYTES: u64 = 64 * 1024;
    let mut file = std::fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(READ_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut out = String::new();
    let lines: Vec<&str> = text.lines().collect();
    for line in lines
        .iter()
        .skip(lines.len().saturating_sub(LOG_MESSAGE_MAX_LINES))
    {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(flags), Some(rest)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        out.push_str(rest);
        if flags.starts_with('F') {
            out.push('\n');
        }
    }
    let mut cut = out.len().saturating_sub(LOG_MESSAGE_MAX_BYTES);
    while !out.is_char_boundary(cut) {
        cut += 1;
    }
    Some(out.split_off(cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    #[test]
    fn termination_messages() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(&log, "t stdout F one\nt stderr P two \nt stderr F three\n").unwrap();
        let mut container = Container {
            id: "c".into(),
            sandbox: "s".into(),
            name: "a".into(),
            attempt: 0,
            image: String::new(),
            image_id: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::from([
                (labels::MESSAGE_FILE.to_owned(), file.display().to_string()),
                (
                    labels::MESSAGE_POLICY.to_owned(),
                    "FallbackToLogsOnError".to_owned(),
                ),
            ]),
            log_path: Some(log),
            state: ContainerState::Exited {
                exit_code: 1,
                finished_at: SystemTime::UNIX_EPOCH,
                reason: "Error".into(),
                message: "from the runtime".into(),
            },
            created_at: SystemTime::UNIX_EPOCH,
            started_at: None,
            pid: None,
            user: None,
        };
        assert_eq!(termination_message(&container), "one\ntwo three\n");
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(termination_message(&container).len(), MESSAGE_MAX_BYTES);
        std::fs::remove_file(&file).unwrap();
        container.annotations.remove(labels::MESSAGE_POLICY);
        assert_eq!(termination_message(&container), "from the runtime");
    }
}
