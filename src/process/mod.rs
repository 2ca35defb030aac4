//! process (contract: see the module's owner).
