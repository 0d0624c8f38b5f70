//! Built-in kinds in protobuf: bodies, answers, watches, and the commands of kubectl that use it.

use http::{Method, Request};
use serde_json::{Value, json};
use skiff_api::protobuf::{Envelope, MEDIA_TYPE, WATCH_MEDIA_TYPE, encode};
use skiff_api::schema::Schema;
use skiff_apiserver::{UserInfo, full_body};

use crate::harness::{Answer, DEPLOYMENTS, PODS, Server, deployment, pod};
use crate::kubectl::Served;

async fn ask(server: &Server, method: Method, path: &str, accept: &str, body: Vec<u8>) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", MEDIA_TYPE)
        .header("accept", accept);
    let mut request = request.body(full_body(body)).unwrap();
    request.extensions_mut().insert(UserInfo::component("test"));
    server.send(request).await
}

/// The object in a body.
fn read(body: &[u8]) -> Value {
    let envelope = Envelope::open(body).unwrap();
    let (group, version) = envelope
        .api_version
        .split_once('/')
        .unwrap_or(("", envelope.api_version));
    let view = Schema::builtin().kind(group, version, envelope.kind).unwrap();
    envelope.object(view, envelope.kind).unwrap()
}

#[track_caller]
fn expect(answer: &Answer, code: u16) -> Value {
    assert_eq!(
        (
            answer.code.as_u16(),
            answer.headers["content-type"].to_str().unwrap()
        ),
        (code, MEDIA_TYPE),
        "{}",
        answer.text
    );
    read(&answer.bytes)
}

#[tokio::test]
async fn objects_and_lists_are_the_same_in_both_forms() {
    let server = Server::start().await;
    let body = encode(&deployment("web", 0)).unwrap();
    let made = ask(&server, Method::POST, DEPLOYMENTS, MEDIA_TYPE, body).await;
    let made = expect(&made, 201);
    let path = format!("{DEPLOYMENTS}/web");
    assert_eq!(made["spec"]["replicas"], 0);
    assert_eq!(made, server.get(&path).await.expect(200));

    let mut changed = made.clone();
    changed["spec"]["replicas"] = json!(3);
    let put = ask(
        &server,
        Method::PUT,
        &path,
        "application/json",
        encode(&changed).unwrap(),
    )
    .await;
    assert_eq!(put.expect(200)["spec"]["replicas"], 3);

    server.post(PODS, pod("a")).await.expect(201);
    server.post(PODS, pod("b")).await.expect(201);
    let list = expect(&ask(&server, Method::GET, PODS, MEDIA_TYPE, vec![]).await, 200);
    let mut plain = server.get(PODS).await.expect(200);
    for item in plain["items"].as_array_mut().unwrap() {
        // The list says what its items are.
        item.as_object_mut()
            .unwrap()
            .retain(|name, _| name != "kind" && name != "apiVersion");
    }
    assert_eq!(list, plain);
    let partial = format!("{MEDIA_TYPE};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let partial = ask(&server, Method::GET, PODS, &partial, vec![]).await;
    let envelope = Envelope::open(&partial.bytes).unwrap();
    assert_eq!(envelope.kind, "PartialObjectMetadataList");
    // Fields 1 and 2 of the list of pods are those of any list.
    let view = Schema::builtin().kind("", "v1", "PodList").unwrap();
    let names = Envelope { kind: "", ..envelope }.object(view, "PodList").unwrap();
    assert_eq!(names["items"][1]["metadata"]["name"], "b");
    assert_eq!(names["items"][1].get("spec"), None);

    // Metadata, which every kind has in protobuf, aside: tables are JSON.
    let table =
        format!("{MEDIA_TYPE};as=Table;g=meta.k8s.io;v=v1,application/json;as=Table;g=meta.k8s.io;v=v1");
    let table = ask(&server, Method::GET, PODS, &table, vec![]).await.expect(200);
    assert_eq!(table["kind"], "Table");
}

#[tokio::test]
async fn errors_options_and_subresources() {
    let server = Server::start().await;
    let missing = ask(&server, Method::GET, &format!("{PODS}/none"), MEDIA_TYPE, vec![]).await;
    let missing = expect(&missing, 404);
    assert_eq!(
        (missing["reason"].as_str(), missing["code"].as_i64()),
        (Some("NotFound"), Some(404))
    );
    let json_first = format!("application/json,{MEDIA_TYPE}");
    let missing = ask(&server, Method::GET, &format!("{PODS}/none"), &json_first, vec![]).await;
    missing.error(404);

    for (body, why) in [
        (b"{}".to_vec(), "does not begin with"),
        (b"k8s\0\x12\x05\x0a".to_vec(), "cut off"),
        (
            encode(&deployment("x", 1)).unwrap(),
            "\"Deployment\", not a \"Pod\"",
        ),
    ] {
        let answer = ask(&server, Method::POST, PODS, "application/json", body).await;
        let message = answer.error(400);
        assert!(message.contains(why), "{message}");
    }
    let wrong =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": []}});
    let wrong = ask(&server, Method::POST, PODS, MEDIA_TYPE, encode(&wrong).unwrap()).await;
    assert_eq!(
        expect(&wrong, 422)["details"]["causes"][0]["field"],
        "spec.containers"
    );

    server.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"});
    let path = format!("{DEPLOYMENTS}/web");
    let deleted = ask(
        &server,
        Method::DELETE,
        &path,
        MEDIA_TYPE,
        encode(&options).unwrap(),
    )
    .await;
    let deleted = expect(&deleted, 202);
    assert_eq!(deleted["metadata"]["finalizers"], json!(["foregroundDeletion"]));

    let scale = expect(
        &ask(&server, Method::GET, &format!("{path}/scale"), MEDIA_TYPE, vec![]).await,
        200,
    );
    assert_eq!(
        (scale["kind"].as_str(), scale["spec"]["replicas"].as_i64()),
        (Some("Scale"), Some(1))
    );
    server.post(PODS, pod("a")).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a", "namespace": "default"}});
    let evicted = ask(
        &server,
        Method::POST,
        &format!("{PODS}/a/eviction"),
        MEDIA_TYPE,
        encode(&eviction).unwrap(),
    )
    .await;
    assert_eq!(expect(&evicted, 201)["status"], "Success");
}

/// The events in a watch that has ended.
fn events(mut frames: &[u8]) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    while let Some((length, rest)) = frames.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames = rest;
        // WatchEvent { type = 1, object { raw = 1 } = 2 }, lengths below 16384.
        let mut at = 0;
        let mut field = |key: u8| {
            assert_eq!(frame[at], key);
            let mut length = usize::from(frame[at + 1]);
            at += 2;
            if length > 127 {
                length = length - 128 + (usize::from(frame[at]) << 7);
                at += 1;
            }
            let start = at;
            if key == 0x0a {
                at += length;
            }
            start..start + length
        };
        let kind = String::from_utf8(frame[field(0x0a)].to_vec()).unwrap();
        assert_eq!(field(0x12).end, frame.len());
        let object = field(0x0a);
        assert_eq!(object.end, frame.len());
        events.push((kind, read(&frame[object])));
    }
    assert!(frames.is_empty(), "a frame is cut off");
    events
}

