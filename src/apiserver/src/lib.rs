//! The Kubernetes HTTP API: authentication, authorization, admission, handlers, watch, discovery.
