//! Exec and attach.

use crate::lab::*;
use skiff_cri::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

async fn all(reader: Option<ByteReader>) -> String {
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, reader.unwrap().read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    text
}

#[test]
fn commands_run_in_a_container() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let id = start(&runtime, &sandbox, lab.script("main", "exec sleep 1000")).await;

        let command = words(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
        let output = runtime.exec_sync(&id, &command, PATIENCE).await.unwrap();
        assert_eq!(
            (output.exit_code, &*output.stdout, &*output.stderr),
            (7, &b"out\n"[..], &b"err\n"[..])
        );

        // More than any buffer on the way, and a child left behind that keeps the streams open.
        let command = words(&["sh", "-c", "sleep 500 & yes | head -c 300000"]);
        let output = runtime.exec_sync(&id, &command, PATIENCE).await.unwrap();
        assert_eq!(
            (output.exit_code, output.stdout.len()),
            (0, EXEC_SYNC_OUTPUT_MAX_BYTES)
        );

        let begin = tokio::time::Instant::now();
        let command = words(&["sleep", "333"]);
        let late = runtime.exec_sync(&id, &command, Duration::from_secs(1)).await;
        assert!(matches!(late, Err(RuntimeError::Timeout(_))), "{late:?}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        let gone = words(&[
            "sh",
            "-c",
            "for i in $(busybox seq 100); do ps | busybox grep -v grep | busybox grep -q 'sleep 333' || exit 0; sleep 0.1; done; exit 1",
        ]);
        assert_eq!(
            runtime.exec_sync(&id, &gone, PATIENCE).await.unwrap().exit_code,
            0,
            "killed on timeout"
        );

        let missing = runtime.exec_sync(&id, &words(&["/no/such"]), PATIENCE).await;
        assert!(
            matches!(missing, Err(RuntimeError::StartFailed(_))),
            "{missing:?}"
        );

        let request = ExecRequest {
            command: words(&["cat"]),
            stdin: true,
            stdout: true,
            ..ExecRequest::default()
        };
        let mut session = runtime.exec(&id, request).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"through the pipe").await.unwrap();
        drop(stdin);
        assert_eq!(all(session.stdout.take()).await, "through the pipe");
        assert_eq!(session.exit.await.unwrap().unwrap(), 0);

        let command = words(&["sh", "-c", "read x; stty size; echo got $x; exit 5"]);
        let request = ExecRequest {
            command,
            stdin: true,
            stdout: true,
            tty: true,
            ..ExecRequest::default()
        };
        let mut session = runtime.exec(&id, request).await.unwrap();
        session
            .resize
            .send(TerminalSize {
                width: 123,
                height: 45,
            })
            .await
            .unwrap();
        let mut stdin = session.stdin.take().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        stdin.write_all(b"word\n").await.unwrap();
        let text = all(session.stdout.take()).await;
        assert!(text.contains("45 123") && text.contains("got word"), "{text:?}");
        assert_eq!(session.exit.await.unwrap().unwrap(), 5);

        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        let refused = runtime.exec_sync(&id, &words(&["true"]), PATIENCE).await;
        assert!(refused.unwrap_err().is_not_found());
        drop(runtime);
        lab
    });
}

#[test]
fn attach_reads_and_writes_the_first_process() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let mut config = lab.script(
            "talk",
            "while read x; do echo said $x; echo err $x >&2; done; echo over; exit 4",
        );
        (config.stdin, config.stdin_once) = (true, true);
        let id = start(&runtime, &sandbox, config).await;
        let request = AttachRequest {
            stdin: true,
            stdout: true,
            stderr: true,
        };
        let mut session = runtime.attach(&id, request).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").await.unwrap();
        drop(stdin);
        assert_eq!(all(session.stdout.take()).await, "said one\nsaid two\nover\n");
        assert_eq!(all(session.stderr.take()).await, "err one\nerr two\n");
        assert_eq!(session.exit.await.unwrap().unwrap(), 4);
        let log = lines(&lab.log("talk"));
        assert_eq!(log.iter().filter(|line| line.starts_with("stdout")).count(), 3);

        let mut config = lab.script("tty", "stty size >/dev/null && echo terminal; read x; echo $x");
        (config.stdin, config.tty) = (true, true);
        let id = start(&runtime, &sandbox, config).await;
        let mut session = runtime
            .attach(
                &id,
                AttachRequest {
                    stderr: false,
                    ..request_all()
                },
            )
            .await
            .unwrap();
        session.stdin.take().unwrap().write_all(b"typed\n").await.unwrap();
        assert_eq!(session.exit.await.unwrap().unwrap(), 0);
        let log = lines(&lab.log("tty")).join("\n");
        assert!(
            log.contains("stdout F terminal") && log.contains("typed"),
            "{log}"
        );
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

fn request_all() -> AttachRequest {
    AttachRequest {
        stdin: true,
        stdout: true,
        stderr: true,
    }
}
