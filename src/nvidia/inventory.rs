//! GPUs, driver version and device numbers from procfs, without NVML.
