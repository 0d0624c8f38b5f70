//! Typed link, address, route and neighbour verbs; network namespaces.
