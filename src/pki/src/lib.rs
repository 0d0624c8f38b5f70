//! Certificate authorities, certificates, join tokens and kubeconfigs.
