//! Plain requests and logs.

use std::io::Write;

use super::*;

fn append(path: &std::path::Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

fn record(text: &str) -> String {
    format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n")
}

#[tokio::test]
async fn answers_and_refuses_in_kubernetes_words() {
    let node = Node::new().await;
    for (path, status, text) in [
        ("/healthz", 200, "ok"),
        ("/stats/summary", 200, r#"{"node":{"nodeName":"n1"}}"#),
        ("/nothing", 404, "404 page not found"),
        (
            "/containerLogs/default/none/app",
            404,
            r#"pod "default/none" does not exist"#,
        ),
        (
            "/containerLogs/default/web/none",
            404,
            r#"container "none" not found in pod "web""#,
        ),
        (
            "/containerLogs/default/web/late",
            400,
            r#"container "late" in pod "web" is waiting to start: ContainerCreating"#,
        ),
        (
            "/containerLogs/default/web/stuck",
            400,
            r#"container "stuck" in pod "web" is waiting to start: trying and failing to pull image"#,
        ),
        (
            "/containerLogs/default/web/app?previous=true",
            400,
            r#"previous terminated container "app" in pod "web" not found"#,
        ),
        (
            "/containerLogs/default/web/app?tailLines=x",
            400,
            r#"invalid tailLines "x": must be a number not below 0"#,
        ),
        (
            "/exec/default/none/app?command=ls&stdout=1",
            404,
            r#"pod "default/none" does not exist"#,
        ),
        (
            "/exec/default/web/late?command=ls&stdout=1",
            404,
            r#"container not found ("late")"#,
        ),
        (
            "/exec/default/web/app?command=ls",
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        (
            "/exec/default/web/app?stdout=1",
            400,
            "you must specify at least one command for the container",
        ),
        (
            "/exec/default/web/app?command=ls&stdout=1",
            400,
            "unable to upgrade: missing upgrade headers in request",
        ),
    ] {
        assert_eq!(node.get(path).await, (status, text.to_owned()), "{path}");
    }
    let (status, pods) = node.get("/pods").await;
    assert_eq!(
        (
            status,
            serde_json::from_str::<Value>(&pods).unwrap()["items"][0]["metadata"]["name"].as_str()
        ),
        (200, Some("web"))
    );
    let (_, head) = node.ask("DELETE", "/healthz", "").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
}

#[tokio::test]
async fn logs_of_this_attempt_and_the_one_before() {
    let node = Node::new().await;
    append(
        &node.logs.path().join("app/0.log"),
        &(record("one") + &record("two")),
    );
    assert_eq!(
        node.get("/containerLogs/default/web/app?tailLines=1").await,
        (200, "two\n".into())
    );
    node.fake.exit_container("app", 1);
    node.start("app", 1).await;
    append(&node.logs.path().join("app/1.log"), &record("again"));
    assert_eq!(
        node.get("/containerLogs/default/web/app").await,
        (200, "again\n".into())
    );
    assert_eq!(
        node.get("/containerLogs/default/web/app?previous=true&limitBytes=5")
            .await,
        (200, "one\nt".into())
    );
}

#[tokio::test]
async fn following_shows_what_comes_and_ends_with_the_container() {
    let node = Node::new().await;
    let path = node.logs.path().join("app/0.log");
    append(&path, &(record("old") + &record("last")));
    let (mut io, head) = node
        .ask(
            "GET",
            "/containerLogs/default/web/app?follow=true&tailLines=1",
            "Connection: close\r\n",
        )
        .await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut body = Vec::new();
    let mut until = async |text: &str| {
        while !String::from_utf8_lossy(&body).contains(text) {
            assert!(io.read_buf(&mut body).await.unwrap() > 0, "ended before {text:?}");
        }
        body.clone()
    };
    until("last\n").await;
    append(&path, &record("more"));
    until("more\n").await;
    std::fs::rename(&path, path.with_extension("log.1")).unwrap();
    append(&path, &record("rotated"));
    until("rotated\n").await;
    append(&path, "2026-01-01T00:00:00.000000000Z stdout P prompt> \n");
    until("prompt> ").await;
    append(&path, &record("answer"));
    append(&path, &record("goodbye"));
    node.fake.exit_container("app", 0);
    let body = until("\r\n0\r\n\r\n").await;
    assert_eq!(
        String::from_utf8(unchunk(&body)).unwrap(),
        "last\nmore\nrotated\nprompt> answer\ngoodbye\n"
    );
}
