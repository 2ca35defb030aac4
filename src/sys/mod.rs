//! sys (contract: see the module's owner).
