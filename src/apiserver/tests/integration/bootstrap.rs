//! What a server has from its start.

use crate::harness::Server;

#[tokio::test]
async fn group_versions_and_flow_control_are_listed() {
    let server = Server::start().await;
    let services = server
        .get("/apis/apiregistration.k8s.io/v1/apiservices")
        .await
        .expect(200);
    let items = services["items"].as_array().unwrap();
    assert_eq!(items.len(), 21);
    let apps = items.iter().find(|o| o["metadata"]["name"] == "v1.apps").unwrap();
    assert_eq!(apps["spec"]["groupPriorityMinimum"], 17800);
    for item in items {
        assert_eq!(item["status"]["conditions"][0]["reason"], "Local", "{item}");
    }
    let base = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let flows = server.get(&format!("{base}/flowschemas")).await.expect(200);
    let flows = flows["items"].as_array().unwrap();
    assert_eq!(flows.len(), 11);
    let levels = server
        .get(&format!("{base}/prioritylevelconfigurations"))
        .await
        .expect(200);
    let levels = levels["items"].as_array().unwrap();
    assert_eq!(levels.len(), 8);
    for flow in flows {
        let level = &flow["spec"]["priorityLevelConfiguration"]["name"];
        assert!(levels.iter().any(|l| l["metadata"]["name"] == *level), "{flow}");
        assert_eq!(flow["status"]["conditions"][0]["status"], "False");
    }
}
