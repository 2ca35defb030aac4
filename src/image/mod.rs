//! image (contract: see the module's owner).
