//! spec (contract: see the module's owner).
