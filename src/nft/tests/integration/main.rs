//! Tables written into real kernels, in fresh network namespaces, and read back with `nft`.

mod namespace;
mod roundtrip;
mod sections;
