//! cell (contract: see the module's owner).
