//! Clients of the API server in this process: no TCP, no TLS, no credentials.

use std::convert::Infallible;
use std::sync::Arc;

use futures::FutureExt;
use http::Request;
use http_body_util::BodyExt;
use kube::client::Body as ClientBody;
use skiff_apiserver::{ApiServer, Body, UserInfo};
use skiff_client::Client;

/// A client that acts as `user`.
pub fn client(server: &Arc<ApiServer>, user: UserInfo) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<ClientBody>| {
        let (server, user) = (server.clone(), user.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(user);
            let body: Body = body.map_err(Into::into).boxed_unsync();
            Ok::<_, Infallible>(server.handle(Request::from_parts(parts, body)).await)
        }
        .boxed()
    });
    Client::new(service, "default")
}
