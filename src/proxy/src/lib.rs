//! Services and EndpointSlices to an nftables plan.