#[tokio::test]
async fn watches_send_frames() {
    let server = Server::start().await;
    server.post(PODS, pod("a")).await.expect(201);
    server.post(PODS, pod("b")).await.expect(201);
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let accept = format!("{MEDIA_TYPE};stream=watch,{MEDIA_TYPE}");
    let answer = ask(&server, Method::GET, &format!("{PODS}?{query}"), &accept, vec![]).await;
    assert_eq!(answer.headers["content-type"], WATCH_MEDIA_TYPE);
    let events = events(&answer.bytes);
    let seen: Vec<_> = events
        .iter()
        .map(|(kind, object)| {
            (
                kind.as_str(),
                object["metadata"]["name"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(seen[..3], [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "")]);
    assert_eq!(events[0].1, server.get(&format!("{PODS}/a")).await.expect(200));
    assert_eq!(
        events[2].1["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

/// What these commands send is protobuf; what they print comes from an answer in JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_kubectl_with_typed_bodies() {
    let served = Served::start(Server::start().await).await;
    let node = json!({"metadata": {"name": "n1"}});
    served.server.post("/api/v1/nodes", node).await.expect(201);
    let commands = [
        (
            "create deployment web --image=nginx --replicas=2 --port=80",
            "deployment.apps/web created",
        ),
        ("create configmap c --from-literal=a=b", "configmap/c created"),
        ("create secret generic s --from-literal=a=b", "secret/s created"),
        (
            "create secret docker-registry r --docker-username=u --docker-password=p",
            "secret/r created",
        ),
        ("create serviceaccount sa", "serviceaccount/sa created"),
        ("create token sa --duration=30m", "ey"),
        ("create namespace other", "namespace/other created"),
        (
            "create quota q --hard=pods=10,services=10",
            "resourcequota/q created",
        ),
        ("create job j --image=busybox -- true", "job.batch/j created"),
        (
            "create cronjob cj --image=busybox --schedule=*/5_*_*_*_* -- true",
            "cronjob.batch/cj created",
        ),
        (
            "create job from-cj --from=cronjob/cj",
            "job.batch/from-cj created",
        ),
        (
            "create role r --verb=get --resource=pods",
            "role.rbac.authorization.k8s.io/r created",
        ),
        (
            "create rolebinding rb --role=r --user=u",
            "rolebinding.rbac.authorization.k8s.io/rb created",
        ),
        (
            "create clusterrole cr --verb=get --resource=nodes",
            "clusterrole.rbac.authorization.k8s.io/cr created",
        ),
        (
            "create clusterrolebinding crb --clusterrole=cr --group=g",
            "clusterrolebinding.rbac.authorization.k8s.io/crb created",
        ),
        (
            "create poddisruptionbudget pdb --selector=app=web --min-available=50%",
            "poddisruptionbudget.policy/pdb created",
        ),
        (
            "create priorityclass pc --value=1000 --description=x",
            "priorityclass.scheduling.k8s.io/pc created",
        ),
        (
            "create ingress i --rule=a.example/x=web:80",
            "ingress.networking.k8s.io/i created",
        ),
        (
            "create service clusterip svc --tcp=80:8080",
            "service/svc created",
        ),
        ("create service nodeport np --tcp=80", "service/np created"),
        (
            "create service externalname en --external-name=example.org",
            "service/en created",
        ),
        (
            "run p --image=nginx --port=80 --env=A=b --labels=x=y",
            "pod/p created",
        ),
        (
            "run once --image=busybox --restart=Never --expose --port=80",
            "pod/once created",
        ),
        (
            "expose deployment web --port=80 --target-port=8080",
            "service/web exposed",
        ),
        (
            "autoscale deployment web --min=1 --max=5 --cpu-percent=80",
            "horizontalpodautoscaler.autoscaling/web autoscaled",
        ),
        ("scale deployment web --replicas=3", "deployment.apps/web scaled"),
        ("set serviceaccount deployment web sa", "serviceaccount updated"),
        ("set env deployment/web A=b", "deployment.apps/web env updated"),
        ("rollout pause deployment/web", "deployment.apps/web paused"),
        ("rollout resume deployment/web", "deployment.apps/web resumed"),
        ("rollout restart deployment/web", "deployment.apps/web restarted"),
        ("annotate pod p a=b", "pod/p annotated"),
        ("taint node n1 a=b:NoSchedule", "node/n1 tainted"),
        ("cordon n1", "node/n1 cordoned"),
        ("drain n1 --ignore-daemonsets --force", "node/n1 drained"),
        ("uncordon n1", "node/n1 uncordoned"),
        ("auth can-i create deployments.apps", "yes"),
        ("auth whoami", "admin"),
        ("auth reconcile -f /dev/null", ""),
        ("get all -A", "deployment.apps/web"),
        ("get events", ""),
        ("describe pod p", "nginx"),
        (
            "delete deployment web --cascade=foreground --wait=false",
            "deployment.apps \"web\" deleted",
        ),
        (
            "delete pod p once --grace-period=0 --force",
            "pod \"p\" force deleted",
        ),
    ];
    let mut failed = Vec::new();
    for (command, want) in commands {
        let args: Vec<String> = command.split(' ').map(|word| word.replace('_', " ")).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = served.run(&args, "").await;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() || !text.contains(want) {
            failed.push(format!("kubectl {command}: {text}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));

    // Defaults are set although Go sends what they stand for as empty.
    let pod = served.server.get(&format!("{PODS}/p")).await;
    assert_eq!(pod.code, 404);
    let cron = served
        .server
        .get("/apis/batch/v1/namespaces/default/cronjobs/cj")
        .await
        .expect(200);
    let template = &cron["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!(
        (
            cron["spec"]["schedule"].as_str(),
            cron["spec"]["concurrencyPolicy"].as_str(),
            template["dnsPolicy"].as_str(),
            template["containers"][0]["imagePullPolicy"].as_str(),
            template.get("nodeName"),
        ),
        (
            Some("*/5 * * * *"),
            Some("Allow"),
            Some("ClusterFirst"),
            Some("Always"),
            None
        )
    );
}
