//! Driver capabilities: the set that `NVIDIA_DRIVER_CAPABILITIES` names.
