use serde_json::json;

use super::*;
use crate::schema::Schema;

fn view(group: &str, kind: &str) -> View<'static> {
    Schema::builtin()
        .kind(group, "v1", kind)
        .expect("a built-in kind")
}

fn json_of(group: &str, kind: &str, text: &str) -> Result<Decoded, DecodeError> {
    decode_json(view(group, kind), text.as_bytes())
}

#[test]
fn unknown_and_duplicate_fields_are_problems() {
    let cases = [
        (r#"{"spec":{"foo":1}}"#, vec![r#"unknown field "spec.foo""#]),
        (
            r#"{"spec":{"paused":true,"paused":false}}"#,
            vec![r#"duplicate field "spec.paused""#],
        ),
        (
            r#"{"spec":{"paused":null,"paused":false}}"#,
            vec![r#"duplicate field "spec.paused""#],
        ),
        (
            r#"{"metadata":{"labels":{"a":"1","a":"2"}}}"#,
            vec![r#"duplicate field "metadata.labels.a""#],
        ),
        (
            r#"{"x":{},"spec":{"template":{"spec":{"containers":[{"name":"a"},{"image":"b","Name":"c"}]}}}}"#,
            vec![
                r#"unknown field "x""#,
                r#"unknown field "spec.template.spec.containers[1].Name""#,
            ],
        ),
        (r#"{"spec":{"replicas":1}}"#, vec![]),
    ];
    for (text, problems) in cases {
        assert_eq!(
            json_of("apps", "Deployment", text).expect(text).problems,
            problems,
            "{text}"
        );
    }
    let decoded = json_of("apps", "Deployment", r#"{"a":1,"b":2}"#).expect("only problems");
    assert_eq!(
        decoded.strict_error().as_deref(),
        Some(r#"strict decoding error: unknown field "a", unknown field "b""#)
    );
    assert_eq!(decoded.value, json!({}));
}

#[test]
fn wrong_types_are_errors_that_name_the_field() {
    let cases = [
        (
            r#"{"spec":{"replicas":"3"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"replicas":3.5}}"#,
            "json: cannot unmarshal number 3.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"replicas":3000000000}}"#,
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"spec":[]}"#,
            "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            r#"[]"#,
            "json: cannot unmarshal array into Go value of type v1.Deployment",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ];
    for (text, message) in cases {
        let error = json_of("apps", "Deployment", text).expect_err(text);
        assert_eq!(error, DecodeError::Type(message.into()), "{text}");
    }
    assert!(matches!(json_of("", "Pod", "{"), Err(DecodeError::Syntax(_))));
    assert!(matches!(json_of("", "Pod", "{} {}"), Err(DecodeError::Syntax(_))));
    assert!(matches!(
        json_of("", "Pod", &"[".repeat(10_000)),
        Err(DecodeError::Type(_) | DecodeError::Syntax(_))
    ));
    let deep = format!(r#"{{"spec":{}"#, r#"{"a":"#.repeat(10_000));
    assert!(matches!(json_of("", "Pod", &deep), Err(DecodeError::Syntax(_))));
}

#[test]
fn values_take_their_stored_form() {
    let text = r#"{"metadata":{"name":null,"labels":{},"annotations":{"a":null},
        "creationTimestamp":"2024-01-02T03:04:05+02:00"},
        "spec":{"containers":[{"name":"a","args":[],"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}],
        "tolerations":[],"nodeSelector":{},"securityContext":{}}}"#;
    assert_eq!(
        json_of("", "Pod", text).expect("a pod").value,
        json!({"metadata":{"annotations":{"a":""},"creationTimestamp":"2024-01-02T01:04:05Z"},
            "spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}],
            "securityContext":{}}})
    );
    let lease = json_of(
        "coordination.k8s.io",
        "Lease",
        r#"{"spec":{"renewTime":"2024-01-02T03:04:05.5Z"}}"#,
    );
    assert_eq!(
        lease.expect("a lease").value["spec"]["renewTime"],
        "2024-01-02T03:04:05.500000Z"
    );
    let pod = json_of("", "Pod", r#"{"spec":{"containers":[],"volumes":[]}}"#).expect("a pod");
    assert_eq!(pod.value["spec"], json!({ "containers": [] }));
    let secret = json_of("", "Secret", r#"{"data":{"a":"!"}}"#);
    assert!(matches!(secret, Err(DecodeError::Type(text)) if text.starts_with("illegal base64 data")));
}

#[test]
fn yaml_is_decoded_like_json() {
    let text = "apiVersion: v1\nkind: Pod\nspec:\n  hostNetwork: true\n  containers:\n  - name: a\n    foo: 1\n    ports:\n    - containerPort: 80\n";
    let decoded = decode_yaml(view("", "Pod"), text.as_bytes()).expect("a pod");
    assert_eq!(decoded.problems, [r#"unknown field "spec.containers[0].foo""#]);
    assert_eq!(
        decoded.value["spec"]["containers"][0]["ports"],
        json!([{ "containerPort": 80 }])
    );
    let twice = decode_yaml(view("", "Pod"), b"kind: Pod\nkind: Pod\n").expect("a pod");
    assert_eq!(twice.problems, [r#"duplicate field "kind""#]);
    let number = decode_yaml(view("", "ConfigMap"), b"data:\n  a: 1\n");
    assert!(matches!(number, Err(DecodeError::Type(_))), "{number:?}");
    let config = decode_yaml(
        view("", "ConfigMap"),
        b"data:\n  a: \"1\"\n  b: |\n    x\n    y\n",
    )
    .expect("a map");
    assert_eq!(config.value["data"], json!({ "a": "1", "b": "x\ny\n" }));
}

#[test]
fn yaml_bombs_are_refused() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let before = level - 1;
        let items = vec![format!("*a{before}"); 10].join(",");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(yaml_to_json(text.as_bytes()).is_err());
    assert!(yaml_to_json("[".repeat(100_000).as_bytes()).is_err());
    assert!(matches!(
        yaml_to_json(&vec![b' '; MAX_BODY + 1]),
        Err(DecodeError::TooLarge(_))
    ));
}

#[test]
fn yaml_streams_become_documents() {
    let documents = yaml_documents(b"a: 1\n---\n---\nb: 2\n").expect("two documents");
    assert_eq!(documents, [json!({ "a": 1 }), json!({ "b": 2 })]);
}

#[test]
fn custom_resources_are_pruned_but_not_judged() {
    let schema = Schema::custom(&json!({ "type": "object", "properties": {
        "spec": { "type": "object", "properties": { "size": { "type": "integer" } } },
        "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": { "shut": { "type": "object", "properties": {} } } },
    } }))
    .expect("a schema");
    let text = r#"{"spec":{"size":"big","x":1},"free":{"y":[null,{"z":{}}],"shut":{"q":1}},"metadata":{"foo":1,"labels":{}}}"#;
    let decoded = decode_json(schema.root(), text.as_bytes()).expect("an object");
    assert_eq!(
        decoded.value,
        json!({ "spec": { "size": "big" }, "free": { "y": [null, { "z": {} }], "shut": {} }, "metadata": {} })
    );
    assert_eq!(
        decoded.problems,
        [
            r#"unknown field "spec.x""#,
            r#"unknown field "free.shut.q""#,
            r#"unknown field "metadata.foo""#
        ]
    );
    let bad = decode_json(schema.root(), br#"{"metadata":{"labels":{"a":1}}}"#);
    assert!(matches!(bad, Err(DecodeError::Type(_))));
}

#[test]
fn checking_a_decoded_object_changes_nothing() {
    let text = r#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":"1"}}}]}}"#;
    let once = json_of("", "Pod", text).expect("a pod");
    let twice = strict_check(view("", "Pod"), once.value.clone()).expect("a pod");
    assert_eq!(once, twice);
}

#[test]
fn many_problems_are_cut_off() {
    let fields: Vec<String> = (0..1000).map(|n| format!(r#""x{n}":1"#)).collect();
    let decoded = json_of("", "Pod", &format!("{{{}}}", fields.join(","))).expect("problems only");
    assert_eq!(decoded.problems.len(), MAX_PROBLEMS);
}
