//! /etc/gpucell/config.toml: what an administrator decides about GPUs.
