//! Pod interfaces and addresses, bridge, VXLAN.
