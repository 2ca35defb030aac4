//! Which GPUs a cell asks for, by every name users and engines use.
