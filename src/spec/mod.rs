//! spec (contract: see the module's owner).
pub mod edit;
pub mod user;
